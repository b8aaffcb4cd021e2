"""Where a study's worker and GPU hours went."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.patience import UNREACHABLE, first_line
from storage.records import FURTHER
from storage.store import Store

_NOTE = "worker_seconds"
"""The study's note of what its workers spent beside trials that were measured."""

_NOTHING: Mapping[str, Mapping[str, float]] = {"worker": {}, "gpu": {}}
_BESIDE = {"opening": "opening models", "failed": "failed and lost trials", "idle": "idle"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of workers, and of their GPUs, that went into one stage."""

    stage: str
    worker: float
    gpu: float


def costs(store: Store, name: str) -> tuple[Cost, ...]:
    """Every stage once: what trials of the search were spent on, finalists on fresh items, and what was measured by
    nobody. The last is written down when a driver ends; what a killed one's workers spent so is not known.
    """
    worker, gpu = defaultdict[str, float](float), defaultdict[str, float](float)
    for split, seconds in store.each_seconds(name):
        share = seconds.get("gpu", 0.0) / seconds["total"] if seconds.get("total") else 0.0
        for stage, spent in _stages(split, seconds).items():
            worker[stage] += spent
            gpu[stage] += spent * share
    noted = store.notes(name).get(_NOTE, _NOTHING)
    for key, stage in _BESIDE.items():
        worker[stage] += noted["worker"].get(key, 0.0)
        gpu[stage] += noted["gpu"].get(key, 0.0)
    return tuple(Cost(stage=stage, worker=seconds, gpu=gpu[stage]) for stage, seconds in worker.items())


def add_spent(store: Store, name: str, seconds: Mapping[str, float], gpus: float) -> None:
    """Add what the workers of one run spent beside trials that were measured, each of them on so many GPUs."""
    try:
        before = store.notes(name).get(_NOTE, _NOTHING)
        worker = {stage: before["worker"].get(stage, 0.0) + spent for stage, spent in seconds.items()}
        gpu = {stage: before["gpu"].get(stage, 0.0) + spent * gpus for stage, spent in seconds.items()}
        store.note(name, _NOTE, {"worker": worker, "gpu": gpu})
    except UNREACHABLE as e:
        _log.info("what the workers spent could not be kept: %s", first_line(e))


def _stages(split: str, seconds: Mapping[str, float]) -> dict[str, float]:
    """One measurement's seconds; what is neither merging nor asking is marking, judges included."""
    if split not in ("search", FURTHER):
        return {"validation": seconds.get("total", 0.0)}
    merge, forward = seconds.get("merge", 0.0), seconds.get("forward", 0.0)
    return {"merging": merge, "asking": forward, "marking": max(seconds.get("total", 0.0) - merge - forward, 0.0)}
