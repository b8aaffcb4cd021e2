"""What keeping everything costs: a study of 2,000 trials with 500 items each, and drivers that race for one study.

    python benchmarks/reliability.py [--trials 2000] [--items 500] [--races 50]

Outcomes are made up here (no model runs); records, database, sampler and driver are the real ones.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from time import perf_counter

import optuna
import psutil
from rich.console import Console
from rich.table import Table

from optimizer import loop
from optimizer.spec import Spec, from_document
from optimizer.study import DriverStudy, create_study
from storage.records import Assignment, Marks, Measured, Outcome, Score
from storage.store import Store
from workers.pool import LocalPool

SENTENCE = "the model writes an answer of some forty words that differ from item to item so that they pack badly"


class MadeUp:
    """Stands where a worker would: answers at once, with as many items and as much text as a real one."""

    def __init__(self, items: int) -> None:
        self._ids = tuple(f"item-{i}" for i in range(items))
        self._chance = random.Random(0)

    def run(self, assignment: Assignment) -> Outcome:
        """A measurement that a recipe of these weights might have had."""
        share = self._chance.random()
        values = tuple(float(self._chance.random() < share) for _ in self._ids)
        outputs = tuple(" ".join(self._chance.choices(SENTENCE.split(), k=40)) for _ in self._ids)
        marks = Marks(ids=self._ids, values=values, verdicts=tuple("refused" for _ in values), outputs=outputs)
        score = Score(mean=statistics.fmean(values), stderr=0.02, n=len(values))
        return Measured(
            number=assignment.number,
            recipe=assignment.recipe,
            split=assignment.split,
            scores={"safety": score, "general": score},
            breakdown={"safety": {"lang:en": score}},
            marks={"safety/0:made-up.jsonl": marks},
            digest="0" * 64,
            seconds={"merge": 0.1, "forward": 1.0, "total": 1.1},
            worker="made-up:1",
        )


def fill(url: str, trials: int, items: int) -> tuple[list[float], list[float]]:
    """Run a study of that size; seconds a trial and resident memory (MiB) of every hundredth part of it."""
    store = Store.open(url, create=True)
    create_study(store, _spec(), trials=trials, fingerprints={})
    study = DriverStudy(store, "long")
    seconds: list[float] = []
    memory: list[float] = []
    begun = perf_counter()

    def seen(_outcome: Outcome) -> None:
        nonlocal begun
        if sum(study.counts()[:2]) % max(trials // 20, 1) == 0:
            seconds.append((perf_counter() - begun) / max(trials // 20, 1))
            memory.append(psutil.Process().memory_info().rss / 2**20)
            begun = perf_counter()

    loop.search(study, LocalPool(lambda: MadeUp(items)), seen)  # type: ignore[arg-type,return-value]  # as a worker
    store.close()
    return seconds, memory


def timed(code: str, url: str) -> float:
    """Median wall seconds of three fresh processes, their imports left out."""
    program = f"""
import sys, time
import optuna
from optimizer.study import DriverStudy
from storage.store import Store
optuna.logging.set_verbosity(optuna.logging.WARNING)
begun = time.perf_counter()
store = Store.open({url!r})
{code}
print(time.perf_counter() - begun)
"""
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    return statistics.median(float(r.stdout) for r in runs)


def races(url: str, times: int) -> int:
    """How often exactly one of two processes that ask at once gets a study."""
    program = f"""
import sys
from storage.errors import StoreError
from storage.lease import Holder
from storage.store import Store
store = Store.open({url!r})
for line in sys.stdin:
    try:
        store.hold("long", Holder.me())
        print("got it", flush=True)
    except StoreError:
        print("refused", flush=True)
    if sys.stdin.readline() and "long" in store._holders:
        store.release("long")
    print("ready", flush=True)
"""
    command = [sys.executable, "-c", program]
    drivers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(2)
    ]

    def all_say(word: str) -> list[str]:
        for driver in drivers:
            assert driver.stdin
            driver.stdin.write(word + "\n")
        return [driver.stdout.readline().strip() for driver in drivers if driver.stdout]

    single = 0
    for _ in range(times):
        single += sorted(all_say("go")) == ["got it", "refused"]
        all_say("release")
    for driver in drivers:
        driver.communicate()
    return single


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--races", type=int, default=50)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = Table("what", "figure", "aim", title=f"{options.trials} trials of {options.items} items")
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/long.db"
        seconds, memory = fill(url, options.trials, options.items)
        size = os.path.getsize(f"{directory}/long.db") / options.trials
        table.add_row("database a trial", f"{size / 1024:.1f} KiB", "")
        table.add_row("driver's work a trial, first / last twentieth", f"{seconds[0]:.3f} / {seconds[-1]:.3f} s", "")
        table.add_row("driver's memory after a tenth / at the end", f"{memory[1]:.0f} / {memory[-1]:.0f} MiB", "flat")
        for what, code, aim in (("list", "store.studies()", 2), ("resume", "DriverStudy(store, 'long')", 5)):
            table.add_row(f"open and {what}", f"{timed(code, url):.2f} s", f"< {aim} s")
        table.add_row("races with exactly one winner", f"{races(url, options.races)} of {options.races}", "all")
    Console(width=100).print(table)


def _spec() -> Spec:
    suite = {"path": "made-up.jsonl", "scorer": "exact_match"}
    return from_document(
        {
            "study": "long",
            "base": "base",
            "checkpoints": [{"name": f"c{i}", "model": f"c{i}"} for i in range(8)],
            "objectives": [{"name": name, "suites": [suite]} for name in ("safety", "general")],
            "search": {"sampler": "random"},
        }
    )


if __name__ == "__main__":
    main()
