"""A study as trackers are told it, read from the database and nowhere else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimizer.board import Board
from optimizer.export import MANIFEST
from optimizer.outcomes import baselines_of
from optimizer.patience import patiently
from optimizer.results import results, to_rows
from optimizer.spec import Spec, from_document
from optimizer.tracking.tracker import About, Export, Table, Trial
from search_spaces.recipe import digest_of
from storage.events import Event, Position
from storage.records import FURTHER, Measured
from storage.store import Exported, Store, StudyRecord

_SPLITS = ("search", FURTHER)
_FRESH = ("validation", "report")
_BATCH = 500


def about(store: Store, name: str) -> About:
    """The study's settings, without paths, URLs or prompts: those stay here."""
    record = store.study(name)
    key = digest_of({"study": name, "created": record.created, "spec": record.spec_digest})[:32]
    return About(study=name, key=key, params=_params(record, from_document(dict(record.spec))))


def _params(record: StudyRecord, spec: Spec) -> dict[str, str]:
    return {
        "spec_digest": record.spec_digest,
        "space_digest": record.space_digest,
        "checkpoints": ", ".join(c.name for c in spec.checkpoints),
        "objectives": ", ".join(o.name for o in spec.objectives),
        "methods": ", ".join(spec.search_space.methods),
        "groups": spec.search_space.groups,
        "sampler": spec.search.sampler,
        "seed": str(spec.search.seed),
        "engine": spec.workers.engine,
        "dtype": spec.workers.dtype,
        **{f"version/{package}": version for package, version in record.versions.items()},
        **{f"fingerprint/{name}": fingerprint for name, fingerprint in record.fingerprints.items()},
    }


class Story:
    """The trials of a study so far, in the order of its events; `read` takes in what is new."""

    def __init__(self, store: Store, name: str) -> None:
        self.trials: list[Trial] = []
        self._store = store
        self._name = name
        self._position = Position()
        spec = from_document(dict(store.study(name).spec))
        self._board = Board(spec, planned=0, measured=(), failed=0, workers=tuple)

    def read(self) -> None:
        """Everything that has happened since the last time."""
        while events := patiently(lambda: self._store.events(self._name, self._position, _BATCH)):
            self.trials += patiently(lambda: list(self._told(events)))
            self._position = events[-1].position

    def _told(self, events: list[Event]) -> Iterator[Trial]:
        labels = baselines_of(self._store, self._name)
        known = {split: self._store.measured(self._name, split) for split in _SPLITS}
        for event in events:
            number, split = event.data["trial"], event.data["split"]
            if split in _SPLITS and event.name == "failed":
                yield Trial(number=number, at=event.at, reason=event.data["reason"])
            elif split in _SPLITS:
                yield self._measured(known[split][number], event.at, labels.get(number, ""))

    def _measured(self, measured: Measured, at: str, baseline: str) -> Trial:
        place = self._board.measured
        self._board.add(measured)
        return Trial(
            number=measured.number,
            at=at,
            measured=measured,
            place=place,
            baseline=baseline,
            hypervolume=self._board.hypervolume(),
        )


def tables(store: Store, name: str) -> dict[str, Table]:
    """The front and all trials with their posterior, what fresh items said, and failed attempts; empty ones left out.

    Unlike a measurement these change with every trial, so trackers replace them.
    """
    found = results(store, name)
    failed = [[number, reason] for number, reasons in store.failures(name).items() for reason in reasons]
    parts = ["trial", "split", "objective", "mean", "stderr", "n", "low", "high"]
    rows: dict[str, list[list[Any]]] = {
        "front": to_rows(found.front),
        "trials": to_rows(found.rows),
        "fresh": [parts, *_fresh(store, name, found.spec)],
        "failures": [["trial", "reason"], *failed],
    }
    return {title: Table(columns=head, rows=body) for title, (head, *body) in rows.items() if body}


def _fresh(store: Store, name: str, spec: Spec) -> Iterator[list[Any]]:
    bounds = {o.name: o.bounds for o in spec.objectives}
    for split in _FRESH:
        for number, measured in store.measured(name, split).items():
            for objective, score in measured.scores.items():
                interval = score.interval(bounds[objective])
                yield [number, split, objective, score.mean, score.stderr, score.n, *interval]


def exports(store: Store, name: str) -> list[Export]:
    """The exports that are still what was written. Their weights stay where they are."""
    return [
        Export(
            name=f"{name}-trial-{one.trial}",
            directory=Path(one.path),
            files=(Path(one.path) / "README.md", Path(one.path) / MANIFEST),
        )
        for one in store.exports(name)
        if _is_there(one)
    ]


def _is_there(export: Exported) -> bool:
    manifest = Path(export.path) / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_bytes()).get("merge_digest") == export.digest
