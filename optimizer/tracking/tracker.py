"""What every tracker is told, and what it must do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from storage.records import Measured


class TrackerError(Exception):
    """A tracker is out of reach, or refuses what it is sent; the study is whole, and can be sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """A study before any trial. ``key`` names its creation: one that is made again under the same name is another."""

    study: str
    key: str
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial that was measured, or an attempt at one that failed (``measured`` is None), in the order of events.

    Attributes:
        place: of a measured trial, how many were measured before it. at: when it was kept, UTC in ISO 8601.
            baseline: the one that it is, or empty. hypervolume: as measured, up to and with this trial.
            reason: why it failed.
    """

    number: int
    at: str
    measured: Measured | None = None
    place: int = 0
    baseline: str = ""
    hypervolume: float = 0.0
    reason: str = ""

    @property
    def milliseconds(self) -> int:
        """When it was kept, since 1970."""
        return int(datetime.fromisoformat(self.at).timestamp() * 1000)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean, standard error and n of every objective, hypervolume and seconds; empty where it failed."""
        if self.measured is None:
            return {}
        scores = self.measured.scores.items()
        parts = {f"{name}/{part}": float(s.to_json()[part]) for name, s in scores for part in ("mean", "stderr", "n")}
        return parts | {"hypervolume": self.hypervolume, "seconds": self.measured.seconds.get("total", 0.0)}

    @property
    def recipe(self) -> dict[str, str | float]:
        """Method, its parameters, and each checkpoint's weight averaged over its groups; empty where it failed."""
        if self.measured is None:
            return {}
        recipe = self.measured.recipe
        weights = {f"weight/{name}": weight for name, weight in recipe.mean_weights().items()}
        return {"method": recipe.method, "groups": recipe.groups, **recipe.parameters, **weights}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows of plain values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export that lies where it was written: its card and manifest, and the directory that has the weights."""

    name: str
    directory: Path
    files: Sequence[Path]


class Tracker(Protocol):
    """Each verb may be repeated after a TrackerError or a crash: what the tracker holds is not logged again."""

    title: str

    def begin(self, about: About) -> None:
        """Find the study's run or make it, and what it holds already."""

    def log(self, trial: Trial) -> None:
        """One more trial; nothing where it is held."""

    def finish(self, tables: Mapping[str, Table], exports: Sequence[Export]) -> None:
        """Replace the tables, log exports, and end the run; it may be begun again."""
