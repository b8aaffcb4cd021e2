"""What a person reads in the terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from optimizer.compare import amount
from optimizer.preflight import Report
from optimizer.results import Results, Row
from optimizer.spec import ObjectiveSpec
from optimizer.validate import Validation
from optimizer.why import STEP, Change, Pair, Why
from search_spaces.recipe import Recipe
from storage.records import Measured, Score


def front_table(found: Results, rows: Sequence[Row], title: str) -> Table:
    """Trials with posterior and measured values of every objective, and their weights."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("", overflow="fold")
    for objective in found.spec.optimised:
        table.add_column(f"{objective.name}\nposterior", justify="right")
        table.add_column(f"{objective.name}\nmeasured", justify="right")
    limited = any(o.violations(0.0) for o in found.spec.optimised)
    for name in ("front", "feasible") if limited else ("front",):
        table.add_column(f"chance\n{name}", justify="right")
    table.add_column("weights", overflow="fold")
    for row in rows:
        cells = [cell for o in found.spec.optimised for cell in _cells(row, o.name)]
        cells += _chances(row)[: 2 if limited else 1]
        label = row.baseline or _stopped(row) or ("" if row.feasible else "constraint not met")
        table.add_row(str(row.trial), label, *cells, weights_text(row.recipe), style=None if row.feasible else "dim")
    return table


