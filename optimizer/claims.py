"""What fresh items say of the picks: against every source checkpoint, each other, and what the search promised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from optimizer.compare import amount, difference_json, roughly, verdict
from optimizer.outcomes import Outcomes
from optimizer.spec import BASE, ObjectiveSpec
from optimizer.statistics import Difference, gap, holm
from storage.records import Score

LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A pick against one model on one objective. ``p`` is adjusted for the whole family of claims (Holm)."""

    trial: int
    objective: ObjectiveSpec
    rival: str
    difference: Difference
    p: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``open``, of the pick."""
        return verdict(self.difference, self.objective.maximise) if self.p <= LEVEL else "open"

    def to_json(self) -> dict[str, Any]:
        """The difference (pick minus rival) with ``p_holm`` and the verdict."""
        names = {"trial": self.trial, "objective": self.objective.name, "against": self.rival}
        return names | difference_json(self.difference) | {"p_holm": self.p, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Two picks that follow each other on the front, and what it would take to tell them apart on one objective."""

    trials: tuple[int, int]
    objective: ObjectiveSpec
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """The difference, first minus second, and how many items would settle it."""
        return {"trials": list(self.trials), "objective": self.objective.name} | difference_json(self.difference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """By how much the search flattered a finalist on an objective, with the 95 % interval and the split it was held to.

    More is worse whatever the objective's direction.
    """

    value: float
    low: float
    high: float
    split: str


def against(outcomes: Outcomes, picks: Sequence[int], rivals: Mapping[str, int]) -> tuple[Claim, ...]:
    """Every pick against every rival (name to trial) on every objective: one family of claims."""
    return family(
        outcomes,
        [(p, o, n, r) for p in picks for o in outcomes.spec.objectives for n, r in rivals.items() if p != r],
    )


def watched(
    outcomes: Outcomes, picks: Sequence[int], rivals: Mapping[str, int], chosen_on: Mapping[int, Mapping[str, Score]]
) -> tuple[Claim, ...]:
    """Every pick on every watched objective against the base and the best source.

    The best is the one that the scores ``chosen_on`` (of another split) show, for the luckiest on the very items that
    are then compared would be hard to keep up with.
    """
    pairs = []
    for objective in [o for o in outcomes.spec.objectives if o.role == "watch"]:
        best = _best(objective, rivals, chosen_on)
        pairs += [(p, objective, name, rivals[name]) for p in picks for name in best if rivals[name] != p]
    return family(outcomes, pairs)


def neighbours(
    outcomes: Outcomes, picks: Sequence[int], scores: Mapping[int, Mapping[str, Score]]
) -> tuple[Neighbours, ...]:
    """Each pick and the next along the front, on every objective that the search optimises."""
    first = outcomes.spec.optimised[0].name
    ordered = sorted(picks, key=lambda n: scores[n][first].mean)
    return tuple(
        Neighbours(trials=(a, b), objective=o, difference=outcomes.difference(o, a, b))
        for a, b in pairwise(ordered)
        for o in outcomes.spec.optimised
    )


def gaps(objectives: Sequence[ObjectiveSpec], splits: Mapping[str, Mapping[str, Score]]) -> dict[str, Gap]:
    """The search's figure minus the freshest one, by objective; empty where nothing fresh is there."""
    split = next((s for s in ("report", "validation") if s in splits), None)
    if split is None:
        return {}
    found = {}
    for objective in objectives:
        before, fresh = splits["search"].get(objective.name), splits[split].get(objective.name)
        if before is not None and fresh is not None:
            value, low, high = gap(before, fresh, maximise=objective.maximise)
            found[objective.name] = Gap(value=value, low=low, high=high, split=split)
    return found


def claims_text(pick: int, claims: Sequence[Claim], family: int) -> list[str]:
    """A line an objective: which checkpoints the pick beats, which it loses to, what is open."""
    mine = [c for c in claims if c.trial == pick]
    lines = []
    for objective in dict.fromkeys(c.objective.name for c in mine):
        by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
        for claim in mine:
            if claim.objective.name == objective:
                by_verdict[claim.verdict].append(claim.rival)
        words = {"better": "beats", "worse": "loses to", "open": "cannot be told from"}
        told = "; ".join(f"{words[v]} {', '.join(names)}" for v, names in by_verdict.items() if names)
        if not (by_verdict["worse"] or by_verdict["open"]):
            told = "beats every source checkpoint"
        lines.append(f"  {objective}: {told} (5 %, Holm over {family} claims)")
    return lines


def gaps_text(found: Mapping[str, Gap], objectives: Sequence[ObjectiveSpec]) -> str:
    """What the search promised beyond what fresh items show."""
    parts = []
    for o in [o for o in objectives if o.name in found]:
        value, low, high = (
            amount(v, o, sign=True) for v in (found[o.name].value, found[o.name].low, found[o.name].high)
        )
        parts.append(f"{o.name} {value} ({low} to {high})")
    split = next(iter(found.values())).split if found else ""
    return f"  optimism gap, search minus {split}: {', '.join(parts)}" if parts else ""


def neighbours_text(found: Neighbours) -> str:
    """Whether two neighbours can be told apart, and else with how many items."""
    a, b = found.trials
    d, objective = found.difference, found.objective
    figures = ", ".join(amount(v, objective, sign=True) for v in (d.mean, d.low, d.high))
    if d.told_apart:
        return f"trials {a} and {b} differ on {objective.name} ({figures} with its 95 % interval)"
    needed = d.items_needed
    return f"trials {a} and {b} cannot be told apart on {objective.name} with {d.n} items" + (
        f"; a difference as measured would take about {roughly(needed)}" if needed is not None else ""
    )


def loss_text(claim: Claim) -> str:
    """A significant loss on a watched objective, said aloud."""
    d, o = claim.difference, claim.objective
    low, high = (amount(v, o) for v in sorted((abs(d.low), abs(d.high))))
    return (
        f"trial {claim.trial} has lost on the watched objective {o.name}: {amount(abs(d.mean), o)} worse than "
        f"{claim.rival} (95 % interval {low} to {high}, {d.n} paired items)."
    )


def family(outcomes: Outcomes, pairs: Sequence[tuple[int, ObjectiveSpec, str, int]]) -> tuple[Claim, ...]:
    """Trial against trial, (trial, objective, rival's name, rival's trial) each: one family of claims (Holm)."""
    found = [outcomes.difference(objective, pick, rival) for pick, objective, _, rival in pairs]
    return tuple(
        Claim(trial=pick, objective=objective, rival=name, difference=difference, p=p)
        for (pick, objective, name, _), difference, p in zip(pairs, found, holm([d.p for d in found]), strict=True)
    )


def _best(
    objective: ObjectiveSpec, rivals: Mapping[str, int], chosen_on: Mapping[int, Mapping[str, Score]]
) -> list[str]:
    sign = 1.0 if objective.maximise else -1.0
    sources = [n for n, trial in rivals.items() if n != BASE and objective.name in chosen_on.get(trial, {})]
    best = max(sources, key=lambda n: sign * chosen_on[rivals[n]][objective.name].mean, default=None)
    return [n for n in (BASE if BASE in rivals else None, best) if n is not None]
