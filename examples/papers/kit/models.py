"""Checkpoints by content: each run is trained once for all papers, and again only when what it depends on changes."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path

from optimizer.demo import language, runs, side_by_side
from optimizer.demo.runs import Run
from optimizer.demo.side_by_side import Job, train_all, train_one
from optimizer.spec import BASE
from search_spaces.errors import InputError

_SOURCES = [Path(module.__file__ or "") for module in (language, runs)]
_SOURCES.append(_SOURCES[0].with_name("training.py"))  # importing it would bring torch
RECORD = "training.json"
"""What a run left beside its checkpoint: shares of examples answered before and after."""


class Models:
    """The checkpoints of one training seed below ``directory``, which other seeds and papers may share."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._seed = seed

    def paths(self, runs: Sequence[Run]) -> dict[str, Path]:
        """Where each run's checkpoint lies, by the run's name, whether it is trained yet or not.

        Raises: InputError where a start does not stand before the runs that go on from it.
        """
        digests: dict[str, str] = {}
        for run in runs:
            if run.start is not None and run.start not in digests:
                raise InputError(f"a run's start must stand before it, but {run.name} goes on from {run.start}.")
            digests[run.name] = self._digest(run, digests[run.start] if run.start is not None else None)
        return {name: self._directory / f"{name}-{self._seed}-{digest[:12]}" for name, digest in digests.items()}

    def jobs(self, runs: Sequence[Run]) -> list[Job]:
        """What is not trained yet."""
        paths = self.paths(runs)
        return [
            Job(run=run, start=paths[run.start] if run.start else None, out=paths[run.name], seed=self._seed)
            for run in runs
            if not paths[run.name].is_dir()
        ]

    def _digest(self, run: Run, start: str | None) -> str:
        """Of everything that the weights depend on: sources, run, seed, the start's digest and the torch release."""
        digest = hashlib.sha256()
        for source in _SOURCES:
            digest.update(source.read_bytes())
        release = importlib.metadata.version("torch").split(".")[:2]
        digest.update(json.dumps([asdict(run), start, self._seed, release], sort_keys=True).encode())
        return digest.hexdigest()


def train(jobs: Sequence[Job], *, progress: Callable[[int, int], None], processes: int = side_by_side.MOST) -> None:
    """Train jobs, each once though several papers want it, in this process or in two of their own.

    Args:
        progress: gets (steps done, of how many).
    """
    each = list({job.out: job for job in jobs}.values())
    total, done = sum(job.run.steps for job in each), 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done, total)

    for job in each:
        job.out.parent.mkdir(parents=True, exist_ok=True)
    if processes > 1 and each:
        train_all(each, progress=lambda steps: progress(steps, total), processes=processes)
    else:
        for job in each:
            train_one(job, count)


def diverged(paths: Mapping[str, Path]) -> dict[str, str]:
    """Why each checkpoint whose training diverged is left out, by its name; empty where all went well.

    A checkpoint must not answer fresh examples of what it was trained on worse than its start did, by more than two
    standard errors; a base must answer some. A loss that was no number leaves a model that answers none.
    """
    found = {}
    for name, path in paths.items():
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        before, after, items = record["before"], record["after"], record["items"]
        error = sqrt((before * (1 - before) + after * (1 - after)) / items)
        if after < before - 2 * error or (name == BASE and not after):
            found[name] = (
                f"training must not cost what it trains, but {name} answers {after:.1%} of fresh examples of its own "
                f"data where its start answered {before:.1%} ({items} examples): it diverged and is left out."
            )
    return found
