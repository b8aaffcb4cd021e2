"""What the report says in sentences."""

from collections import Counter
from collections.abc import Sequence

from optimizer.claims import Gap, claims_text
from optimizer.compare import OnObjective, amount
from optimizer.report.figures import Spread, Table, method_text, spread_of, spread_text, value_text, weights_text
from optimizer.report.findings import Findings
from optimizer.results import Row
from optimizer.spec import BASE, UNIFORM, ObjectiveSpec
from optimizer.standing import head_text
from optimizer.tables import pairs_text
from optimizer.validate import Finalist
from storage.records import SPLITS, Measured, Score
from workers.marks import GOLD_NLL

_WHERE = {
    "report": "on items that neither the search nor the choice has seen",
    "validation": "on items that the search has not seen, though it was chosen by them",
    "search": "on the very items that the search chose by, which flatters it",
}
_REASONS = 5


def pick_sentence(found: Findings) -> str:
    """What to ship and what it costs, with 95 % intervals; why nothing can be put forward where nothing can."""
    if found.choice is None:
        return f"No merge can be put forward: {found.no_choice}."
    fresh = found.freshest(found.choice.trial)
    scores = []
    for o in [o for o in found.spec.objectives if o.name in fresh.scores]:
        spread = spread_of(fresh.scores[o.name], o)
        mean, low, high = (value_text(v, o) for v in (spread.mean, spread.low, spread.high))
        scores.append(f"{o.name} {mean} (95 % interval {low} to {high})")
    rival = next((c for c in found.against if c.names[1] == UNIFORM), None)
    cost = (
        "" if rival is None else f"; against the uniform average it is {_listed([_gain(o) for o in rival.objectives])}"
    )
    return f"Ship trial {fresh.number}: {_WHERE[fresh.split]}, it scores {_listed(scores)}{cost}."


def cautions(found: Findings) -> list[str]:
    """What whoever ships the pick should know first."""
    said = list(found.validation.warnings) if found.validation else []
    if found.choice is None:
        return said
    fresh = found.freshest(found.choice.trial)
    if fresh.split == "search":
        command = f"mergefront validate {found.record.name}"
        said.append(f"These figures are the search's own: `{command}` measures the finalists on fresh items.")
    for o in [o for o in found.spec.optimised if o.name in fresh.scores]:
        said += _doubtful(o, spread_of(fresh.scores[o.name], o))
    return said


def _doubtful(objective: ObjectiveSpec, spread: Spread) -> list[str]:
    """Constraints that the interval does not clear."""
    ends = []
    if objective.at_least is not None and spread.low < objective.at_least:
        ends.append((spread.low, objective.at_least))
    if objective.at_most is not None and spread.high > objective.at_most:
        ends.append((spread.high, objective.at_most))
    return [
        f"The constraint on {objective.name} may not hold: its interval reaches {value_text(end, objective)}, and the "
        f"bound is {bound:g}."
        for end, bound in ends
    ]


def claims(found: Findings) -> list[str]:
    """The pick against every source checkpoint, a line an objective; empty before validation."""
    if found.validation is None or found.choice is None:
        return []
    lines = claims_text(found.choice.trial, found.validation.claims, len(found.validation.claims))
    return [line.strip() for line in lines]


def standings(found: Findings) -> tuple[str, list[str]]:
    """The front against what one would try anyway: a heading that names the split, and a line a rival."""
    return head_text(found.standings), [standing.to_text() for standing in found.standings]


def comparisons(found: Findings) -> dict[str, list[list[str]]]:
    """The pick against uniform and base: a heading that names the split, to its sentences, each with its details."""
    by_head: dict[str, list[list[str]]] = {}
    for comparison in found.against:
        head, *lines = comparison.to_text().split("\n")
        said = by_head.setdefault(head, [])
        for line in lines:
            if line.startswith(" "):
                said[-1].append(line.strip())
            else:
                said.append([line])
    return by_head


def advice(found: Findings) -> list[str]:
    """Which checkpoints matter and which to leave out, a line each, then the pairs that interfere."""
    known = [f"{i.checkpoint}: {i.advice}" for i in found.why.checkpoints if i.advice]
    return [*known, *pairs_text(found.why, found.spec.optimised)]


def rates(found: Findings) -> Table | None:
    """Refused, over-refused, invalid and whatever else scorers name, of the pick, base and uniform."""
    if found.choice is None:
        return None
    chosen = found.freshest(found.choice.trial)
    there = found.measured[chosen.split]
    models = {f"trial {chosen.number}": chosen}
    models |= {n: there[t] for n in (BASE, UNIFORM) if (t := found.baseline(n)) is not None and t in there}
    others = ("lang:", "suite:", GOLD_NLL)
    names = [(o, p) for o, parts in chosen.breakdown.items() for p in parts if not p.startswith(others)]
    if not names:
        return None
    head = ("", *(f"{o}: {p.replace('_', '-')}" for o, p in names))
    rows = tuple((label, *(_rate(m.breakdown.get(o, {}).get(p)) for o, p in names)) for label, m in models.items())
    return Table(head=head, rows=rows)


