"""The service under load, on this machine: 200 listeners and 50 requests a second for the front while a study runs.

    python benchmarks/service_load.py [--trials 500] [--listeners 200] [--rate 50] [--seconds 40] [--rounds 2]

The study's outcomes are made up, half a second each, as by workers that wait for a GPU; database, driver, service and
connections are real. Its trials a minute without load and with it are measured in turns. Loopback only.
"""

import argparse
import asyncio
import gc
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import optuna
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.reliability import MadeUp, _spec, fill
from optimizer import loop
from optimizer.driver import holding, pausing
from optimizer.study import DriverStudy
from storage.records import Assignment, Outcome
from storage.store import Store
from workers.pool import LocalPool

STUDY = _spec().study
TRIAL_SECONDS = 0.5


class Waits(MadeUp):
    """A worker that takes its time, and none of this machine's."""

    def run(self, assignment: Assignment) -> Outcome:
        """The same after half a second."""
        time.sleep(TRIAL_SECONDS)
        return super().run(assignment)


def drive(url: str) -> None:
    """The study's driver, until it is paused."""
    store = Store.open(url)
    with holding(store, STUDY), pausing() as pause:
        worker = Waits(40)
        loop.search(DriverStudy(store, STUDY), LocalPool(lambda: worker), lambda _: None, pause)  # type: ignore[arg-type,return-value]


@contextmanager
def process(said: Path, *command: str) -> Iterator[None]:
    """A process that is told to end afterwards; what it says on stderr goes to a file."""
    with said.open("wb") as stderr:
        running = subprocess.Popen(command, stderr=stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


def address_in(said: Path) -> str:
    """Where the service listens, as soon as it says so."""
    for _ in range(600):
        found = re.search(r" on (http://\S+) ", said.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise TimeoutError(f"the service must say where it listens, but it said {said.read_text()!r}.")


async def load(address: str, listeners: int, rate: int, seconds: float) -> tuple[list[float], list[float], int, int]:
    """Seconds of every request for the front, the same of every trial's rows, events heard, and failures."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30)
    front: list[float] = []
    rows: list[float] = []
    heard = failed = 0
    gc.freeze()  # a full collection of this process would count as the service's time

    connected = 0
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:

        async def listen() -> None:
            nonlocal heard, connected
            async with client.stream("GET", f"{address}/v1/studies/{STUDY}/events") as response:
                connected += 1
                async for line in response.aiter_lines():
                    heard += line.startswith("event: measured")

        async def ask(into: list[float], query: str) -> None:
            nonlocal failed
            begun = time.perf_counter()
            response = await client.get(f"{address}/v1/studies/{STUDY}/front{query}")
            into.append(time.perf_counter() - begun)
            failed += response.status_code != 200

        listening = [asyncio.create_task(listen()) for _ in range(listeners)]
        while connected < listeners:
            await asyncio.sleep(0.1)
        asked = []
        begun = time.perf_counter()
        for i in range(int(rate * seconds)):
            await asyncio.sleep(max(begun + i / rate - time.perf_counter(), 0))
            asked.append(asyncio.create_task(ask(rows, "?all=true") if i % 10 == 0 else ask(front, "")))
        await asyncio.gather(*asked)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    return front, rows, heard, failed


def measured(url: str) -> int:
    """Trials that are in the database."""
    store = Store.open(url)
    try:
        summary = store.summary(STUDY)
        return summary.measured if summary else 0
    finally:
        store.close()


def quantile(values: list[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.drive:
        drive(options.drive)
        return
    with tempfile.TemporaryDirectory() as directory:
        _report(options, directory)


def _report(options: argparse.Namespace, directory: str) -> None:
    url = f"sqlite:///{directory}/load.db"
    fill(url, options.trials, 40)
    store = Store.open(url)
    store.set_planned(STUDY, 10**6)
    store.close()
    mergefront = str(Path(sys.executable).parent / "mergefront")
    service = [mergefront, "serve", "--port", "0", "--root", directory, "--logs", f"{directory}/logs", "--storage", url]
    front: list[float] = []
    rows: list[float] = []
    without, under, heard, failed = [], [], 0, 0
    said = Path(directory) / "service.stderr"
    driver = (sys.executable, __file__, "--drive", url)
    with process(said, *service), process(Path(directory) / "driver.stderr", *driver):
        address = address_in(said)
        httpx2.get(f"{address}/v1/studies/{STUDY}/front", timeout=120)  # whoever asks first pays the imports
        for _ in range(options.rounds):
            before, begun = measured(url), time.perf_counter()
            time.sleep(options.seconds)
            without.append((measured(url) - before) / (time.perf_counter() - begun))
            before, begun = measured(url), time.perf_counter()
            f, r, h, bad = asyncio.run(load(address, options.listeners, options.rate, options.seconds))
            under.append((measured(url) - before) / (time.perf_counter() - begun))
            front, rows, heard, failed = [*front, *f], [*rows, *r], heard + h, failed + bad
    title = f"{options.trials} trials, {options.listeners} listeners, {options.rate} requests/s, {os.cpu_count()} cores"
    table = Table("what", "figure", "aim", title=title)
    for name, values in (("front", front), ("front?all=true", rows)):
        shown = " / ".join(f"{quantile(values, q) * 1000:.0f}" for q in (0.5, 0.95, 0.99))
        table.add_row(f"{name}, ms at 50 / 95 / 99 %, {len(values)} requests", shown, "99 %: < 200")
    ratio = statistics.fmean(under) / statistics.fmean(without)
    table.add_row("trials a second, without load", " / ".join(f"{v:.3f}" for v in without), "")
    table.add_row("trials a second, under load", " / ".join(f"{v:.3f}" for v in under), "")
    table.add_row("throughput under load over without", f"{ratio:.3f}", ">= 0.95")
    table.add_row("events heard, answers that failed", f"{heard} / {failed}", "failed: 0")
    table.add_row("load average at the end", f"{os.getloadavg()[0]:.1f}", "")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
