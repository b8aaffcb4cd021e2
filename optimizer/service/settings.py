"""What the service is started with."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from search_spaces.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one service runs.

    Attributes:
        storage: database URL. host, port: where it listens; port 0 takes a free one. ray: address of a cluster.
        roots: directories, links resolved, below which studies may read and exports may be written; relative paths
        start from the first. at_once: how many studies run at the same time, the others wait.
        logs: where each study's log goes. allow_code: whether studies may name Python code (``python:`` scorers,
        ``trust_remote_code``). urls: below these studies may fetch checkpoints and ask judges.
    """

    storage: str
    host: str = "127.0.0.1"
    port: int = 8642
    ray: str | None = None
    roots: tuple[Path, ...] = field(default_factory=lambda: (Path.cwd().resolve(),))
    at_once: int = 1
    logs: Path = field(default_factory=lambda: Path("mergefront-logs").absolute())
    allow_code: bool = False
    urls: tuple[str, ...] = ()

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def log_of(self, study: str) -> Path:
        """A study's log file; its name is one that study files may use, so it is a file name."""
        return self.logs / f"{study}.log"


def resolved_roots(directories: list[str]) -> tuple[Path, ...]:
    """The roots as the service uses them; the working directory where none is named. Raises InputError."""
    roots = tuple(Path(d).expanduser().resolve() for d in directories or ["."])
    missing = [r for r in roots if not r.is_dir()]
    if missing:
        raise InputError(f"--root must be a directory, but {missing[0]} is none.")
    return roots
