"""How much of the possible front each sampler finds, at equal numbers of evaluations.

Problems are synthetic families of checkpoints. Every checkpoint is a random task vector; every objective has its own
optimum among their mixes and falls off with the squared distance from it, through a sigmoid that is steep for the first
objective (a refusal cliff) and gentle for the others. What a sampler sees is a rate over 200 items (binomial noise) and
its standard error. What it is scored on is the true hypervolume of the front that `posterior_front` returns, divided by
the best known; the reference point is the lower quartile of random mixes in each objective, and points that truly break
the constraint count nothing. Every contestant starts from the uniform merge and each checkpoint alone.

    OMP_NUM_THREADS=1 python benchmarks/search_quality.py --classes 8-2-sparse 8-2-dense --seeds 5 --evaluations 30 60

A class is CHECKPOINTS-OBJECTIVES-sparse|dense[-constrained]. Finished runs are kept in the results file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import FloatDistribution
from optuna.study import Study, StudyDirection

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from optimizer.front import hypervolume, non_dominated, posterior
from optimizer.samplers import NAMES, make_sampler

Array = npt.NDArray[np.float64]

ITEMS = 200
DIMENSIONS = 24
CONTESTANTS = tuple(name for name in NAMES if name != "grid")
CLASSES = tuple(
    f"{k}-{m}-{shape}{suffix}"
    for k in (4, 8, 16)
    for m in (2, 3)
    for shape in ("sparse", "dense")
    for suffix in ("", "-constrained")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A family of ``k`` checkpoints and ``m`` objectives with known truth."""

    tasks: Array  # (k, D)
    peaks: Array  # (m, k), the best mix for each objective alone
    optima: Array  # (m, D)
    curvature: Array  # (m, D)
    offset: Array  # (m,)
    slope: Array  # (m,)
    top: Array  # (m,)
    reference: Array  # (m,)
    at_least: float | None
    best: float

    def truth(self, weights: Array) -> Array:
        """True rates ``(n, m)`` of merges ``(n, k)``."""
        moved = weights @ self.tasks
        return _rates(_losses(moved, self.optima, self.curvature), self.offset, self.slope, self.top)

    def score(self, weights: Array) -> float:
        """True hypervolume of these merges over the best known."""
        return self.volume(self.truth(weights)) / self.best

    def volume(self, values: Array) -> float:
        """Hypervolume of true or reported values, those that break the constraint left out."""
        allowed = values if self.at_least is None else values[values[:, 0] >= self.at_least]
        return hypervolume(allowed, self.reference.tolist(), [StudyDirection.MAXIMIZE] * len(self.reference))


def _losses(moved: Array, optima: Array, curvature: Array) -> Array:
    squared = (((moved[:, None, :] - optima) ** 2) * curvature).sum(axis=2)
    return np.asarray(np.sqrt(squared + 0.1))


def _rates(losses: Array, offset: Array, slope: Array, top: Array) -> Array:
    return np.asarray(top / (1.0 + np.exp(slope * (losses - offset))))


@lru_cache(maxsize=1)
def make_problem(name: str, seed: int) -> Problem:
    """The problem of a class, such as ``8-2-sparse-constrained``, that belongs to a seed."""
    parts = name.split("-")
    k, m, sparse = int(parts[0]), int(parts[1]), parts[2] == "sparse"
    rng = np.random.default_rng([k, m, int(sparse), seed])
    problem, best = _worthwhile(k, m, sparse, rng)
    if parts[-1] == "constrained":
        inside = best[(best > problem.reference).all(axis=1)]
        problem = replace(problem, at_least=float(np.median(inside[:, 0])))
    return replace(problem, best=problem.volume(best))


def _worthwhile(k: int, m: int, sparse: bool, rng: np.random.Generator) -> tuple[Problem, Array]:
    """A problem with something to find: the optima do not exclude each other, nor do the starting points reach them."""
    while True:
        problem = _draft(k, m, sparse, rng)
        best = _best_front(problem, k, rng)
        starts = problem.truth(np.concatenate([np.eye(k), np.full((1, k), 1 / k)]))
        if problem.volume(best) > 0.05 and problem.volume(starts) < 0.7 * problem.volume(best):
            return problem, best


