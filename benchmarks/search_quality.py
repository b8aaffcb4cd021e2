"""How much of the possible front each sampler finds, at equal numbers of evaluations.

    OMP_NUM_THREADS=1 python benchmarks/search_quality.py --classes 8-2-sparse 8-2-dense --seeds 5 --evaluations 30 60
    OMP_NUM_THREADS=1 python benchmarks/search_quality.py --classes demo --family demo --seeds 1 --evaluations 30 60

A class is CHECKPOINTS-OBJECTIVES-sparse|dense[-constrained], a synthetic family (search_parts/synthetic.py), or `demo`,
the demo's family with true values from fresh items (search_parts/replay.py). What a contestant is scored on is the
true hypervolume of the front that `posterior_front` returns, divided by the best known; points that truly break the
constraint count nothing. Every contestant starts from the uniform merge and each checkpoint alone. `auto+looks` may
spend 15 % of its evaluations on second looks at finalists, as a study does. With 16 in flight or more, `auto` draws
several at a time, an eighth of them, as a driver does.

Every finished run is a line of the cache. What is there is not run again, so the work can be done in parts and seeds
added later; `--only-table` runs nothing. A line holds every trial as it was measured, so that `--rescore` can choose
the fronts anew after a change of how a front is chosen, without a search.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, create_trial

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from search_parts.replay import Replay
from search_parts.synthetic import CLASSES, make_problem

from optimizer.front import hypervolume, posterior
from optimizer.samplers import AGAIN, NAMES, OUTLOOK, drawn_together, make_sampler

Array = npt.NDArray[np.float64]

LOOKS = "auto+looks"
CONTESTANTS = (*(name for name in NAMES if name != "grid"), LOOKS)
SHARE = 0.15


class Problem(Protocol):
    """What is searched: parameters ``w.<name>`` to measured and to true values, more being better."""

    @property
    def names(self) -> list[str]: ...
    @property
    def reference(self) -> Array: ...
    @property
    def at_least(self) -> float | None: ...
    def measure(self, params: Mapping[str, float], rng: np.random.Generator) -> tuple[list[float], list[float]]: ...
    def true(self, params: Sequence[Mapping[str, float]]) -> Array: ...


def run(problem: Problem, contestant: str, seed: int, evaluations: Sequence[int], in_flight: int) -> dict[str, Any]:
    """One contestant on one problem: the true values of its front and what it reported, by number of evaluations."""
    rng = np.random.default_rng([seed, 1])
    names = _parameters(problem)
    sampler = make_sampler("auto" if contestant == LOOKS else contestant, seed=seed)
    study = optuna.create_study(directions=["maximize"] * len(problem.reference), sampler=sampler)
    starts = [dict(zip(names, x.tolist(), strict=True)) for x in _starts(len(names))]
    for start in starts:
        study.enqueue_trial(start)
    space = {name: FloatDistribution(-0.5, 1.0) for name in names}
    told: list[dict[str, Any]] = []
    flying: list[optuna.Trial] = []
    asked = 0.0
    for done in range(1, max(evaluations) + 1):
        left = max(evaluations) - done + 1 - len(flying)
        while (count := min(in_flight - len(flying), left)) >= min(max(in_flight // 8, 1), left) > 0:
            started = time.perf_counter()
            drawn = _drawn(study, space, min(count, max(in_flight // 8, 1)))
            asked += time.perf_counter() - started
            flying += drawn
            left -= len(drawn)
        again = _look(study, flying[0], SHARE * max(evaluations)) if contestant == LOOKS else None
        trial = study.trials[again] if again is not None else flying.pop(0)
        values, stderr = problem.measure(trial.params, rng)
        told.append({"params": [trial.params[n] for n in names], "values": values, "stderr": stderr, "again": again})
        _tell(study, trial, told[-1], problem)
    return {
        "at": {str(n): _noted(told[:n], problem) for n in evaluations},
        "starts": problem.true(starts).tolist(),
        "looks": sum(t["again"] is not None for t in told),
        "ask_s": round(asked / max(evaluations), 3),
        "trials": told,
    }


def _parameters(problem: Problem) -> list[str]:
    return [f"w.{name}" for name in problem.names]


def _drawn(study: Study, space: dict[str, FloatDistribution], count: int) -> list[optuna.Trial]:
    """Several of one model, as a driver of many workers draws them; or one, while there is no model or few workers."""
    together = drawn_together(study, count) if count > 1 else []
    if not together:
        return [study.ask(space)]  # type: ignore[arg-type]  # its dict is of any distributions
    for trial in together:
        study.add_trial(trial)
    # A trial of a study with this sampler would propose anew.
    sampler = optuna.samplers.RandomSampler(seed=0)
    books = optuna.load_study(study_name=study.study_name, storage=study._storage, sampler=sampler)
    added = study.get_trials(deepcopy=False)[-len(together) :]
    return [optuna.Trial(books, trial._trial_id) for trial in added]


def _starts(k: int) -> Array:
    return np.concatenate([np.ones((1, k)), np.where(np.eye(k) > 0, 1.0, -0.25)])


def _look(study: Study, new: optuna.Trial, most: float) -> int | None:
    """The trial to look at again, where that promises more than the new point."""
    look = study.trials[new.number].system_attrs.get(OUTLOOK, {"again": None})
    known = [t.user_attrs[AGAIN] for t in study.trials if AGAIN in t.user_attrs]
    if look["again"] is None or look["worth_again"] <= look["worth"] or len(known) + 1 > most or look["again"] in known:
        return None
    return int(look["again"])


def _tell(study: Study, trial: optuna.Trial | FrozenTrial, told: Mapping[str, Any], problem: Problem) -> None:
    if isinstance(trial, FrozenTrial):
        study.add_trial(_finished(told, problem))
        return
    trial.set_user_attr("stderr", told["stderr"])
    for name, excess in _limits(told, problem).items():
        trial.set_constraint(name, excess)
    study.tell(trial, told["values"])


def _finished(told: Mapping[str, Any], problem: Problem) -> FrozenTrial:
    names = _parameters(problem)
    again = {} if told["again"] is None else {AGAIN: told["again"]}
    return create_trial(
        params=dict(zip(names, told["params"], strict=True)),
        distributions={name: FloatDistribution(-0.5, 1.0) for name in names},
        values=told["values"],
        user_attrs={"stderr": told["stderr"], **again},
        constraints=_limits(told, problem),
    )


def _limits(told: Mapping[str, Any], problem: Problem) -> dict[str, float]:
    return {} if problem.at_least is None else {"safety": problem.at_least - told["values"][0]}


def _noted(told: Sequence[Mapping[str, Any]], problem: Problem) -> dict[str, Any]:
    """True and believed values of the front by posterior, and the true ones of the front by raw means."""
    study = optuna.create_study(directions=["maximize"] * len(problem.reference))
    study.add_trials([_finished(t, problem) for t in told])
    believed = posterior(study)
    raw = [t for t in study.best_trials if AGAIN not in t.user_attrs]
    return {
        "front": problem.true([study.trials[n].params for n in believed.front]).tolist(),
        "believed": [believed.trials[n].mean for n in believed.front],
        "raw": problem.true([t.params for t in raw]).tolist(),
    }


# --- scores ----------------------------------------------------------------------------------------------------------


def volume(values: Sequence[Sequence[float]], line: Mapping[str, Any]) -> float:
    """Hypervolume of true or believed values above the reference point, those that break the constraint left out."""
    m = len(line["reference"])
    points = np.array(values, dtype=float).reshape(-1, m)
    allowed = points if line["at_least"] is None else points[points[:, 0] >= line["at_least"]]
    return hypervolume(allowed, line["reference"], [StudyDirection.MAXIMIZE] * m)


def with_best(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines, where no best is known with the hypervolume of all that was found."""
    found = list(lines)
    for name in {line["class"] for line in found if line["best"] is None}:
        mine = [line for line in found if line["class"] == name]
        seen = [point for line in mine for at in line["at"].values() for point in [*at["front"], *at["raw"]]]
        for line in mine:
            line["best"] = volume(seen, line) or 1.0
    return found


