"""One driver a study: a lease in the database that its holder renews, and that others may take when it has run out."""

import os
import platform
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LEASE_SECONDS = 60.0
"""How long a holder that is not heard of keeps a study, unless it is seen to be dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A driver process: where it runs, as what, and a secret that no other process has."""

    host: str
    pid: int
    started: float
    token: str = field(default_factory=lambda: secrets.token_hex(16), compare=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started:.2f}"

    @property
    def here(self) -> bool:
        """Whether its process number means something in this process's place: same machine, same container."""
        return self.host == _host()

    @property
    def dead(self) -> bool:
        """Whether it ran on this machine and is seen to have ended; one elsewhere is never known to be dead."""
        if not self.here:
            return False
        try:
            process = psutil.Process(self.pid)
            # One that has ended and that nobody has waited for yet is still in the system's table.
            return abs(process.create_time() - self.started) > 0.1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False

    @classmethod
    def me(cls) -> "Holder":
        """This process."""
        return cls(host=_host(), pid=os.getpid(), started=psutil.Process().create_time())

    @classmethod
    def parse(cls, text: str, token: str) -> "Holder":
        """Read what ``str`` wrote."""
        host, pid, started = text.rsplit(":", 2)
        return cls(host=host, pid=int(pid), started=float(started), token=token)


class Heartbeat:
    """A thread that renews a lease until it is stopped.

    Args:
        renew: called every ``seconds``; its errors are its own business.
    """

    def __init__(self, renew: Callable[[], None], seconds: float = LEASE_SECONDS / 4) -> None:
        self._renew = renew
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Renew no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._renew()


def _host() -> str:
    """This machine, and which of its containers: process numbers mean something only within one."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{os.readlink(space).strip('pid:[]')}" if space.is_symlink() else platform.node()
