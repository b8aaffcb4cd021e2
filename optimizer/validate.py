"""Finalists on fresh items: the validation split picks, the report split reports."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from optimizer import claims
from optimizer.claims import Claim, Gap, Neighbours
from optimizer.front import non_dominated
from optimizer.outcomes import Outcomes
from optimizer.results import Results, Row, direction, is_feasible, results
from optimizer.spec import BASE, Spec
from optimizer.watcher import Watcher
from search_spaces.recipe import digest_of
from storage.records import SPLITS, Assignment, Failed, Measured, Outcome, Score
from storage.store import Store
from workers.pool import Pool
from workers.suites import normalised

_USES = "report_picks"
"""The study's note of which picks its report items were asked for, one list a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A trial on the front or near it, or a baseline, with its scores by split and objective.

    ``parts`` are those scores' parts (a language, a rate of refusal); ``optimism`` is the search's figure minus the
    freshest one.
    """

    trial: int
    baseline: str | None
    splits: Mapping[str, Mapping[str, Score]]
    parts: Mapping[str, Mapping[str, Mapping[str, Score]]]
    optimism: Mapping[str, Gap]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Finalists, and which of them the validation split picks: merges, feasible there and dominated by no other.

    Attributes:
        claims: every pick against every source checkpoint on the report split, one family (Holm).
        neighbours: picks that follow each other along the front. watched: picks against the base and the best source
        on watched objectives. warnings: what must be said aloud: such losses, and report items used before.
    """

    spec: Spec
    picked: tuple[int, ...]
    finalists: tuple[Finalist, ...]
    claims: tuple[Claim, ...]
    neighbours: tuple[Neighbours, ...]
    watched: tuple[Claim, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The form that the command line prints; low and high are the 95 % interval."""
        return {
            "picked": list(self.picked),
            "finalists": [self._finalist(f) for f in self.finalists],
            "claims": [c.to_json() for c in self.claims],
            "neighbours": [n.to_json() for n in self.neighbours],
            "watched": [c.to_json() for c in self.watched],
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """What the table cannot say: claims, optimism gaps, neighbours."""
        family = len(self.claims)
        lines = []
        for finalist in [f for f in self.finalists if f.trial in self.picked]:
            lines.append(f"trial {finalist.trial}, picked:")
            lines += claims.claims_text(finalist.trial, self.claims, family)
            lines.append(claims.gaps_text(finalist.optimism, self.spec.objectives))
        return "\n".join([*filter(None, lines), *map(claims.neighbours_text, self.neighbours)])

    def _finalist(self, finalist: Finalist) -> dict[str, Any]:
        bounds = {o.name: o.bounds for o in self.spec.objectives}
        return {
            "trial": finalist.trial,
            "baseline": finalist.baseline,
            "splits": {
                split: {name: _with_interval(s, bounds[name]) for name, s in scores.items()}
                for split, scores in finalist.splits.items()
            },
            "optimism": {name: asdict(gap) for name, gap in finalist.optimism.items()},
        }


def finalists(found: Results) -> list[Row]:
    """The front, merges within one standard error of it, and every baseline, each once."""
    chosen = {r.trial: r for r in [*found.front, *_near(found), *found.baselines]}
    return list(chosen.values())


def validate(store: Store, name: str, pool: Pool, watcher: Watcher) -> Validation:
    """Measure finalists on the validation split, then picks and baselines on the report split; nothing twice."""
    found = results(store, name)
    rows = finalists(found)
    _measure(store, name, pool, rows, "validation", watcher)
    merges = {r.trial for r in found.merges}
    picked = _picked(found.spec, [r.trial for r in rows if r.trial in merges], store.measured(name, "validation"))
    reported = [r for r in rows if r.trial in picked or r.baseline is not None]
    outcomes = Outcomes(store, name, "report")
    used = _mark_used(store, name, outcomes, picked, [r.trial for r in reported])
    _measure(store, name, pool, reported, "report", watcher)
    measured = {split: store.measured(name, split) for split in SPLITS}
    return _validation(outcomes, measured, rows, picked, reported, used)


def known(store: Store, name: str, found: Results) -> Validation | None:
    """What earlier validations found: nothing is measured and no report item used; None where there was none.

    Raises: InputError where a suite is no longer the one that was measured.
    """
    measured = {split: store.measured(name, split) for split in SPLITS}
    rows = [r for r in found.rows if r.trial in measured["validation"]]
    if not rows:
        return None
    picked = picks(found, measured["validation"])
    reported = [r for r in rows if r.trial in measured["report"]]
    outcomes = Outcomes(store, name, "report")
    return _validation(outcomes, measured, rows, picked, reported, _earlier_uses(store, name, outcomes, picked))


def picks(found: Results, validated: Mapping[int, Measured]) -> tuple[int, ...]:
    """Merges that meet the constraints on the validation split and are dominated by no other that does."""
    return _picked(found.spec, [r.trial for r in found.merges if not r.stopped], validated)


def _near(found: Results) -> list[Row]:
    """Merges off the front that would be on it, were each of their posterior means one standard error better."""
    objectives = found.spec.optimised
    directions = [direction(o) for o in objectives]
    front = [[r.posterior[o.name][0] for o in objectives] for r in found.front]
    near = []
    for row in [r for r in found.merges if r.feasible and not r.on_front and not r.stopped]:
        better = [
            mean + (stderr if o.maximise else -stderr) for o in objectives for mean, stderr in [row.posterior[o.name]]
        ]
        if not front or len(front) in non_dominated(np.array([*front, better]), directions):
            near.append(row)
    return near


def _mark_used(
    store: Store, name: str, outcomes: Outcomes, picked: Sequence[int], reported: Sequence[int]
) -> list[str]:
    """Mark the report items as used before anybody sees a figure; returns who used them earlier, one sentence each."""
    said = _earlier_uses(store, name, outcomes, picked)
    if set(reported) <= set(store.measured(name, "report")):
        return said
    for digest in _report_digests(outcomes).values():
        store.add_report_use(name, digest)
    earlier: list[list[int]] = list(store.notes(name).get(_USES, []))
    if sorted(picked) not in earlier:
        store.note(name, _USES, [*earlier, sorted(picked)])
    return said


def _earlier_uses(store: Store, name: str, outcomes: Outcomes, picked: Sequence[int]) -> list[str]:
    """Who used the report items before, one sentence each.

    Picks that are asked about again are the same use; other picks on the same items are another one.
    """
    said = []
    for suite, digest in _report_digests(outcomes).items():
        uses = store.report_uses(digest)
        own = next((i for i, use in enumerate(uses) if use.rpartition(" at ")[0] == name), len(uses))
        said += [f"the report items of {suite} were used before, by {use}." for use in uses[:own]]
    earlier: list[list[int]] = store.notes(name).get(_USES, [])
    others = "; ".join(", ".join(map(str, trials)) or "none" for trials in earlier if trials != sorted(picked))
    if others:
        said.append(f"this study has used its report items before, for other picks ({others}): they are not fresh now.")
    return said


def _report_digests(outcomes: Outcomes) -> dict[str, str]:
    """Each suite's report items, by what they are and ask."""
    asked: dict[str, list[list[str]]] = {}
    for objective in outcomes.spec.objectives:
        for suite, item in outcomes.items(objective):
            asked.setdefault(suite, []).append([item.id, normalised(item)])
    return {suite: digest_of(sorted(items)) for suite, items in asked.items()}


def _measure(store: Store, name: str, pool: Pool, rows: Sequence[Row], split: str, watcher: Watcher) -> None:
    there = store.measured(name, split)
    waiting = [Assignment(number=r.trial, recipe=r.recipe, split=split) for r in rows if r.trial not in there]
    done, running, total = 0, 0, len(waiting)
    while waiting or running:
        while waiting and pool.room:
            pool.submit(waiting.pop(0))
            running += 1
        for outcome in pool.finished():
            done, running = done + 1, running - 1
            _keep(store, name, outcome)
            watcher.outcome(outcome)
            watcher.stage(f"{split} split", done, total)


def _keep(store: Store, name: str, outcome: Outcome) -> None:
    if isinstance(outcome, Failed):
        store.add_failed(name, outcome)
    else:
        store.add_measured(name, outcome)


def _picked(spec: Spec, merges: Sequence[int], measured: Mapping[int, Measured]) -> tuple[int, ...]:
    """Merges that meet the constraints on the validation split and are dominated by no other that does."""
    means = {n: {o.name: measured[n].scores[o.name].mean for o in spec.optimised} for n in merges if n in measured}
    able = [n for n, values in means.items() if is_feasible(spec, values)]
    if not able:
        return ()
    values = np.array([[means[n][o.name] for o in spec.optimised] for n in able])
    return tuple(able[i] for i in non_dominated(values, [direction(o) for o in spec.optimised]))


def _validation(
    outcomes: Outcomes,
    measured: Mapping[str, Mapping[int, Measured]],
    rows: Sequence[Row],
    picked: tuple[int, ...],
    reported: Sequence[Row],
    used: Sequence[str],
) -> Validation:
    there = {r.baseline: r.trial for r in reported if r.baseline and r.trial in measured["report"]}
    known = [n for n in picked if n in measured["report"]]
    sources = {c.name: there[c.name] for c in outcomes.spec.checkpoints if c.name in there}
    rivals = {BASE: there[BASE]} | sources if BASE in there else sources
    watched = claims.watched(outcomes, known, rivals, {n: m.scores for n, m in measured["validation"].items()})
    return Validation(
        spec=outcomes.spec,
        picked=picked,
        finalists=tuple(_finalist(outcomes.spec, r, measured, {s.trial for s in reported}) for r in rows),
        claims=claims.against(outcomes, known, sources),
        neighbours=claims.neighbours(outcomes, known, {n: m.scores for n, m in measured["report"].items()}),
        watched=watched,
        warnings=(*used, *(claims.loss_text(c) for c in watched if c.verdict == "worse")),
    )


def _finalist(spec: Spec, row: Row, measured: Mapping[str, Mapping[int, Measured]], shown: set[int]) -> Finalist:
    there = {
        s: measured[s][row.trial] for s in SPLITS if row.trial in measured[s] and (s != "report" or row.trial in shown)
    }
    splits = {split: m.scores for split, m in there.items()}
    return Finalist(
        trial=row.trial,
        baseline=row.baseline,
        splits=splits,
        parts={split: m.breakdown for split, m in there.items()},
        optimism=claims.gaps(spec.optimised, splits),
    )


def _with_interval(score: Score, bounds: tuple[float, float] | None) -> dict[str, float | int]:
    low, high = score.interval(bounds)
    return {"mean": score.mean, "stderr": score.stderr, "n": score.n, "low": low, "high": high}
