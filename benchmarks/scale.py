"""How many workers one driver keeps busy: real sampler, records and database, workers that only wait.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--workers 8 64 256] [--sampler auto] [--seconds 120] [--mean 10]
                                                 [--clock processor]

Trial times are drawn around the mean (log-normal; a factor of two either way is common), so that workers finish one by
one. Outcomes are made up: smooth in the weights, noisy, 200 items each. *Idle* is the share of their time that workers
waited for something to do, once all had had their first trial; *driver* is the processor time of a trial, all told.
With `--clock processor` time is what the driver computes and what it would sleep for: the same figures on a machine
that has other work, but waits for the disk are left out.
"""

import argparse
import importlib
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from time import monotonic, process_time, sleep

import optuna
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from optimizer import loop
from optimizer.spec import Spec, from_document
from optimizer.study import DriverStudy, create_study
from storage.records import Assignment, Marks, Measured, Outcome, Score
from storage.store import Store

ITEMS = 200
CHECKPOINTS = tuple(f"c{i}" for i in range(8))
SPREAD = 0.5


class WallClock:
    """Time as it goes by."""

    def now(self) -> float:
        return monotonic()

    def sleep(self, seconds: float) -> None:
        sleep(seconds)


class ProcessorClock:
    """Time as it would go by if nobody else used the processor. Nobody sleeps in it."""

    def __init__(self) -> None:
        self._slept = 0.0

    def now(self) -> float:
        return process_time() + self._slept

    def sleep(self, seconds: float) -> None:
        self._slept += seconds


CLOCKS = {"wall": WallClock, "processor": ProcessorClock}
Clock = WallClock | ProcessorClock


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of one run; ``driver`` is in seconds a trial."""

    trials: int
    rate: float
    idle: float
    driver: float


@dataclass(kw_only=True)
class Sleepers:
    """A pool whose workers take their time, and do nothing with it."""

    count: int
    mean: float
    clock: Clock
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    running: list[tuple[float, int, Assignment]] = field(default_factory=list)
    free_since: list[float] = field(default_factory=list)
    idle: float = 0.0
    begun: float = 0.0
    submitted: int = 0

    @property
    def room(self) -> int:
        return self.count - len(self.running)

    def submit(self, assignment: Assignment) -> None:
        now = self.clock.now()
        self.submitted += 1
        if self.free_since:
            self.idle += now - self.free_since.pop()
        elif self.submitted == self.count:
            self.begun = now
        seconds = self.mean * self.chance.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        heappush(self.running, (now + seconds, assignment.number, assignment))

    def finished(self) -> list[Outcome]:
        if not self.running:
            return []
        self.clock.sleep(max(self.running[0][0] - self.clock.now(), 0.0))
        done: list[Outcome] = []
        now = self.clock.now()
        while self.running and self.running[0][0] <= now:
            ended, _, assignment = heappop(self.running)
            if self.begun:
                self.free_since.append(ended)
            done.append(self._outcome(assignment))
        return done

    def close(self) -> None:
        """Nothing to end."""

    def idle_share(self) -> float:
        """Of the workers' time since all had their first trial."""
        now = self.clock.now()
        waiting = self.idle + sum(now - since for since in self.free_since)
        return waiting / (self.count * (now - self.begun)) if self.begun else 1.0

    def _outcome(self, assignment: Assignment) -> Measured:
        weights = assignment.recipe.mean_weights()
        share = {name: weights.get(name, 0.0) for name in CHECKPOINTS}
        means = {
            "safety": 0.2 + 0.75 * share["c0"] ** 0.5 - 0.2 * share["c1"] * share["c2"],
            "general": 0.9 - 0.4 * share["c0"] ** 2 + 0.08 * share["c3"] - 0.2 * share["c4"],
        }
        marks = {f"{name}/0:made-up.jsonl": self._marks(mean) for name, mean in means.items()}
        scores = {
            name: Score(mean=sum(found.values) / ITEMS, stderr=0.03, n=ITEMS)  # type: ignore[arg-type]  # all scored
            for name, found in zip(means, marks.values(), strict=True)
        }
        return Measured(
            number=assignment.number,
            recipe=assignment.recipe,
            split=assignment.split,
            scores=scores,
            breakdown={},
            marks=marks,
            digest="0" * 64,
            seconds={"merge": 0.1, "forward": self.mean, "total": self.mean},
            worker="sleeper:1",
        )

    def _marks(self, mean: float) -> Marks:
        values = tuple(float(self.chance.random() < mean) for _ in range(ITEMS))
        return Marks(ids=tuple(map(str, range(ITEMS))), values=values, verdicts=("",) * ITEMS, outputs=("",) * ITEMS)


def measure(sampler: str, workers: int, seconds: float, mean: float, clock: Clock) -> Found:
    """One study of so many seconds."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(f"sqlite:///{directory}/scale.db", create=True)
        create_study(store, _spec(sampler), trials=1_000_000, fingerprints={})
        pool = Sleepers(count=workers, mean=mean, clock=clock)
        begun, used = clock.now(), process_time()
        measured: list[int] = []
        ends: list[Found] = []

        def over() -> bool:
            took = clock.now() - begun
            if took > seconds and not ends:
                count = len(measured)
                driver = (process_time() - used) / max(count, 1)
                ends.append(Found(trials=count, rate=count / took, idle=pool.idle_share(), driver=driver))
            return bool(ends)

        loop.search(DriverStudy(store, "scale"), pool, lambda outcome: measured.append(outcome.number), over)
        store.close()
    return ends[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--sampler", nargs="+", default=["auto"])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--mean", type=float, default=10.0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # The sampler's libraries take seconds to import, once a driver: not what is measured here.
    importlib.import_module("optimizer.next_point")
    heads = ("sampler", "workers", "trials", "trials a second", "idle", "driver")
    table = Table(*heads, title=f"{options.clock} clock, load {os.getloadavg()[0]:.1f}")
    for sampler in options.sampler:
        for workers in options.workers:
            found = measure(sampler, workers, options.seconds, options.mean, CLOCKS[options.clock]())
            figures = (str(found.trials), f"{found.rate:.2f}", f"{found.idle:.1%}", f"{1000 * found.driver:.0f} ms")
            table.add_row(sampler, str(workers), *figures)
    Console(width=100).print(table)


def _spec(sampler: str) -> Spec:
    suite = {"path": "made-up.jsonl", "scorer": "exact_match"}
    return from_document(
        {
            "study": "scale",
            "base": "base",
            "checkpoints": [{"name": name, "model": name} for name in CHECKPOINTS],
            "objectives": [{"name": name, "suites": [suite]} for name in ("safety", "general")],
            "search": {"sampler": sampler},
        }
    )


if __name__ == "__main__":
    main()
