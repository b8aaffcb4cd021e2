"""What one proposal costs the driver, beside Optuna's GPSampler in the same run, and what a front costs its reader.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py

Studies of a synthetic family (rates over 200 items) as an evolutionary search leaves them: 50 random merges, then
generations of 50 around the measured front. Each is asked for one more trial, then for its front by posterior. Seconds
of CPU time, of an ask wall time too, medians of `--times`; every ask is of a sampler made anew, as after a resume.
GPSampler conditions on all trials, so its cost grows with their cube: it is left out above `--gp-trials`. What the
front, and Optuna's `best_trials`, promise too much is in points of the best known hypervolume.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import create_trial

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from search_parts.synthetic import CLASSES, Problem, make_problem

from optimizer.front import posterior
from optimizer.samplers import make_sampler

HEADS = (
    "class",
    "trials",
    "auto, wall s",
    "auto, CPU s",
    "gp, CPU s",
    "auto over gp",
    "front, CPU s",
    "too much, points",
    "too much of best_trials",
)


def evolved(problem: Problem, trials: int) -> optuna.Study:
    """A study in memory with so many merges in it."""
    rng = np.random.default_rng(0)
    names = [f"w.{name}" for name in problem.names]
    space: dict[str, BaseDistribution] = {name: FloatDistribution(-0.5, 1.0) for name in names}
    study = optuna.create_study(directions=["maximize"] * len(problem.reference))
    while (done := len(study.trials)) < trials:
        parents = [[t.params[name] for name in names] for t in study.best_trials] or [[0.0] * len(names)]
        spread = 0.25 / (1 + done / 500) if done else 1.5
        chosen = rng.choice(parents, min(50, trials - done))
        for raw in np.clip(chosen + rng.normal(scale=spread, size=chosen.shape), -0.5, 1.0):
            params = dict(zip(names, raw.tolist(), strict=True))
            values, stderr = problem.measure(params, rng)
            study.add_trial(
                create_trial(params=params, distributions=space, values=values, user_attrs={"stderr": stderr})
            )
    return study


def seconds_an_ask(study: optuna.Study, name: str, times: int) -> tuple[float, float]:
    """Medians of CPU and wall seconds; what is asked for is failed, so that every ask meets the same trials."""
    taken = []
    for _ in range(times):
        study.sampler = make_sampler(name, seed=0)
        before = time.process_time(), time.perf_counter()
        trial = study.ask(dict(study.trials[0].distributions))
        taken.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    cpu, wall = zip(*taken, strict=True)
    return statistics.median(cpu), statistics.median(wall)


def front_of(problem: Problem, study: optuna.Study, times: int) -> tuple[float, float, float]:
    """Median CPU seconds of the front by posterior, what it promises too much, and what the measured one does."""
    taken = []
    for _ in range(times):
        before = time.process_time()
        found = posterior(study)
        taken.append(time.process_time() - before)
    believed = {n: found.trials[n].mean for n in found.front}
    raw = {t.number: tuple(t.values) for t in study.best_trials}
    return statistics.median(taken), _too_much(problem, study, believed), _too_much(problem, study, raw)


def _too_much(problem: Problem, study: optuna.Study, means: Mapping[int, tuple[float, ...]]) -> float:
    true = problem.true([study.trials[n].params for n in means])
    return 100 * (problem.volume(np.array([*means.values()])) - problem.volume(true)) / problem.best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", default=["4-2-dense", "8-2-dense", "16-2-dense"], choices=CLASSES)
    parser.add_argument("--trials", nargs="+", type=int, default=[60, 300, 1000, 2000])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--gp-trials", type=int, default=300, help="most trials at which GPSampler is asked")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seconds_an_ask(evolved(make_problem("4-2-dense", 0), 20), "auto", 1)  # imports
    print(f"| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    for name in options.classes:
        problem = make_problem(name, 0)
        for trials in options.trials:
            study = evolved(problem, trials)
            cpu, wall = seconds_an_ask(study, "auto", options.times)
            gp = seconds_an_ask(study, "gp", options.times)[0] if trials <= options.gp_trials else None
            reference = "– | –" if gp is None else f"{gp:.2f} | {cpu / gp:.2f}"
            front, promised, raw = front_of(problem, study, options.times)
            cells = (name, f"{trials:,}", f"{wall:.2f}", f"{cpu:.2f}", reference, f"{front:.2f}")
            print(f"| {' | '.join(cells)} | {promised:+.1f} | {raw:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
