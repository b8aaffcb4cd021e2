"""Whether the search beat what one would have tried anyway, said whichever way it went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from optimizer import claims
from optimizer.claims import Claim
from optimizer.compare import amount
from optimizer.handmade import Merit
from optimizer.outcomes import Outcomes
from optimizer.results import Results, Row
from optimizer.spec import BEST_SLIDER, GREEDY_SOUP, UNIFORM, Spec
from search_spaces.errors import InputError
from storage.records import SPLITS, Measured
from storage.store import Store

_TITLES = {UNIFORM: "the uniform average", GREEDY_SOUP: "the greedy soup", BEST_SLIDER: "the best slider"}
_HEADS = {
    "report": "on report items, which nothing was chosen by",
    "validation": "on validation items, which the picks were chosen by",
    "search": "on the search's own items, which flatter what it liked",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The front against one rival.

    Attributes:
        rival: its title. against: its trial, trial: the merge of the front that is held against it, both None where
            ``reason`` says why nothing can be compared. split: whose items. claims: one an objective, the merge minus
            the rival. broken: the constraints that the rival surely breaks and the merge does not.
    """

    rival: str
    against: int | None = None
    trial: int | None = None
    split: str = ""
    claims: tuple[Claim, ...] = ()
    broken: tuple[str, ...] = ()
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``better``: surely better in something and surely worse in nothing, or the rival breaks a constraint;
        ``trade``: surely better and surely worse; ``worse``; ``open``; ``unknown``.
        """
        if self.reason:
            return "unknown"
        found = {claim.verdict for claim in self.claims}
        if self.broken or ("better" in found and "worse" not in found):
            return "better"
        if "worse" in found:
            return "trade" if "better" in found else "worse"
        return "open"

    def to_json(self) -> dict[str, Any]:
        """Plain values; differences are the merge minus the rival."""
        return {
            "rival": self.rival,
            "against": self.against,
            "trial": self.trial,
            "split": self.split,
            "verdict": self.verdict,
            "broken": list(self.broken),
            "objectives": {c.objective.name: c.to_json() for c in self.claims},
            "reason": self.reason,
        }

    def to_text(self) -> str:
        """One sentence."""
        if self.reason:
            return f"not compared with {self.rival}: {self.reason}"
        figures = ", ".join(map(_figures, self.claims))
        words = {
            "better": f"beats {self.rival}",
            "trade": f"no better than {self.rival} outright, another trade-off",
            "worse": f"no better than {self.rival}: worse",
            "open": f"no better than {self.rival} as far as can be told",
        }
        broken = f", which breaks {' and '.join(self.broken)}" if self.broken else ""
        return f"{words[self.verdict]}{broken} (trial {self.trial}: {figures})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meeting:
    """A rival, and the merge of the front that is held against it on the freshest items that both answered."""

    title: str
    rival: Row
    merge: Row
    split: str


def standings(store: Store, name: str, found: Results) -> tuple[Standing, ...]:
    """The front against the uniform average, the best single checkpoint, the greedy soup and the best slider."""
    measured = {split: store.measured(name, split) for split in SPLITS}
    rivals = _rivals(found)
    meetings = [m for title, rival in rivals.items() if rival and (m := _meeting(found, title, rival, measured))]
    known: dict[str, Standing] = {}
    for split in dict.fromkeys(m.split for m in meetings):
        mine = [m for m in meetings if m.split == split]
        known |= {s.rival: s for s in _compared(store, name, found.spec, mine, measured[split])}
    return tuple(known.get(title) or _unknown(found, title, rival) for title, rival in rivals.items())


def standings_text(found: Sequence[Standing]) -> list[str]:
    """The head line, then a sentence a rival."""
    return [f"{head_text(found)}:", *(f"  {s.to_text()}" for s in found)]


def head_text(found: Sequence[Standing]) -> str:
    """What stands over the sentences: on whose items, where anything could be compared."""
    where = "; ".join(_HEADS[split] for split in dict.fromkeys(s.split for s in found if s.split))
    how = f" ({where}; 95 % intervals, 5 % by Holm)" if where else ""
    return f"The front against what one would try anyway{how}"


def _rivals(found: Results) -> dict[str, Row | None]:
    labelled = {r.baseline: r for r in found.baselines}
    merit = Merit(found.spec, map(_means, found.rows)) if found.rows else None
    singles = [labelled[c.name] for c in found.spec.checkpoints if c.name in labelled]
    best = max(singles, key=lambda r: merit(_means(r)), default=None) if merit is not None else None
    title = "the best single checkpoint" if best is None else f"the best single checkpoint ({best.baseline})"
    others = {_TITLES[label]: labelled.get(label) for label in (GREEDY_SOUP, BEST_SLIDER)}
    return {_TITLES[UNIFORM]: labelled.get(UNIFORM), title: best} | others


def _meeting(found: Results, title: str, rival: Row, measured: Mapping[str, Mapping[int, Measured]]) -> _Meeting | None:
    """Chosen by what the search knows: the merge whose smallest lead over the rival, in standard errors, is largest."""
    others = [r for r in found.slider if r.trial != rival.trial]
    for split in reversed(SPLITS):
        able = [r for r in others if r.trial in measured[split]]
        if able and rival.trial in measured[split]:
            merge = max(able, key=lambda r: min(_lead(found.spec, r, rival)))
            return _Meeting(title=title, rival=rival, merge=merge, split=split)
    return None


def _lead(spec: Spec, merge: Row, rival: Row) -> list[float]:
    leads = []
    for o in spec.optimised:
        (ours, error), (theirs, other) = merge.posterior[o.name], rival.posterior[o.name]
        leads.append((ours - theirs) * (1.0 if o.maximise else -1.0) / (sqrt(error**2 + other**2) or 1e-12))
    return leads


def _compared(
    store: Store, name: str, spec: Spec, meetings: Sequence[_Meeting], measured: Mapping[int, Measured]
) -> list[Standing]:
    """All meetings on one split: one family of claims."""
    pairs = [(m.merge.trial, o, m.title, m.rival.trial) for m in meetings for o in spec.optimised]
    try:
        found = claims.family(Outcomes(store, name, meetings[0].split), pairs)
    except InputError as e:
        return [Standing(rival=m.title, against=m.rival.trial, reason=str(e)) for m in meetings]
    return [
        Standing(
            rival=m.title,
            against=m.rival.trial,
            trial=m.merge.trial,
            split=m.split,
            claims=tuple(c for c in found if c.rival == m.title),
            broken=_broken(spec, measured[m.rival.trial]) if m.merge.feasible else (),
        )
        for m in meetings
    ]


def _broken(spec: Spec, rival: Measured) -> tuple[str, ...]:
    """Constraints that not even the better end of the rival's 95 % interval meets."""
    broken: list[str] = []
    for objective in [o for o in spec.optimised if o.name in rival.scores]:
        low, high = rival.scores[objective.name].interval(objective.bounds)
        ends = [objective.violations(low), objective.violations(high)]
        broken += [key for key in ends[0] if min(ends[0][key], ends[1][key]) > 0.0]
    return tuple(broken)


def _unknown(found: Results, title: str, rival: Row | None) -> Standing:
    if rival is None:
        return Standing(rival=title, reason="it was not measured")
    alone = rival.on_front and len(found.slider) == 1
    reason = "it is the front" if alone else "the front has no other merge"
    return Standing(rival=title, against=rival.trial, reason=reason)


def _means(row: Row) -> dict[str, float]:
    return {name: mean for name, (mean, _) in row.posterior.items()}


def _figures(claim: Claim) -> str:
    d, o = claim.difference, claim.objective
    mean, low, high = (amount(v, o, sign=True) for v in (d.mean, d.low, d.high))
    return f"{o.name} {mean} [{low}, {high}]"
