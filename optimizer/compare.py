"""Two trials on the same items, in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.outcomes import Outcomes, baselines_of
from optimizer.spec import ObjectiveSpec
from optimizer.statistics import Difference
from search_spaces.errors import InputError
from storage.records import SPLITS
from storage.store import Store

_FRESHEST = tuple(reversed(SPLITS))
_HEADS = {
    "report": "On the report split, which neither the search nor the choice has seen:",
    "validation": "On the validation split, which the search has not seen (the picks were chosen on it):",
    "search": "On the search split, which the search chose by: it flatters whatever the search liked.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnObjective:
    """A minus B on one objective, whole and by language."""

    objective: ObjectiveSpec
    whole: Difference
    languages: Mapping[str, Difference]

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``open``, of A against B, as far as the 95 % interval goes."""
        return verdict(self.whole, self.objective.maximise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Trial A against trial B on the freshest split that both were measured on."""

    study: str
    a: int
    b: int
    names: tuple[str, str]
    split: str
    objectives: tuple[OnObjective, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; differences are A minus B in the objective's own unit and direction."""
        return {
            "study": self.study,
            "a": self.a,
            "b": self.b,
            "split": self.split,
            "objectives": {
                o.objective.name: difference_json(o.whole)
                | {"verdict": o.verdict, "languages": {lang: difference_json(d) for lang, d in o.languages.items()}}
                for o in self.objectives
            },
        }

    def to_text(self) -> str:
        """A paragraph an objective."""
        lines = [_HEADS[self.split]]
        for found in self.objectives:
            lines.append(_sentence(*self.names, found))
            if len(found.languages) > 1:
                lines.append("  by language: " + "; ".join(_language(found, lang) for lang in found.languages))
        return "\n".join(lines)


def compare(store: Store, name: str, a: str, b: str) -> Comparison:
    """A against B, each a trial's number or a baseline's name.

    Raises: InputError where one is unknown, both are the same, or no split has both.
    """
    labels = baselines_of(store, name)
    first, second = _number(a, labels), _number(b, labels)
    if first == second:
        raise InputError(f"a comparison needs two trials, but {a} and {b} are both trial {first}.")
    measured = {split: store.measured(name, split) for split in SPLITS}
    split = next((s for s in _FRESHEST if first in measured[s] and second in measured[s]), None)
    if split is None:
        lost = first if first not in measured["search"] else second
        known = ", ".join(str(n) for n in measured["search"]) or "none"
        raise InputError(f"a comparison needs measured trials ({known}), but trial {lost} is not.")
    return between(Outcomes(store, name, split), name, first, second)


def between(outcomes: Outcomes, name: str, a: int, b: int) -> Comparison:
    """Trial a against trial b of the study ``name``, on the split of ``outcomes``, which has both."""
    labels = outcomes.labels
    scores = [outcomes.scores(n) for n in (a, b)]
    both = [o for o in outcomes.spec.objectives if all(o.name in s for s in scores)]
    return Comparison(
        study=name,
        a=a,
        b=b,
        names=(_called(a, labels), _called(b, labels)),
        split=outcomes.split,
        objectives=tuple(on_objective(outcomes, o, a, b) for o in both),
    )


def on_objective(outcomes: Outcomes, objective: ObjectiveSpec, a: int, b: int) -> OnObjective:
    """One objective of a comparison."""
    languages = outcomes.languages(objective)
    return OnObjective(
        objective=objective,
        whole=outcomes.difference(objective, a, b),
        languages={lang: outcomes.difference(objective, a, b, lang) for lang in languages},
    )


def verdict(difference: Difference, maximise: bool) -> str:
    """``better``, ``worse`` or ``open``."""
    if not difference.told_apart:
        return "open"
    return "better" if (difference.mean > 0) == maximise else "worse"


def difference_json(difference: Difference) -> dict[str, Any]:
    """Every number of a difference, and how many items would settle it."""
    return asdict(difference) | {"items_needed": difference.items_needed}


def amount(value: float, objective: ObjectiveSpec, *, sign: bool = False) -> str:
    """A difference as it is read: points of a share, else the objective's own unit."""
    text = f"{round(100 * value, 1) + 0.0:+g}" if objective.bounds == (0.0, 1.0) else f"{value:+.3g}"
    return text if sign else text.lstrip("+")


def roughly(count: int) -> str:
    """Two figures of a count: it is an estimate."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _number(text: str, labels: Mapping[int, str]) -> int:
    if text.isdecimal():
        return int(text)
    for number, label in labels.items():
        if label == text:
            return number
    known = ", ".join(labels.values()) or "none"
    raise InputError(f"a trial must be a number or a baseline ({known}), but got {text!r}.")


def _called(number: int, labels: Mapping[int, str]) -> str:
    return labels.get(number, f"trial {number}")


def _sentence(a: str, b: str, found: OnObjective) -> str:
    return _open(a, b, found) if found.verdict == "open" else _decided(a, b, found)


def _decided(a: str, b: str, found: OnObjective) -> str:
    whole, objective = found.whole, found.objective
    verb = "beats" if found.verdict == "better" else "loses to"
    low, high = (amount(v, objective) for v in sorted((abs(whole.low), abs(whole.high))))
    return (
        f"{a} {verb} {b} on {objective.name} by {amount(abs(whole.mean), objective)}{_unit(whole, objective)} "
        f"(95 % interval {low} to {high}, {whole.n} paired items)"
    )


def _open(a: str, b: str, found: OnObjective) -> str:
    whole, objective = found.whole, found.objective
    mean, low, high = (amount(v, objective, sign=True) for v in (whole.mean, whole.low, whole.high))
    needed = whole.items_needed
    settle = "" if needed is None else f"; about {roughly(needed)} such items would settle a difference of this size"
    return (
        f"{a} and {b} cannot be told apart on {objective.name}: {mean}{_unit(whole, objective)} "
        f"(95 % interval {low} to {high}, {whole.n} paired items){settle}"
    )


def _language(found: OnObjective, lang: str) -> str:
    difference, objective = found.languages[lang], found.objective
    mean, low, high = (amount(v, objective, sign=True) for v in (difference.mean, difference.low, difference.high))
    return f"{lang} {mean} ({low} to {high}) {verdict(difference, objective.maximise)}"


def _unit(difference: Difference, objective: ObjectiveSpec) -> str:
    if objective.bounds != (0.0, 1.0):
        return ""
    return " point" if amount(abs(difference.mean), objective) == "1" else " points"