def table(lines: Sequence[dict[str, Any]], contestants: Sequence[str], evaluations: Sequence[int]) -> str:
    """Medians (quartiles) of the share of the best true hypervolume, one row a class and number of evaluations."""
    rows = ["| class | evaluations | seeds | " + " | ".join(contestants) + " |", "|---" * (3 + len(contestants)) + "|"]
    for name in dict.fromkeys(line["class"] for line in lines):
        for at in map(str, evaluations):
            there = [line for line in lines if line["class"] == name and at in line["at"]]
            mine = {c: [line for line in there if line["contestant"] == c] for c in contestants}
            if not any(mine.values()):
                continue
            counts = sorted({len(found) for found in mine.values() if found})
            seeds = "–".join(str(n) for n in (counts if len(counts) == 1 else (counts[0], counts[-1])))
            scores = [[_share(line, at) for line in found] for found in mine.values()]
            rows.append(f"| {name} | {at} | {seeds} | " + " | ".join(map(_cell, scores)) + " |")
    return "\n".join(rows)


def _share(line: Mapping[str, Any], at: str, what: str = "front") -> float:
    """Hypervolume of what a line noted, over the best known."""
    return volume(line["at"][at][what], line) / line["best"]


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return "–"
    low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
    return f"{middle:.3f}" + (f" ({low:.2f}–{high:.2f})" if len(scores) > 1 else "")


def led(lines: Sequence[dict[str, Any]], contestants: Sequence[str], evaluations: Sequence[int]) -> str:
    """In how many classes the median of `auto` is the highest, where it had a rival."""
    said = []
    for at in map(str, evaluations):
        there = [line for line in lines if at in line["at"] and line["contestant"] in contestants]
        ahead = []
        for name in dict.fromkeys(line["class"] for line in there):
            mine = [line for line in there if line["class"] == name]
            medians = {
                c: np.median([_share(line, at) for line in mine if line["contestant"] == c])
                for c in dict.fromkeys(line["contestant"] for line in mine)
            }
            if "auto" in medians and len(medians) > 1:
                ahead.append(max(medians, key=lambda c: medians[c]) == "auto")
        if ahead:
            said.append(f"at {at} evaluations auto leads in {sum(ahead)} of {len(ahead)} classes")
    return "; ".join(said)


