"""The figures of a study as data: what each shows, drawn by nobody yet.

A figure has a name (its file's, and its place in a page), a title, a caption that says how to read it, and a table of
the same figures for whoever cannot see it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import combinations
from math import copysign, inf, isfinite

from optimizer.compare import amount
from optimizer.front import non_dominated
from optimizer.report.findings import Findings
from optimizer.report.growth import Growth, growth
from optimizer.results import Row, direction
from optimizer.spec import BASE, UNIFORM, ObjectiveSpec
from optimizer.why import STEP, Change, Influence
from search_spaces.recipe import Recipe
from storage.records import Z95, Measured, Score

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The figures behind a picture, as text."""

    head: Cells
    rows: tuple[Cells, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What runs along an axis. ``objective`` is None for the trials' numbers."""

    label: str
    objective: ObjectiveSpec | None = None


class Role(Enum):
    """What a trial is in the front's figure."""

    FRONT = "on the front"
    DOMINATED = "dominated"
    INFEASIBLE = "constraint not met"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A value with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A trial in the plane. ``fresh`` is where items that the search has not seen put it, None where it has none.

    ``weights`` are in words.
    """

    trial: int
    label: str
    role: Role
    on_front: bool
    picked: bool
    chosen: bool
    weights: str
    posterior: tuple[Spread, Spread]
    measured: tuple[float, float]
    fresh: tuple[Spread, Spread] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Trials by two axes, x and y.

    Attributes:
        whole: whether the plane shows all that is optimised. near: whether it keeps to the front and the picks.
        detail: whether it shows beside each mark what was measured, and what fresh items say.
    """

    name: str
    title: str
    caption: str
    axes: tuple[Axis, Axis]
    points: tuple[Point, ...]
    whole: bool
    near: bool = False
    detail: bool = True

    @property
    def told(self) -> list[Point]:
        """The points that the frame must hold: front and picks, and baselines unless it is near; else all of them."""
        told = [p for p in self.points if p.on_front or p.picked or p.chosen or (p.label and not self.near)]
        return told or list(self.points)

    @property
    def frame(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Least and most on x and on y, of what the frame must hold with its intervals."""
        x, y = ([s for p in self.told for s in _spreads(p, place, self.detail)] for place in (0, 1))
        return (min(s.low for s in x), max(s.high for s in x)), (min(s.low for s in y), max(s.high for s in y))

    @property
    def table(self) -> Table:
        """Every trial that the figure names or puts on the front."""
        x, y = self.axes
        head = ("trial", "", f"{x.label}, posterior", f"{y.label}, posterior", "measured", "fresh items", "weights")
        shown = [p for p in self.points if p.on_front or p.label or p.picked]
        return Table(head=head, rows=tuple(_point_cells(p, self.axes) for p in shown))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A bar a name; ``spans`` are the least and the most over layer groups, equal where there is one group."""

    name: str
    title: str
    caption: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]
    columns: tuple[str, ...]
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell's text, and its shade: 1 as strong as can be, 0 none, below zero the other colour.

    ``detail`` is what the table says in place of the text, where that is more.
    """

    text: str
    shade: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A matrix of cells. ``strong`` names the rows that stand for a whole objective."""

    name: str
    title: str
    caption: str
    rows: tuple[str, ...]
    strong: frozenset[int]
    columns: tuple[str, ...]
    across: str
    cells: tuple[tuple[Cell, ...], ...]

    @property
    def table(self) -> Table:
        """The cells' texts."""
        body = tuple(
            (row, *(c.detail or c.text for c in cells)) for row, cells in zip(self.rows, self.cells, strict=True)
        )
        return Table(head=("", *self.columns), rows=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A quantity over trials; ``mark`` is the trial from which on it hardly grew, None where it still did."""

    name: str
    title: str
    caption: str
    y: str
    trials: tuple[int, ...]
    values: tuple[float, ...]
    mark: int | None
    table: Table = field(default=Table(head=(), rows=()))


_LITTLE = 0.4
"""Share of a plane below which the front is shown from near as well."""

_SEEN = 0.15
"""Least shade of a change that can be told: it must be seen to have a colour."""

_NEAR_CAPTION = (
    "A small ring is what was measured; the filled mark is what the model of the whole study believes. An arrow leads "
    "from the ring to what fresh items show of a validated pick."
)

Figure = Scatter | Bars | Heat | Curve


def figures(found: Findings) -> list[Figure]:
    """Every figure of a study, in the report's order; those that nothing is known for are left out."""
    grown = growth(found.results)
    return [
        *fronts(found),
        *([recipe_bars(found, found.choice.trial)] if found.choice else []),
        *parts(found),
        *weights_along(found),
        *influences(found),
        *([hypervolume_curve(grown)] if grown.trials else []),
    ]


def fronts(found: Findings) -> list[Scatter]:
    """The front: one plane for two objectives, one a pair for three, the first against each other for more.

    One objective is shown over the trials' numbers. Empty where nothing is measured.
    """
    if not found.results.rows:
        return []
    optimised = found.spec.optimised
    if len(optimised) == 1:
        return [_scatter(found, None, optimised[0])]
    pairs = list(combinations(optimised, 2)) if len(optimised) <= 3 else [(optimised[0], o) for o in optimised[1:]]
    return [plane for y, x in pairs for plane in with_close_up(_scatter(found, x, y))]


def with_close_up(whole: Scatter) -> list[Scatter]:
    """The plane, and the front from near where baselines far away leave it little room."""
    near = replace(
        whole,
        name=f"{whole.name}-near",
        title=f"{whole.title}, from near",
        caption=_NEAR_CAPTION,
        near=True,
    )
    if sum(p.on_front for p in whole.points) < 2 or _area(near) > _LITTLE * _area(whole):
        return [whole]
    return [replace(whole, detail=False), near]


def _area(figure: Scatter) -> float:
    (left, right), (low, high) = figure.frame
    return (right - left) * (high - low)


def recipe_bars(found: Findings, trial: int) -> Bars:
    """The weights of one trial's merge, largest first; those of zero are left out."""
    recipe = found.results.row(trial).recipe
    shown = _largest_first(recipe)
    groups = len(next(iter(recipe.weights.values())))
    columns = ("weight",) if groups == 1 else tuple(f"group {g + 1}" for g in range(groups))
    grouped = "" if groups == 1 else f" One weight for each of {groups} groups of layers: the bar is their mean."
    rows = tuple((name, *(f"{w:.3f}" for w in recipe.weights[name])) for name in shown)
    return Bars(
        name="recipe",
        title=f"Recipe of trial {trial} ({method_text(recipe)})",
        caption=f"How much of each checkpoint is in the merge.{grouped}",
        names=tuple(shown),
        values=tuple(recipe.mean_weights()[name] for name in shown),
        spans=tuple((min(recipe.weights[name]), max(recipe.weights[name])) for name in shown),
        columns=columns,
        table=Table(head=("checkpoint", *columns), rows=rows),
    )


def parts(found: Findings) -> list[Heat]:
    """The chosen merge by objective, language and suite against base and uniform; empty where nothing is chosen."""
    if found.choice is None:
        return []
    chosen = found.freshest(found.choice.trial)
    there = found.measured[chosen.split]
    rivals = {n: there[t] for n in (BASE, UNIFORM) if (t := found.baseline(n)) in there and t is not None}
    rows = [row for o in found.spec.objectives if o.name in chosen.scores for row in _parts_of(o, chosen, rivals)]
    return [
        Heat(
            name="parts",
            title=f"Trial {chosen.number} by language and suite ({chosen.split} split)",
            caption="Its score, and how far it lies above (+, blue) or below (−, orange) the other model; better is "
            "always +. Shares differ in points.",
            rows=tuple(label for label, _, _ in rows),
            strong=frozenset(i for i, (_, whole, _) in enumerate(rows) if whole),
            columns=(f"trial {chosen.number}", *(f"against {n}" for n in rivals)),
            across="",
            cells=tuple(cells for _, _, cells in rows),
        )
    ]


def weights_along(found: Findings) -> list[Heat]:
    """How the recipe changes along the front, from the best of the last objective to the best of the first."""
    merges = {r.trial for r in found.results.merges}
    along = [r for r in reversed(found.results.front) if r.trial in merges]
    if not along:
        return []
    first, last = found.spec.optimised[0], found.spec.optimised[-1]
    ends = f"from the best {last.name} (left) to the best {first.name} (right)"
    names = tuple(c.name for c in found.spec.checkpoints)
    return [
        Heat(
            name="weights",
            title="Weights along the front",
            caption=f"One column a merge on the front, {ends if first is not last else 'the best on the right'}; one "
            "row a checkpoint, the stronger the colour the more of it.",
            rows=names,
            strong=frozenset(),
            columns=tuple(str(r.trial) for r in along),
            across="trial",
            cells=_weight_cells(names, [r.recipe.mean_weights() for r in along]),
        )
    ]


def _weight_cells(names: Sequence[str], weights: Sequence[Mapping[str, float]]) -> tuple[tuple[Cell, ...], ...]:
    """A row a checkpoint, a column a merge."""
    most = max((w for row in weights for w in row.values()), default=0.0) or 1.0
    return tuple(
        tuple(Cell(text=_weight(row.get(name, 0.0)), shade=row.get(name, 0.0) / most) for row in weights)
        for name in names
    )


def influences(found: Findings) -> list[Heat]:
    """What each checkpoint does to the merges on the front; empty where there is no model to say it."""
    checkpoints = found.why.checkpoints
    if not checkpoints or found.why.fallback is not None:
        return []
    columns = [f"{o.name} {kind}" for o in found.spec.optimised for kind in (f"{STEP:g} more", "left out")]
    return [
        Heat(
            name="checkpoints",
            title="What each checkpoint does",
            caption=f"Predicted changes of merges on the front: with {STEP:g} more of a checkpoint, and without it. "
            "Better is + and blue, worse − and orange; what has no colour cannot be told (5 %, Holm). Intervals are in "
            "the table.",
            rows=tuple(i.checkpoint for i in checkpoints),
            strong=frozenset(),
            columns=tuple(columns),
            across="",
            cells=_change_cells(checkpoints, found.spec.optimised),
        )
    ]


def _change_cells(
    checkpoints: Sequence[Influence], objectives: Sequence[ObjectiveSpec]
) -> tuple[tuple[Cell, ...], ...]:
    """A row a checkpoint; of each objective what more of it does, and what leaving it out does."""
    most = {o.name: max((abs(c.mean) for i in checkpoints for c in _told(i, o.name)), default=1.0) for o in objectives}
    return tuple(
        tuple(_change(kind.get(o.name), o, most[o.name]) for o in objectives for kind in (i.effect, i.left_out))
        for i in checkpoints
    )


def _told(influence: Influence, objective: str) -> list[Change]:
    changes = (influence.effect.get(objective), influence.left_out.get(objective))
    return [c for c in changes if c is not None and c.verdict != "open"]


def _change(change: Change | None, objective: ObjectiveSpec, most: float) -> Cell:
    if change is None:
        return Cell(text="", shade=0.0)
    sign = 1.0 if objective.maximise else -1.0
    mean, *ends = (_signed(sign * v, objective) for v in (change.mean, change.low, change.high))
    told = (
        0.0 if change.verdict == "open" else copysign(max(abs(change.mean) / (most or 1.0), _SEEN), sign * change.mean)
    )
    low, high = ends[:: 1 if objective.maximise else -1]
    return Cell(text=mean, shade=told, detail=f"{mean} ({low} to {high})")


def hypervolume_curve(grown: Growth) -> Curve:
    """The hypervolume over trials and where it flattened."""
    rows = tuple((str(t), f"{v:.4g}") for t, v in zip(grown.trials, grown.values, strict=True))
    changed = tuple(r for i, r in enumerate(rows) if i == 0 or r[1] != rows[i - 1][1])
    return Curve(
        name="hypervolume",
        title="Hypervolume over trials",
        caption=f"What the feasible merges so far cover beyond the worst baseline in every objective. {grown.text}",
        y="hypervolume",
        trials=grown.trials,
        values=grown.values,
        mark=grown.flat_at,
        table=Table(head=("trial", "hypervolume (where it changed)"), rows=changed),
    )


def value_text(value: float, objective: ObjectiveSpec | None) -> str:
    """A value as it is read: three places of a share, four figures of anything else, a trial's number as it is."""
    if objective is None:
        return f"{value:.0f}"
    return f"{value:.3f}" if objective.bounds == (0.0, 1.0) else f"{value:.4g}"


def spread_text(spread: Spread, objective: ObjectiveSpec | None) -> str:
    """``0.924 [0.896, 0.945]``; a trial's number alone."""
    if objective is None:
        return f"{spread.mean:.0f}"
    mean, low, high = (value_text(v, objective) for v in (spread.mean, spread.low, spread.high))
    return f"{mean} [{low}, {high}]"


def spread_of(score: Score, objective: ObjectiveSpec) -> Spread:
    """A score with its interval within the objective's bounds."""
    low, high = score.interval(objective.bounds)
    return Spread(mean=score.mean, low=low, high=high)


def method_text(recipe: Recipe) -> str:
    """``dare_ties, density 0.53``: the method and its parameters."""
    return ", ".join([recipe.method, *(f"{name} {value:.3g}" for name, value in recipe.parameters.items())])


def weights_text(recipe: Recipe) -> str:
    """``safety 0.51 + arithmetic 0.30``: mean weights, largest first, those of zero left out."""
    mean = recipe.mean_weights()
    return " + ".join(f"{name} {mean[name]:.2f}" for name in _largest_first(recipe)) or "no checkpoint"


def _scatter(found: Findings, x: ObjectiveSpec | None, y: ObjectiveSpec) -> Scatter:
    axes = (_axis(x), _axis(y))
    many = len(found.spec.optimised)
    plane = f"{y.name} against {x.name}" if x else f"{y.name} over trials"
    return Scatter(
        name="front" if many <= 2 else f"front-{y.name}-{x.name if x else 'trials'}",
        title=f"The front: {plane}" if x else f"The search: {plane}",
        caption=_front_caption(found, many),
        axes=axes,
        points=tuple(_point(found, row, axes) for row in found.results.rows),
        whole=many <= 2,
    )


def _front_caption(found: Findings, many: int) -> str:
    said = ["Marks are what the model of the whole study believes (posterior mean); bars are 95 % intervals"]
    if found.picked:
        said.append("stars are validated picks, where items that the search has not seen put them")
    if many > 2:
        said.append(f"this is a view of {many} objectives, so marks on the front may look dominated")
    if found.results.fallback:
        said.append(f"the front is by {found.results.fallback}")
    return f"{'; '.join(said)}."


def _spreads(point: Point, place: int, detail: bool) -> list[Spread]:
    fresh = [point.fresh[place]] if point.fresh else []
    measured = point.measured[place]
    return [point.posterior[place], *fresh, *([Spread(mean=measured, low=measured, high=measured)] if detail else [])]


def _axis(objective: ObjectiveSpec | None) -> Axis:
    if objective is None:
        return Axis(label="trial")
    return Axis(label=objective.name, objective=objective)


def _point(found: Findings, row: Row, axes: tuple[Axis, Axis]) -> Point:
    x, y = axes
    chosen = found.choice is not None and found.choice.trial == row.trial
    return Point(
        trial=row.trial,
        label=row.baseline or "",
        role=_role(row),
        on_front=row.on_front,
        picked=row.trial in found.picked,
        chosen=chosen,
        weights=weights_text(row.recipe),
        posterior=(_posterior(row, x), _posterior(row, y)),
        measured=(_raw(row, x), _raw(row, y)),
        fresh=_fresh(found, row, axes) if row.trial in found.picked or chosen else None,
    )


def _role(row: Row) -> Role:
    if row.baseline is not None:
        return Role.BASELINE
    if row.on_front:
        return Role.FRONT
    return Role.DOMINATED if row.feasible else Role.INFEASIBLE


def _posterior(row: Row, axis: Axis) -> Spread:
    if axis.objective is None:
        return Spread(mean=row.trial, low=row.trial, high=row.trial)
    mean, stderr = row.posterior[axis.objective.name]
    least, most = axis.objective.bounds or (-inf, inf)
    reach = Z95 * stderr if isfinite(stderr) else 0.0
    return Spread(mean=mean, low=max(mean - reach, least), high=min(mean + reach, most))


def _raw(row: Row, axis: Axis) -> float:
    return float(row.trial) if axis.objective is None else row.objectives[axis.objective.name].mean


def _fresh(found: Findings, row: Row, axes: tuple[Axis, Axis]) -> tuple[Spread, Spread] | None:
    """Where the freshest split but the search's own puts a trial."""
    fresh = found.freshest(row.trial)
    if fresh.split == "search" or any(a.objective and a.objective.name not in fresh.scores for a in axes):
        return None
    return _fresh_spread(row, axes[0], fresh), _fresh_spread(row, axes[1], fresh)


def _fresh_spread(row: Row, axis: Axis, fresh: Measured) -> Spread:
    objective = axis.objective
    return _posterior(row, axis) if objective is None else spread_of(fresh.scores[objective.name], objective)


def _point_cells(point: Point, axes: tuple[Axis, Axis]) -> Cells:
    measured = " / ".join(value_text(v, a.objective) for v, a in zip(point.measured, axes, strict=True))
    fresh = " / ".join(spread_text(s, a.objective) for s, a in zip(point.fresh or (), axes, strict=False))
    posterior = (spread_text(s, a.objective) for s, a in zip(point.posterior, axes, strict=True))
    return (str(point.trial), _called(point), *posterior, measured, fresh, point.weights)


def _called(point: Point) -> str:
    words = [point.label or point.role.value]
    if point.label and point.on_front:
        words.append(Role.FRONT.value)
    if point.chosen:
        words.append("the pick")
    elif point.picked:
        words.append("picked")
    return ", ".join(words)


def _largest_first(recipe: Recipe) -> list[str]:
    mean = recipe.mean_weights()
    return sorted((n for n, ws in recipe.weights.items() if any(round(w, 3) for w in ws)), key=lambda n: -mean[n])


def _parts_of(
    objective: ObjectiveSpec, chosen: Measured, rivals: Mapping[str, Measured]
) -> list[tuple[str, bool, tuple[Cell, ...]]]:
    """Label, whether it is the whole objective, and cells: of the objective, then of each language and suite."""
    models = [chosen, *rivals.values()]
    rows = [(objective.name, True, [m.scores.get(objective.name) for m in models])]
    for part in [p for p in chosen.breakdown.get(objective.name, {}) if p.startswith(("lang:", "suite:"))]:
        scores = [m.breakdown.get(objective.name, {}).get(part) for m in models]
        rows.append((f"{objective.name}, {part_name(part)}", False, scores))
    most = max((abs(d) for _, _, scores in rows for d in _gains(objective, scores)), default=0.0)
    return [(label, whole, _shaded(objective, scores, max(most, 0.05))) for label, whole, scores in rows]


def part_name(part: str) -> str:
    """``lang:en`` and ``suite:safety/0:harm.jsonl`` as they are read."""
    kind, _, name = part.partition(":")
    return name if kind == "lang" else name.partition(":")[2] or name


def _gains(objective: ObjectiveSpec, scores: Sequence[Score | None]) -> list[float]:
    """How much better the first is than each other, in the objective's unit; what is missing counts nothing."""
    first, sign = scores[0], 1.0 if objective.maximise else -1.0
    return [sign * (first.mean - s.mean) for s in scores[1:] if first is not None and s is not None]


def _shaded(objective: ObjectiveSpec, scores: Sequence[Score | None], most: float) -> tuple[Cell, ...]:
    first = scores[0]
    cells = [Cell(text="" if first is None else value_text(first.mean, objective), shade=0.0)]
    for score in scores[1:]:
        (gain,) = _gains(objective, [first, score]) or [0.0]
        known = first is not None and score is not None
        cells.append(Cell(text=_signed(gain, objective) if known else "", shade=gain / most))
    return tuple(cells)


def _signed(gain: float, objective: ObjectiveSpec) -> str:
    """A difference with a sign that can be read; zero has none."""
    text = amount(gain, objective, sign=True).replace("-", "−")
    return "0" if text in ("+0", "−0") else text


def _weight(weight: float) -> str:
    """``.51``; nothing for a weight of zero."""
    return f"{weight:.2f}".replace("0.", ".", 1) if round(weight, 2) else ""


def roomy(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis with some room beside what it must hold."""
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def front_of(points: Sequence[Point], axes: tuple[Axis, Axis]) -> list[Point]:
    """The points of the front that no other dominates in this plane, by x: the corners of its staircase."""
    known = [(p, [s.mean for s in p.posterior]) for p in points if p.on_front]
    objectives = [a.objective for a in axes]
    if not known or any(o is None for o in objectives):
        return []
    import numpy as np

    directions = [direction(o) for o in objectives if o is not None]
    kept = non_dominated(np.array([v for _, v in known]), directions)
    return sorted((known[i][0] for i in kept), key=lambda p: p.posterior[0].mean)