def optimism(found: Findings) -> Table | None:
    """By how much the search flattered the picks and the baselines; None before validation."""
    if found.validation is None:
        return None
    objectives = found.spec.optimised
    told = [f for f in found.validation.finalists if f.optimism and (f.baseline or f.trial in found.picked)]
    rows = tuple(_gaps(found, f, objectives) for f in told)
    return Table(head=("trial", "", "search minus", *(o.name for o in objectives)), rows=rows) if rows else None


def _gaps(found: Findings, finalist: Finalist, objectives: Sequence[ObjectiveSpec]) -> tuple[str, ...]:
    called = finalist.baseline or ("picked" if finalist.trial in found.picked else "")
    split = next(iter(finalist.optimism.values())).split
    return (str(finalist.trial), called, split, *(_gap(finalist.optimism.get(o.name), o) for o in objectives))


def _gap(gap: Gap | None, objective: ObjectiveSpec) -> str:
    if gap is None:
        return ""
    value, low, high = (amount(v, objective, sign=True) for v in (gap.value, gap.low, gap.high))
    return f"{value} ({low} to {high})"


def counts(found: Findings) -> list[tuple[str, str]]:
    """What is missing from the figures: unscored outcomes, failed attempts, stopped trials."""
    s = found.summary
    scores = [score for split in SPLITS for m in found.measured[split].values() for score in m.scores.values()]
    unscored, asked = sum(x.unscored for x in scores), sum(x.n + x.unscored for x in scores)
    stopped = sum(bool(m.stopped) for m in found.measured["search"].values())
    rows = [
        ("Trials", f"{s.measured} measured, {s.failed} failed, {s.running} running, {s.planned} planned"),
        ("Outcomes of items", f"{asked:,}, of which {unscored:,} could not be scored and count as nothing"),
    ]
    if stopped:
        rows.append(("Stopped early", f"{stopped} trials by a race; they are never on the front"))
    attempts = [reason for reasons in found.failures.values() for reason in reasons]
    for reason, times in Counter(attempts).most_common(_REASONS):
        rows.append((f"Failed {times} time{'s' * (times > 1)}", reason))
    if found.early_end:
        rows.append(("Search", found.early_end))
    rows.append(("Repeat noise", found.repeat_noise.partition(": ")[2] or "not measured"))
    return rows


def costs(found: Findings) -> Table | None:
    """Where the hours of workers went, and of their GPUs where there were any; None before anything was spent."""
    worker, gpu = sum(c.worker for c in found.costs), sum(c.gpu for c in found.costs)
    if not worker:
        return None
    trials = max(len(found.measured["search"]), 1)
    rows = [(c.stage, c.worker, c.gpu) for c in found.costs] + [("in all", worker, gpu)]
    head = ("stage", "worker hours", *(["GPU hours"] if gpu else []), "share", "seconds a trial")
    return Table(
        head=head,
        rows=tuple(
            (
                stage,
                f"{seconds / 3600:.3g}",
                *([f"{on_gpu / 3600:.3g}"] if gpu else []),
                f"{seconds / worker:.1%}",
                f"{seconds / trials:.3g}",
            )
            for stage, seconds, on_gpu in rows
        ),
    )


def trial_rows(found: Findings) -> dict[str, list[object]]:
    """What a page shows of each trial: what it is, method, weights, why it was stopped, and texts by objective.

    The texts are the objective's name, the posterior, and the score on each split; empty what was not measured.
    """
    return {str(r.trial): _trial(found, r) for r in found.results.rows}


def _trial(found: Findings, row: Row) -> list[object]:
    by_split = [found.measured[split].get(row.trial) for split in SPLITS]
    texts = [[o.name, _believed(row, o), *(_measured(m, o) for m in by_split)] for o in found.spec.objectives]
    words = [row.baseline, "on the front" if row.on_front else None, None if row.feasible else "constraint not met"]
    words.append("picked by the validation split" if row.trial in found.picked else None)
    words.append("the pick" if found.choice and found.choice.trial == row.trial else None)
    return [", ".join(filter(None, words)), method_text(row.recipe), weights_text(row.recipe), row.stopped, texts]


def _believed(row: Row, objective: ObjectiveSpec) -> str:
    if objective.name not in row.posterior:
        return ""
    mean, stderr = (value_text(v, objective) for v in row.posterior[objective.name])
    return f"{mean} ± {stderr}"


def _measured(measured: Measured | None, objective: ObjectiveSpec) -> str:
    if measured is None or objective.name not in measured.scores:
        return ""
    return spread_text(spread_of(measured.scores[objective.name], objective), objective)


def _rate(score: Score | None) -> str:
    return "" if score is None else f"{score.mean:.3f} (n = {score.n})"


def _gain(found: OnObjective) -> str:
    """``better by 41.2 points on safety (38.4 to 43.9)``."""
    d, o = found.whole, found.objective
    if found.verdict == "open":
        low, high = (amount(v, o, sign=True) for v in (d.low, d.high))
        return f"not to be told apart on {o.name} ({low} to {high})"
    low, high = (amount(v, o) for v in sorted((abs(d.low), abs(d.high))))
    unit = " points" if o.bounds == (0.0, 1.0) else ""
    return f"{found.verdict} by {amount(abs(d.mean), o)}{unit} on {o.name} ({low} to {high})"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
