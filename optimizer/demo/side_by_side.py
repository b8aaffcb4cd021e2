"""Several training runs at a time, each in a process of its own."""

import multiprocessing
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

from optimizer.demo.runs import Run

MOST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run, the checkpoint that it goes on from (None for random weights) and where its own is written."""

    run: Run
    start: Path | None
    out: Path
    seed: int


def train_all(jobs: Sequence[Job], *, progress: Callable[[int], None], processes: int = MOST) -> None:
    """Train runs side by side, each as soon as its start is there; a checkpoint appears whole or not at all.

    Args:
        progress: gets the steps done so far, of all jobs together.
    Raises: what a run raised.
    """
    # A fresh interpreter each: a fork would share torch's thread pool with the parent, and hang.
    context = multiprocessing.get_context("spawn")
    steps: Queue[int] = context.Queue()
    stop = context.Event()
    most = min(processes, os.cpu_count() or 1)
    with ProcessPoolExecutor(most, mp_context=context, initializer=_begin, initargs=(steps, stop)) as pool:
        try:
            _watch(jobs, lambda job: pool.submit(_train_one, job), steps, progress)
        finally:
            # After a failure or an interrupt nobody waits for runs that are under way.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def train_one(job: Job, report: Callable[[int], None]) -> None:
    """Train one run in this process; `report` gets the steps done since its last call."""
    # Imported here so that a parent that trains nothing never pays for it.
    from optimizer.demo import training

    beside = job.out.with_name(f"{job.out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    training.train(job.run, start=job.start, out=beside, seed=job.seed, report=report)
    beside.rename(job.out)


_steps_done: "Queue[int]"
_stop: Event


class _Stopped(Exception):  # noqa: N818 (no error: the parent asked for it)
    """The parent no longer wants this run."""


def _begin(steps: "Queue[int]", stop: Event) -> None:
    """Set up a training process."""
    global _steps_done, _stop
    _steps_done, _stop = steps, stop
    # Ctrl-C reaches every process of the terminal; the parent answers it for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Leave when the parent is gone, however it went: a pool's process would wait for work for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_one(job: Job) -> None:
    train_one(job, _count)


def _count(steps: int) -> None:
    if _stop.is_set():
        raise _Stopped
    _steps_done.put(steps)


def _watch(
    jobs: Sequence[Job], submit: Callable[[Job], Future[None]], steps: "Queue[int]", progress: Callable[[int], None]
) -> None:
    """Submit and report until all runs have ended; raises what a run raised."""
    waiting, running, count = list(jobs), dict[Future[None], Job](), 0
    progress(count)
    while waiting or running or not steps.empty():
        missing = {job.out for job in (*waiting, *running.values())}
        for job in [job for job in waiting if job.start not in missing]:
            running[submit(job)] = job
            waiting.remove(job)
        try:
            count += steps.get(timeout=0.2)
            progress(count)
        except queue.Empty:
            for future in [future for future in running if future.done()]:
                running.pop(future)
                future.result()
