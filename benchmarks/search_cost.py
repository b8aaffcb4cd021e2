"""What one proposal costs the driver, beside Optuna's GPSampler in the same run, and what a front costs its reader.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py

Studies of random merges of a synthetic family (two objectives, rates over 200 items), asked for one more trial, then
for their front by posterior. Seconds of CPU time, of an ask wall time too, medians of `--times`; every ask is of a
sampler made anew, as after a resume. GPSampler conditions on all trials, so its cost grows with their cube: it is left
out above `--gp-trials`.
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
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from search_parts.synthetic import Problem, make_problem

from optimizer.front import posterior
from optimizer.samplers import make_sampler


def measured(problem: Problem, trials: int) -> optuna.Study:
    """A study in memory with so many random merges in it."""
    rng = np.random.default_rng(0)
    space = {f"w.{name}": FloatDistribution(-0.5, 1.0) for name in problem.names}
    study = optuna.create_study(directions=["maximize"] * len(problem.reference))
    for raw in rng.uniform(-0.5, 1.0, size=(trials, len(space))):
        params: Mapping[str, float] = dict(zip(space, raw.tolist(), strict=True))
        values, stderr = problem.measure(params, rng)
        study.add_trial(
            create_trial(params=dict(params), distributions=dict(space), values=values, user_attrs={"stderr": stderr})
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


def seconds_a_front(study: optuna.Study, times: int) -> float:
    """Median of CPU seconds."""
    taken = []
    for _ in range(times):
        before = time.process_time()
        posterior(study)
        taken.append(time.process_time() - before)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--trials", nargs="+", type=int, default=[60, 300, 2000])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--gp-trials", type=int, default=300, help="most trials at which GPSampler is asked")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seconds_an_ask(measured(make_problem("4-2-dense", 0), 20), "auto", 1)  # imports
    print("| weights | trials | front, CPU s | auto, wall s | auto, CPU s | gp, CPU s | auto over gp |")
    print("|---" * 7 + "|")
    for weights in options.weights:
        problem = make_problem(f"{weights}-2-dense", 0)
        for trials in options.trials:
            study = measured(problem, trials)
            cpu, wall = seconds_an_ask(study, "auto", options.times)
            row = f"| {weights} | {trials:,} | {seconds_a_front(study, options.times):.2f} | {wall:.2f} | {cpu:.2f} |"
            if trials > options.gp_trials:
                print(f"{row} – | – |", flush=True)
                continue
            reference, _ = seconds_an_ask(study, "gp", options.times)
            print(f"{row} {reference:.2f} | {cpu / reference:.3f} |", flush=True)


if __name__ == "__main__":
    main()