def validation_table(found: Validation, recipes: Mapping[int, Recipe]) -> Table:
    """Picks and baselines with 95 % intervals on the report split, the search's own figure beside the picks'."""
    table = Table(title="On fresh items (report split, 95 % intervals)", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("")
    for objective in found.spec.objectives:
        table.add_column(objective.name, justify="right")
    if any(f.trial in found.picked for f in found.finalists):
        table.add_column("search said", justify="right")
    table.add_column("weights", overflow="fold")
    for finalist in found.finalists:
        report = finalist.splits.get("report")
        if report is None:
            continue
        picked = finalist.trial in found.picked
        cells = [_interval(report[o.name], o) for o in found.spec.objectives]
        if found.picked:
            search = finalist.splits["search"]
            cells.append(" / ".join(f"{search[o.name].mean:.3f}" for o in found.spec.optimised) if picked else "")
        label = " ".join(w for w in (finalist.baseline, "picked" if picked else None) if w)
        table.add_row(
            str(finalist.trial),
            label,
            *cells,
            weights_text(recipes[finalist.trial]),
            style="bold" if picked else None,
        )
    return table


def summary_table(found: Results, chosen: int, reported: Mapping[int, Measured]) -> Table:
    """The chosen merge between the models that it must be compared with, on the report split."""
    table = Table(title="What the search found (fresh items, 95 % intervals)", box=box.ROUNDED, title_justify="left")
    table.add_column("model")
    for objective in found.spec.objectives:
        table.add_column(objective.name, justify="right")
    parts = [
        p for p in ("refusal", "over_refusal") if any(p in b for m in reported.values() for b in m.breakdown.values())
    ]
    for part in parts:
        table.add_column(part.replace("_", "-"), justify="right")
    rows = [found.row(chosen), *found.baselines]
    for row in [r for r in rows if r.trial in reported]:
        measured = reported[row.trial]
        cells = [_interval(measured.scores[o.name], o) for o in found.spec.objectives]
        cells += [
            f"{measured.breakdown[o][p].mean:.0%}"
            for p in parts
            for o in measured.breakdown
            if p in measured.breakdown[o]
        ]
        picked = row.trial == chosen
        label = f"the picked merge (trial {chosen})" if picked else _kind(row)
        table.add_row(label, *cells, style="bold" if picked else None)
    return table


def why_table(found: Why, objectives: Sequence[ObjectiveSpec]) -> Table:
    """A line a checkpoint: its weights on the front, the effect of more of it and of leaving it out, what follows."""
    title = "What each checkpoint does (predicted changes, 95 % intervals)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("checkpoint")
    table.add_column("weight on the front\nmean (least to largest)", justify="right")
    for objective in objectives if found.fallback is None else []:
        table.add_column(f"{objective.name}\nwith {STEP:g} more", justify="right")
        table.add_column(f"{objective.name}\nleft out", justify="right")
    table.add_column("", overflow="fold")
    for c in found.checkpoints:
        cells = [_change(kind.get(o.name), o) for o in objectives for kind in (c.effect, c.left_out) if c.effect]
        table.add_row(c.checkpoint, f"{c.mean:.2f} ({c.least:.2f} to {c.largest:.2f})", *cells, c.advice)
    return table


def pairs_text(found: Why, objectives: Sequence[ObjectiveSpec]) -> list[str]:
    """A sentence for every pair that interferes, and how many others there are."""
    costly = [p for p in found.pairs if p.interferes]
    lines = [_interference(p, o) for p in costly for o in objectives if p.blend[o.name].verdict == "worse"]
    others = len(found.pairs) - len(costly)
    if others:
        lines.append(f"No interference can be told of {'the other ' if costly else ''}{others} pairs (5 %, Holm).")
    return lines


def check_tables(report: Report) -> list[Table]:
    """Facts, then the task vectors."""
    facts = Table(box=None, show_header=False)
    for name, text in report.facts.items():
        facts.add_row(name, text)
    if report.vectors is None:
        return [facts]
    vectors = Table(title="Task vectors against the base", box=box.SIMPLE_HEAD, title_justify="left")
    vectors.add_column("checkpoint")
    vectors.add_column("relative norm", justify="right")
    for name in report.vectors.names:
        vectors.add_column(f"cos {name}", justify="right")
    for name, norm, cosine in zip(
        report.vectors.names, report.vectors.relative_norm, report.vectors.cosine, strict=True
    ):
        vectors.add_row(name, f"{norm:.4f}", *(f"{c:+.2f}" for c in cosine))
    return [facts, vectors]


def weights_text(recipe: Recipe) -> str:
    """The weights that are not zero, ``name .25``; with groups one number for each."""
    shown = [
        f"{name} {' '.join(f'{w:.2f}'.lstrip('0') for w in values)}"
        for name, values in recipe.weights.items()
        if any(round(w, 3) for w in values)
    ]
    text = " + ".join(shown) or "no checkpoint"
    return text if recipe.method == "linear" else f"{recipe.method}: {text}"


def _chances(row: Row) -> list[str]:
    """Of being on the front and of keeping the constraints."""
    known = row.chances
    return ["", ""] if known is None else [f"{known.on_front:.0%}", f"{known.feasible:.0%}"]


def _stopped(row: Row) -> str:
    """``stopped after 120 of 609 items``, from the reason that a race gave."""
    _, after, how_much = row.stopped.rpartition(" after ")
    return f"stopped{after}{how_much}" if row.stopped else ""


def _kind(row: Row) -> str:
    return "uniform average" if row.baseline == "uniform" else str(row.baseline)


def _cells(row: Row, objective: str) -> tuple[str, str]:
    mean, stderr = row.posterior[objective]
    score = row.objectives[objective]
    return f"{mean:.3f} ± {stderr:.3f}", f"{score.mean:.3f} ± {score.stderr:.3f}"


def _change(change: Change | None, objective: ObjectiveSpec) -> str:
    if change is None:
        return ""
    mean, low, high = (amount(v, objective, sign=True) for v in (change.mean, change.low, change.high))
    return f"{mean} [{low}, {high}]"


def _interference(pair: Pair, objective: ObjectiveSpec) -> str:
    change = pair.blend[objective.name]
    low, high = (amount(v, objective) for v in sorted((abs(change.low), abs(change.high))))
    return (
        f"{pair.a} and {pair.b} interfere on {objective.name}: sharing half of the merge they cost "
        f"{amount(abs(change.mean), objective)} against what either does alone (95 % interval {low} to {high})"
    )


def _interval(score: Score, objective: ObjectiveSpec) -> str:
    low, high = score.interval(objective.bounds)
    return f"{score.mean:.3f} [{low:.3f}, {high:.3f}]"