def _draft(k: int, m: int, sparse: bool, rng: np.random.Generator) -> Problem:
    tasks = rng.normal(size=(k, DIMENSIONS))
    peaks = np.stack([_optimum(k, sparse, rng) for _ in range(m)])
    optima = peaks @ tasks
    curvature = np.exp(rng.normal(scale=0.7, size=(m, DIMENSIONS)))
    sample = _losses(_mixes(k, 4000, rng) @ tasks, optima, curvature)
    # A tenth to a third of random mixes lie above half of the best rate: on the right side of a cliff.
    offset = np.array([np.quantile(losses, rng.uniform(0.1, 0.33)) for losses in sample.T])
    slope = np.array([rng.uniform(6, 12), *rng.uniform(2.0, 4.0, size=m - 1)]) / offset
    top = rng.uniform(0.9, 0.99, size=m)
    return Problem(
        tasks=tasks,
        peaks=peaks,
        optima=optima,
        curvature=curvature,
        offset=offset,
        slope=slope,
        top=top,
        reference=np.quantile(_rates(sample, offset, slope, top), 0.25, axis=0),
        at_least=None,
        best=1.0,
    )


def _optimum(k: int, sparse: bool, rng: np.random.Generator) -> Array:
    if not sparse:
        return rng.dirichlet(np.full(k, 1.0))
    weights = np.zeros(k)
    members = rng.choice(k, size=min(k, int(rng.integers(1, 4))), replace=False)
    weights[members] = rng.dirichlet(np.full(len(members), 2.0))
    return weights


def _mixes(k: int, count: int, rng: np.random.Generator) -> Array:
    concentration = np.exp(rng.uniform(np.log(0.2), np.log(2.0), size=(count, 1)))
    raw = rng.gamma(np.broadcast_to(concentration, (count, k))) + 1e-12
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _best_front(problem: Problem, k: int, rng: np.random.Generator) -> Array:
    """True values of the best front that a long search without noise finds."""
    directions = [StudyDirection.MAXIMIZE] * len(problem.top)
    between = rng.dirichlet(np.ones(len(problem.peaks)), size=2000) @ problem.peaks
    pool = np.concatenate([np.eye(k), problem.peaks, between, _mixes(k, 10_000, rng)])
    for step in np.geomspace(0.5, 0.005, 50):
        front = pool[non_dominated(problem.truth(pool), directions)]
        # Thinned on a grid of values, so that sparse stretches of the front survive.
        cells = (problem.truth(front) * (200 if len(directions) == 2 else 15)).astype(int)
        front = front[np.unique(cells, axis=0, return_index=True)[1]]
        parents = front[rng.integers(len(front), size=600)]
        others = np.concatenate([_mixes(k, 100, rng), np.eye(k), front])
        moved = parents + step * rng.random((600, 1)) * (others[rng.integers(len(others), size=600)] - parents)
        away = np.maximum(2 * parents - moved, 0.0)
        pool = np.concatenate([front, moved, away / away.sum(axis=1, keepdims=True)])
    return problem.truth(front)


def run(name: str, contestant: str, seed: int, evaluations: list[int], in_flight: int) -> dict[str, Any]:
    """One contestant on one problem: its scores and what it reported, at each number of evaluations."""
    problem = make_problem(name, seed)
    k, m = len(problem.tasks), len(problem.top)
    rng = np.random.default_rng([seed, 1])
    study = optuna.create_study(directions=["maximize"] * m, sampler=make_sampler(contestant, seed=seed))
    for start in (np.ones(k), *(np.where(np.eye(k) > 0, 1.0, -0.25))):
        study.enqueue_trial({f"w.{i}": float(x) for i, x in enumerate(start)})
    space = {f"w.{i}": FloatDistribution(-0.5, 1.0) for i in range(k)}
    result: dict[str, Any] = {"score": {}, "raw": {}, "reported": {}, "ask_s": 0.0}
    flying: list[optuna.Trial] = []
    for done in range(1, max(evaluations) + 1):
        while len(flying) < min(in_flight, max(evaluations) - done + 1):
            started = time.perf_counter()
            flying.append(study.ask(space))
            result["ask_s"] += time.perf_counter() - started
        _measure(study, flying.pop(0), problem, rng)
        if done in evaluations:
            _note(result, str(done), study, problem)
    result["ask_s"] = round(result["ask_s"] / max(evaluations), 3)
    return result


