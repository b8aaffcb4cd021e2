"""Repeat noise: the uniform merge is measured twice, and what differs between the two is noise of the engine."""

import logging
from typing import Any

import optuna

from optimizer.spec import UNIFORM
from storage.records import Assignment, Failed, Measured
from storage.store import Store
from workers.pool import Pool

_log = logging.getLogger(__name__)
_NOTE = "repeat_noise"


def measure_repeat(store: Store, name: str, pool: Pool) -> None:
    """Measure the uniform merge once more and note what differs; nothing where that is known, or it was not measured.

    Optuna is not told. Costs one trial, once a study.
    """
    if _NOTE in store.notes(name):
        return
    study = store.optuna_study(name, optuna.samplers.RandomSampler(seed=0))
    labels = {t.number: t.user_attrs.get("baseline") for t in study.get_trials(deepcopy=False)}
    number = next((n for n in store.measured(name) if labels.get(n) == UNIFORM), None)
    if number is None:
        return
    first = store.with_marks(name, number)
    pool.submit(Assignment(number=number, recipe=first.recipe))
    while not (found := pool.finished()):
        pass  # a worker that came back is no outcome
    (again,) = found
    if isinstance(again, Failed):
        _log.warning("the uniform merge could not be measured again: %s", again.reason)
    else:
        store.note(name, _NOTE, differences(first, again))


def differences(first: Measured, again: Measured) -> dict[str, Any]:
    """How many items have another value or verdict in two measurements of one merge, and the largest difference."""
    items, differ, largest = 0, 0, 0.0
    for suite, marks in first.marks.items():
        other = again.marks[suite]
        for x, y, said, repeated in zip(marks.values, other.values, marks.verdicts, other.verdicts, strict=True):
            items += 1
            differ += (x, said) != (y, repeated)
            if x is not None and y is not None:
                largest = max(largest, abs(x - y))
    return {"trial": first.number, "items": items, "differ": differ, "largest": largest}


def repeat_text(notes: dict[str, Any]) -> str:
    """The note in one line; empty where there is none."""
    found = notes.get(_NOTE)
    if found is None:
        return ""
    largest = f", by at most {found['largest']:.3g}" if found["largest"] else ""
    return f"repeat noise: {found['differ']} of {found['items']} items differ when one merge is measured twice{largest}"
