"""A driver's life: it holds its study while it runs, tells what its workers do, and pauses when it is told to."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType

from optimizer.logs import STUDY
from optimizer.patience import UNREACHABLE, first_line
from storage.lease import Heartbeat, Holder
from storage.store import Store
from workers.pool import Busy

_TELL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Pause:
    """Whether somebody asked for a pause. The first Ctrl-C or SIGTERM asks, the second leaves at once."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Hand out nothing new; what runs is waited for."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        _log.warning("pausing: waiting for the running trials; once more leaves at once, and they are run again later")

    def __call__(self) -> bool:
        return self.asked


@contextmanager
def holding(store: Store, name: str) -> Iterator[None]:
    """Be the study's one driver. Raises StoreError where another one is; a sign of life is given all the while."""

    def renew() -> None:
        try:
            store.renew(name)
        except UNREACHABLE as e:
            _log.info("no sign of life could be given: %s", first_line(e))

    store.hold(name, Holder.me())
    heartbeat = Heartbeat(renew)
    named = STUDY.set(name)
    _log.info("driving the study from process %d", os.getpid())
    try:
        yield
    finally:
        trouble = _trouble(sys.exc_info()[1])
        _log.info("driving ends")
        STUDY.reset(named)
        heartbeat.stop()
        try:
            store.release(name, trouble)
        except UNREACHABLE as e:
            _log.info("the study could not be let go of, its hold ends by itself: %s", first_line(e))


def _trouble(error: BaseException | None) -> str:
    """What stopped a driver, in one line; a pause is no trouble."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return ""
    said = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    return said or type(error).__name__


@contextmanager
def telling(store: Store, name: str, workers: Callable[[], Sequence[Busy]]) -> Iterator[None]:
    """Whoever reads the database sees what each worker does, a second later; it is written only where it changes."""
    told: list[dict[str, str]] = []

    def tell() -> None:
        nonlocal told
        found = _with_times(workers(), told)
        if found == told:
            return
        try:
            store.set_workers(name, found)
        except UNREACHABLE as e:
            _log.info("what the workers do could not be written: %s", first_line(e))
        else:
            told = found

    clock = Heartbeat(tell, _TELL_SECONDS)
    try:
        yield
    finally:
        clock.stop()


def _with_times(workers: Sequence[Busy], told: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What each worker does, and since when; the time of what goes on stays as it was told."""
    known = {(w["worker"], w["doing"]): w["since"] for w in told}
    return [
        {"worker": w.worker, "doing": w.doing, "since": known.get((w.worker, w.doing)) or _ago(w.seconds)}
        for w in workers
    ]


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


@contextmanager
def pausing() -> Iterator[Pause]:
    """A pause that Ctrl-C and SIGTERM ask for. Outside the main thread nobody asks: signals arrive there alone."""
    pause = Pause()
    if threading.current_thread() is not threading.main_thread():
        yield pause
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        pause.ask()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pause
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