def _measure(study: Study, trial: optuna.Trial, problem: Problem, rng: np.random.Generator) -> None:
    rates = rng.binomial(ITEMS, problem.truth(_weights([trial.params]))[0]) / ITEMS
    trial.set_user_attr("stderr", np.sqrt(rates * (1 - rates) / (ITEMS - 1)).tolist())
    if problem.at_least is not None:
        trial.set_constraint("safety", problem.at_least - float(rates[0]))
    study.tell(trial, rates.tolist())


def _note(result: dict[str, Any], at: str, study: Study, problem: Problem) -> None:
    believed = posterior(study)
    front = [t for t in study.trials if t.number in believed.front]
    result["score"][at] = result["reported"][at] = 0.0
    if front:
        result["score"][at] = problem.score(_weights([t.params for t in front]))
        means = np.array([believed.trials[t.number].mean for t in front])
        result["reported"][at] = problem.volume(means) / problem.best
    best = study.best_trials
    result["raw"][at] = problem.score(_weights([t.params for t in best])) if best else 0.0


def _weights(params: list[dict[str, float]]) -> Array:
    x = np.array([[p[f"w.{i}"] for i in range(len(p))] for p in params])
    positive = np.maximum(x, 0.0)
    alone = np.eye(x.shape[1])[x.argmax(axis=1)]
    total = positive.sum(axis=1, keepdims=True)
    return np.where(total > 0, positive / np.maximum(total, 1e-300), alone)


def table(results: dict[str, Any], classes: Iterable[str], contestants: list[str], evaluations: list[int]) -> str:
    """Medians (quartiles) of the share of the best true hypervolume, one row a class and number of evaluations."""
    lines = ["| class | evaluations | seeds | " + " | ".join(contestants) + " |", "|---" * (3 + len(contestants)) + "|"]
    for name in classes:
        for at in map(str, evaluations):
            cells, seeds = [], 0
            for contestant in contestants:
                runs = [r["score"] for key, r in results.items() if key.startswith(f"{name} {contestant} ")]
                scores = [score[at] for score in runs if at in score]
                seeds = max(seeds, len(scores))
                low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75]) if scores else [np.nan] * 3
                cells.append(f"{middle:.3f} ({low:.2f}–{high:.2f})" if scores else "–")
            lines.append(f"| {name} | {at} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing from the results file, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), metavar="CLASS")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--seeds", type=int, default=10, help="problems a class (default 10)")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[30, 60, 120, 240])
    parser.add_argument("--in-flight", type=int, default=1, help="trials that run at once (default 1)")
    parser.add_argument("--results", type=Path, default=Path("search_quality.json"))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for seed in range(arguments.seeds):
        for name in arguments.classes:
            for contestant in arguments.contestants:
                key = f"{name} {contestant} {seed} in-flight {arguments.in_flight}"
                if not {str(e) for e in arguments.evaluations} <= results.get(key, {"score": {}})["score"].keys():
                    results[key] = run(name, contestant, seed, arguments.evaluations, arguments.in_flight)
                    _save(results, arguments.results)
                    print(key, results[key], file=sys.stderr, flush=True)
    chosen = {k: r for k, r in results.items() if k.endswith(f"in-flight {arguments.in_flight}")}
    print(table(chosen, arguments.classes, arguments.contestants, arguments.evaluations))


def _save(results: dict[str, Any], path: Path) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1))
    os.replace(beside, path)


if __name__ == "__main__":
    main()
