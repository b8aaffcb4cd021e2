"""What a study knows from an earlier one in its database: measurements, or only which recipes are worth a try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.front import spread
from optimizer.results import Results, results
from optimizer.spec import BASE, ObjectiveSpec, Spec, from_document
from search_spaces.errors import InputError
from search_spaces.groups import Groups
from search_spaces.recipe import Recipe, digest_of
from search_spaces.space import Space
from storage.store import Store, StudyRecord
from workers.suites import Item

ITEMS = "items"
"""The study's note of its search items, a digest by suite."""

INHERITED = "inherited"
"""User attribute of a trial that was taken over: study, trial and recipe there."""

NOTE = "warm_start"
"""The study's note of what it starts from."""

_MOST_AGAIN = 10
_SEEDED = ("dare_linear", "dare_ties", "della")
_FILES = ("path", "validation", "report")
_ENGINE = ("torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """Trials of an earlier study: to be taken over as they were measured, or measured again because of ``reason``."""

    study: str
    trials: tuple[int, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the study's notes."""
        return {"study": self.study, "trials": list(self.trials), "reason": self.reason}

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> "WarmStart | None":
        """Read what was noted; None where a study started cold."""
        found = notes.get(NOTE)
        if found is None:
            return None
        return cls(study=found["study"], trials=tuple(found["trials"]), reason=found["reason"])

    def origin(self, trial: int, recipe: Recipe) -> dict[str, Any]:
        """What a trial that is taken over remembers, as plain values."""
        return {"study": self.study, "trial": trial, "recipe": recipe.to_json()}

    def to_text(self) -> str:
        """One line."""
        if self.reason:
            return f"warm start: {len(self.trials)} merges of {self.study} are measured again, for {self.reason}"
        return f"warm start: {len(self.trials)} measurements of {self.study} are taken over"


def items_of(spec: Spec) -> dict[str, str]:
    """Digest of the search items of every suite that the search asks, by the suite's key."""
    plans = [plan for plan in spec.setup(device="cpu").objectives if not plan.watched]
    loaded = [suite.load()["search"] for plan in plans for suite in plan.suites]
    return {suite.key: digest_of([_plain(item) for item in suite.items]) for suite in loaded}


def warm_start(
    store: Store, spec: Spec, record: StudyRecord, items: Mapping[str, str], *, planned: int
) -> WarmStart | None:
    """What a study starts from; None where its file names no other.

    Args:
        record: of the study that begins. items: what `items_of` says of it. planned: its trials.
    Raises: InputError where the other study has checkpoints that this one has not, or other models under its names;
        StoreError where there is no such study.
    """
    if spec.search.warm_start is None:
        return None
    other = store.study(spec.search.warm_start)
    _check_models(spec, record, other)
    reason = _difference(spec, from_document(dict(other.spec)), record, other, items, store.notes(other.name))
    if reason:
        chosen = _worth_again(results(store, other.name), spec.space, most=min(_MOST_AGAIN, planned // 3))
    else:
        # Trials of one recipe share one measurement, which is to be counted once.
        first: dict[str, int] = {}
        for number, measured in store.measured(other.name).items():
            if extended(measured.recipe, spec.space) is not None:
                first.setdefault(measured.recipe.digest, number)
        chosen = list(first.values())
    return WarmStart(study=other.name, trials=tuple(chosen), reason=reason)


def extended(recipe: Recipe, space: Space) -> Recipe | None:
    """The recipe with weight 0 for the checkpoints that it does not know; None where the space does not hold it."""
    nothing = (0.0,) * len(Groups.parse(recipe.groups).labels())
    if not set(recipe.weights) <= set(space.checkpoints):
        return None
    wider = replace(recipe, weights={name: recipe.weights.get(name, nothing) for name in space.checkpoints})
    return wider if space.contains(wider) else None


def _worth_again(found: Results, space: Space, *, most: int) -> list[int]:
    """At most so many merges of its front, spread evenly along it."""
    rows = [r for r in found.slider if extended(r.recipe, space) is not None]
    if len(rows) <= most:
        return [r.trial for r in rows]
    means, directions = found.means(rows)
    return [rows[i].trial for i in spread(means, directions, most)] if most else []


def _check_models(spec: Spec, record: StudyRecord, other: StudyRecord) -> None:
    names = [c.name for c in from_document(dict(other.spec)).checkpoints]
    strangers = [name for name in names if name not in {c.name for c in spec.checkpoints}]
    if strangers:
        raise InputError(
            f"search.warm_start must name a study of the same checkpoints or fewer, but {other.name} has "
            f"{strangers[0]}, which {spec.study} has not."
        )
    for name in (BASE, *names):
        ours, theirs = record.fingerprints[name], other.fingerprints[name]
        if ours != theirs:
            raise InputError(
                f"search.warm_start must name a study of the same models, but {name} has fingerprint {ours[:12]} here "
                f"and {theirs[:12]} in {other.name}."
            )


def _difference(
    spec: Spec,
    before: Spec,
    record: StudyRecord,
    other: StudyRecord,
    items: Mapping[str, str],
    notes: Mapping[str, Any],
) -> str:
    """Why measurements of the other study are none of this one, in words; empty where they are."""
    if [_asked(o) for o in spec.optimised] != [_asked(o) for o in before.optimised]:
        return "their objectives differ"
    if notes.get(ITEMS) != dict(items):
        return "their search items differ"
    if (spec.workers.engine, spec.workers.dtype) != (before.workers.engine, before.workers.dtype):
        return "their engines differ"
    changed = [p for p in _ENGINE if record.versions.get(p) != other.versions.get(p)]
    if changed:
        return f"{changed[0]} has another version"
    drawn = set(_SEEDED) & set(spec.search_space.methods)
    return "their seeds differ" if drawn and spec.search.seed != before.search.seed else ""


def _asked(objective: ObjectiveSpec) -> dict[str, Any]:
    """What makes an objective's number, but for its items: constraints and roles do not."""
    document = objective.model_dump(mode="json", include={"name", "suites", "across_languages"})
    suites = [{k: v for k, v in suite.items() if k not in _FILES} for suite in document["suites"]]
    return document | {"suites": suites}


def _plain(item: Item) -> list[Any]:
    prompt = item.prompt if isinstance(item.prompt, str) else [dict(turn) for turn in item.prompt]
    choices: Sequence[str] = item.choices
    return [item.id, prompt, item.lang, item.target, list(choices), item.gold, item.label, item.group, dict(item.meta)]