def summary(lines: Sequence[dict[str, Any]], evaluations: Sequence[int]) -> str:
    """By how much `auto`'s front overstates itself, and whether it ever fell behind its
    starting points: one row a contestant of ours and number of evaluations.
    """
    heads = ("contestant", "evaluations", "runs", "overstated, median", "worst quarter", "behind its starts", "ask, s")
    rows = [f"| {' | '.join(heads)} |"]
    rows.append("|---" * 7 + "|")
    for contestant in ("auto", LOOKS):
        for at in map(str, evaluations):
            mine = [line for line in lines if line["contestant"] == contestant and at in line["at"]]
            if not mine:
                continue
            over = [_share(line, at, "believed") - _share(line, at) for line in mine]
            behind = sum(volume(line["at"][at]["front"], line) < volume(line["starts"], line) - 1e-9 for line in mine)
            asked = np.median([line["ask_s"] for line in mine])
            rows.append(
                f"| {contestant} | {at} | {len(mine)} | {np.median(over):+.3f} | {np.quantile(over, 0.75):+.3f} "
                f"| {behind} of {len(mine)} | {asked:.2f} |"
            )
    return "\n".join(rows)


# --- the cache -------------------------------------------------------------------------------------------------------


def read(cache: Path) -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """The last line of every (class, contestant, seed, trials in flight); a line that was cut off is left out."""
    known = {}
    for text in cache.read_text().splitlines() if cache.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        known[line["class"], line["contestant"], line["seed"], line["in_flight"]] = line
    return known


def write(cache: Path, line: Mapping[str, Any]) -> None:
    """One more line; it takes the place of an earlier one with the same key."""
    with cache.open("a") as file:
        file.write(json.dumps(line) + "\n")


def fill(options: argparse.Namespace, problem_of: Callable[[str, int], Problem]) -> None:
    """Run what is missing, seed by seed, so that whatever time there is gives equally many seeds of every class."""
    known = read(options.cache)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.classes:
            for contestant in options.contestants:
                key = (name, contestant, seed, options.in_flight)
                if key in known and {str(e) for e in options.evaluations} <= known[key]["at"].keys():
                    continue
                problem = problem_of(name, seed)
                line = dict(zip(("class", "contestant", "seed", "in_flight"), key, strict=True))
                line |= {"reference": problem.reference.tolist(), "at_least": problem.at_least}
                line |= {"best": getattr(problem, "best", None)}
                line |= run(problem, contestant, seed, options.evaluations, options.in_flight)
                write(options.cache, line)
                print(*key, f"{line['ask_s']} s an ask", file=sys.stderr, flush=True)


def rescore(options: argparse.Namespace, problem_of: Callable[[str, int], Problem]) -> None:
    """Choose the fronts of the runs that are there anew, from their trials."""
    lines = [line for line in read(options.cache).values() if line["class"] in options.classes]
    for line in sorted(lines, key=lambda line: (line["class"], line["seed"])):
        problem = problem_of(line["class"], line["seed"])
        write(options.cache, line | {"at": {at: _noted(line["trials"][: int(at)], problem) for at in line["at"]}})


def problems(options: argparse.Namespace) -> Callable[[str, int], Problem]:
    """What makes the problem of a class and seed; the demo's family is opened once, and only where it is asked for."""
    truth = options.cache.with_suffix(".truth.jsonl")
    replay = Replay(options.family, truth, options.items) if "demo" in options.classes else None
    return lambda name, seed: replay if replay is not None and name == "demo" else make_problem(name, seed)


def main() -> None:
    """Runs what is missing from the cache, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), choices=[*CLASSES, "demo"], metavar="CLASS")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--seeds", type=int, default=10, help="problems a class (default 10)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", nargs="+", type=int, default=[30, 60, 120, 240])
    parser.add_argument("--in-flight", type=int, default=1, help="trials that run at once (default 1)")
    parser.add_argument("--family", type=Path, default=Path("demo"), help="directory that `mergefront demo` made")
    parser.add_argument("--items", type=int, default=20_000, help="fresh items of a true value in the demo's family")
    parser.add_argument("--cache", type=Path, default=Path("search_quality.jsonl"))
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only-table", action="store_true", help="run nothing")
    what.add_argument("--rescore", action="store_true", help="run nothing, but choose the fronts of finished runs anew")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not options.only_table:
        (rescore if options.rescore else fill)(options, problems(options))
    known = [line for line in read(options.cache).values() if line["in_flight"] == options.in_flight]
    lines = [line for line in known if line["class"] in options.classes]
    lines = with_best(sorted(lines, key=lambda line: (options.classes.index(line["class"]), line["seed"])))
    asked = (options.contestants, options.evaluations)
    print(table(lines, *asked), led(lines, *asked), summary(lines, options.evaluations), sep="\n\n")


if __name__ == "__main__":
    main()
