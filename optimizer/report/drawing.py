"""The figures drawn by matplotlib: one drawing for the page, for files and for notebooks.

Colours are the palette of Okabe and Ito (2008) or near it, told apart by colour-blind readers; marks differ in shape as
well, and shades in lightness, for grey print.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from optimizer.report.figures import Axis, Bars, Curve, Figure, Heat, Point, Role, Scatter, Spread, front_of, roomy


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Every colour that a figure has, once. The page replaces them by its own, light or dark."""

    ink: str = "#1b1f24"
    muted: str = "#5d6673"
    grid: str = "#dde1e6"
    paper: str = "#fffffe"
    front: str = "#0072b2"
    baseline: str = "#b34700"
    pick: str = "#007a5e"
    other: str = "#8b94a1"


PALETTE: Final = Palette()


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How wide a drawing is, in inches, and how large its text, in points."""

    width: float
    text: float
    narrow: bool


WIDE: Final = Size(width=9.0, text=9.5, narrow=False)
NARROW: Final = Size(width=3.8, text=9.5, narrow=True)

_LOCK = threading.Lock()
"""matplotlib's settings belong to the process."""

MARKS: Final = "trials:"
"""How the id of a group of marks begins in an SVG."""

_LONG_NAME = 24
"""Characters of a baseline's name that fit beside its mark; the table has all of it."""

_FEW = 4
"""Columns of a matrix up to which it is narrower than the page and its text as large as any."""

_MOST_NUMBERS = 30
"""Columns of a matrix beyond which its cells have no room for numbers."""


def draw(figure: Figure, size: Size = WIDE) -> Drawing:
    """A figure drawn; it belongs to no window and needs no display."""
    with _LOCK, mpl.rc_context(_style(size)):
        drawing = Drawing(layout="constrained")
        FigureCanvasAgg(drawing)
        _DRAW[type(figure)](drawing, figure, size)
        return drawing


def save(figures: Sequence[Figure], directory: Path) -> list[Path]:
    """Each figure as PNG (200 dots an inch) and SVG below ``directory``; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        drawing = draw(figure)
        for suffix in ("png", "svg"):
            path = directory / f"{figure.name}.{suffix}"
            write(drawing, path, salt=figure.name)
            written.append(path)
    return written


def write(drawing: Drawing, target: Any, *, salt: str, kind: str | None = None, transparent: bool = False) -> None:
    """Write a drawing to a path or file; the same drawing gives the same bytes.

    Args:
        salt: makes the ids of an SVG its own, so that several can stand in one page.
    """
    plain: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "text.parse_math": False}
    with _LOCK, mpl.rc_context(plain):
        found = kind or Path(target).suffix.lstrip(".")
        metadata = {"Date": None, "Creator": None} if found == "svg" else {"Software": None}
        drawing.savefig(target, format=found, dpi=200, metadata=metadata, transparent=transparent)


def _style(size: Size) -> Any:
    """matplotlib's settings, whose names its types spell out one by one."""
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": size.text,
        "text.color": PALETTE.ink,
        "text.parse_math": False,
        "axes.labelcolor": PALETTE.ink,
        "axes.edgecolor": PALETTE.other,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.labelsize": size.text,
        "axes.unicode_minus": False,
        "xtick.color": PALETTE.muted,
        "ytick.color": PALETTE.muted,
        "xtick.labelsize": size.text,
        "ytick.labelsize": size.text,
        "legend.fontsize": size.text,
        "legend.frameon": False,
        "figure.facecolor": PALETTE.paper,
        "hatch.linewidth": 0.5,
    }


def _scatter(drawing: Drawing, figure: Scatter, size: Size) -> None:
    drawing.set_size_inches(size.width, size.width * (1.05 if size.narrow else 0.62))
    axes = drawing.subplots()
    axes.grid(color=PALETTE.grid, linewidth=0.6)
    x, y = figure.frame
    axes.set_xlim(*roomy(*x))
    axes.set_ylim(*roomy(*y))
    _bounds(axes, figure.axes)
    shown = [p for p in figure.points if _inside(axes, p)]
    _trials(axes, shown)
    if figure.whole:
        _staircase(axes, front_of(shown, figure.axes), figure.axes[0])
    if figure.detail:
        _measured(axes, [p for p in shown if p.role is Role.FRONT or p.picked or p.chosen])
    _front(axes, [p for p in shown if p.role is Role.FRONT])
    _baselines(axes, [p for p in shown if p.role is Role.BASELINE])
    _picks(axes, [p for p in shown if p.picked or p.chosen], detail=figure.detail)
    axes.set_xlabel(_axis_text(figure.axes[0]))
    axes.set_ylabel(_axis_text(figure.axes[1]))
    handles, labels = axes.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=2 if size.narrow else 4, handletextpad=0.3)
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    _label(axes, shown, size)


def _bounds(axes: Axes, both: tuple[Axis, Axis]) -> None:
    """Where a constraint does not hold: shaded and hatched."""
    regions: list[tuple[Callable[..., object], float, float]]
    regions = [(axes.axvspan, *r) for r in _wrong(both[0], axes.get_xlim())]
    regions += [(axes.axhspan, *r) for r in _wrong(both[1], axes.get_ylim())]
    for i, (span, low, high) in enumerate(regions):
        label = Role.INFEASIBLE.value if i == 0 else ""
        span(low, high, facecolor=PALETTE.other, alpha=0.13, linewidth=0, label=label)
        span(low, high, facecolor="none", edgecolor=PALETTE.other, alpha=0.35, hatch="///", linewidth=0)


def _wrong(axis: Axis, limits: tuple[float, float]) -> list[tuple[float, float]]:
    """Intervals of an axis where its objective's constraints do not hold."""
    if axis.objective is None:
        return []
    sides = [(limits[0], axis.objective.at_least), (axis.objective.at_most, limits[1])]
    return [(low, high) for low, high in sides if low is not None and high is not None and low < high]


def _inside(axes: Axes, point: Point) -> bool:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = point.posterior
    return left <= x.mean <= right and low <= y.mean <= high


def _trials(axes: Axes, points: Sequence[Point]) -> None:
    """What is not on the front, faint."""
    for role, marker in ((Role.DOMINATED, "o"), (Role.INFEASIBLE, "x")):
        found = [p for p in points if p.role is role]
        label = "dominated" if role is Role.DOMINATED else ""
        _marks(axes, found, marker, 14, PALETTE.other, label=label, alpha=0.55, linewidths=0.9)


def _marks(
    axes: Axes, points: Sequence[Point], marker: str, area: float, colour: str, *, label: str, **more: Any
) -> None:
    """Marks at the posterior means."""
    if points:
        x, y = ([p.posterior[i].mean for p in points] for i in (0, 1))
        drawn = axes.scatter(x, y, s=area, marker=marker, color=colour, label=label, **more)
        drawn.set_gid(_named(points))


def _staircase(axes: Axes, corners: Sequence[Point], x: Axis) -> None:
    """What the front covers ends here."""
    if len(corners) < 2 or x.objective is None:
        return
    xs, ys = ([p.posterior[i].mean for p in corners] for i in (0, 1))
    where: Literal["pre", "post"] = "pre" if x.objective.maximise else "post"
    axes.step(xs, ys, where=where, color=PALETTE.front, linewidth=1.0, alpha=0.45)


def _front(axes: Axes, points: Sequence[Point]) -> None:
    _bars(axes, [p.posterior for p in points], PALETTE.front, 0.3)
    _marks(axes, points, "o", 34, PALETTE.front, label="on the front", zorder=3)


def _baselines(axes: Axes, points: Sequence[Point]) -> None:
    _bars(axes, [p.posterior for p in points], PALETTE.baseline, 0.45)
    _marks(axes, points, "s", 30, PALETTE.baseline, label="baselines", zorder=3)


def _bars(axes: Axes, spreads: Sequence[tuple[Spread, Spread]], colour: str, alpha: float) -> None:
    if not spreads:
        return
    xs, ys = ([pair[i].mean for pair in spreads] for i in (0, 1))
    x, y = ([[s[i].mean - s[i].low for s in spreads], [s[i].high - s[i].mean for s in spreads]] for i in (0, 1))
    bars: dict[str, Any] = {"ecolor": colour, "elinewidth": 0.9, "alpha": alpha, "fmt": "none"}
    axes.errorbar(xs, ys, xerr=np.maximum(x, 0.0), yerr=np.maximum(y, 0.0), **bars)


def _measured(axes: Axes, points: Sequence[Point]) -> None:
    """A ring where a trial was measured, and a thread from there to what is believed."""
    for p in points:
        x, y = ((p.posterior[i].mean, p.measured[i]) for i in (0, 1))
        axes.plot(x, y, color=PALETTE.front, linewidth=0.6, alpha=0.5)
    if points:
        xs, ys = ([p.measured[i] for p in points] for i in (0, 1))
        axes.scatter(
            xs, ys, s=13, facecolors="none", edgecolors=PALETTE.front, linewidths=0.8, label="as measured", zorder=2.5
        )


def _picks(axes: Axes, points: Sequence[Point], *, detail: bool) -> None:
    """Picks where fresh items put them; in detail with their intervals and arrows from what the search measured."""
    for p in points:
        if p.fresh is not None and detail:
            arrow = {"arrowstyle": "->", "color": PALETTE.pick, "linewidth": 1.1, "shrinkA": 1, "shrinkB": 4}
            axes.annotate("", (p.fresh[0].mean, p.fresh[1].mean), p.measured, arrowprops=arrow)
    _bars(axes, [p.fresh for p in points if p.fresh and (detail or p.chosen)], PALETTE.pick, 0.6)
    _stars(axes, [p for p in points if not p.chosen], 95, "picked, on fresh items")
    _stars(axes, [p for p in points if p.chosen], 240, "the pick")


def _stars(axes: Axes, points: Sequence[Point], area: float, label: str) -> None:
    if points:
        xs, ys = ([(p.fresh or p.posterior)[i].mean for p in points] for i in (0, 1))
        rim: dict[str, Any] = {"edgecolors": PALETTE.paper, "linewidths": 0.7}
        stars = axes.scatter(xs, ys, s=area, marker="*", color=PALETTE.pick, label=label, zorder=4, **rim)
        stars.set_gid(_named(points))


def _named(points: Sequence[Point]) -> str:
    """The id of a group of marks names their trials in order, so that whoever reads the SVG knows which is which."""
    return f"{MARKS}{','.join(str(p.trial) for p in points)}"


def _label(axes: Axes, points: Sequence[Point], size: Size) -> None:
    """Names beside the baselines and the pick, where they cover neither marks nor each other."""
    named = [p for p in points if p.label or p.chosen]
    if not named:
        return
    ground = {"facecolor": PALETTE.paper, "alpha": 0.75, "linewidth": 0, "pad": 0.8}
    texts = [
        axes.text(
            *_place(p),
            _name(p),
            fontsize=size.text,
            color=PALETTE.pick if p.chosen else PALETTE.ink,
            bbox=ground,
            zorder=2.8,
        )
        for p in named
    ]
    marks = np.array([_place(p) for p in points if p.on_front or p.label or p.picked or p.chosen])
    thread = {"arrowstyle": "-", "color": PALETTE.muted, "linewidth": 0.6}
    # A number of steps, not a time: the same figure must give the same drawing on a busy machine.
    adjust_text(texts, x=marks[:, 0], y=marks[:, 1], ax=axes, iter_lim=200, arrowprops=thread)


def _place(point: Point) -> tuple[float, float]:
    x, y = point.fresh or point.posterior
    return x.mean, y.mean


def _name(point: Point) -> str:
    label = point.label if len(point.label) <= _LONG_NAME else f"{point.label[: _LONG_NAME - 1]}…"
    return " ".join(filter(None, (label, f"pick: trial {point.trial}" if point.chosen else "")))


def _axis_text(axis: Axis) -> str:
    objective = axis.objective
    return (
        axis.label if objective is None else f"{axis.label} ({'higher' if objective.maximise else 'lower'} is better)"
    )


def _recipe(drawing: Drawing, figure: Bars, size: Size) -> None:
    drawing.set_size_inches(size.width * (1 if size.narrow else 0.75), 0.55 + 0.3 * max(len(figure.names), 1))
    axes = drawing.subplots()
    places = range(len(figure.names))
    axes.barh(places, figure.values, height=0.62, color=PALETTE.front, alpha=0.75)
    most = max([*figure.values, *(high for _, high in figure.spans)], default=1.0) or 1.0
    for place, value, (low, high) in zip(places, figure.values, figure.spans, strict=True):
        if low != high:
            axes.plot([low, high], [place, place], color=PALETTE.ink, linewidth=1.2)
        axes.text(max(value, high) + 0.012 * most, place, f"{value:.3f}", va="center_baseline", fontsize=size.text)
    axes.set_yticks(places, figure.names, color=PALETTE.ink)
    axes.set_xlim(min(0.0, *(low for low, _ in figure.spans), *figure.values), most * 1.12)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _heat(drawing: Drawing, figure: Heat, size: Size) -> None:
    few = len(figure.columns) <= _FEW
    drawing.set_size_inches(size.width * (0.75 if few and not size.narrow else 1), 0.6 + 0.27 * len(figure.rows))
    axes = drawing.subplots()
    axes.set_xlim(-0.5, len(figure.columns) - 0.5)
    axes.set_ylim(len(figure.rows) - 0.5, -0.5)
    _cells(axes, figure, size)
    _rows_and_columns(axes, figure, size)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cells(axes: Axes, figure: Heat, size: Size) -> None:
    """Shaded, with their texts where there is room."""
    room = len(figure.columns) <= (8 if size.narrow else _MOST_NUMBERS)
    text: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
    text["fontsize"] = size.text if len(figure.columns) <= _FEW else size.text - 1.5
    for i, row in enumerate(figure.cells):
        for j, cell in enumerate(row):
            colour = PALETTE.front if cell.shade >= 0 else PALETTE.baseline
            strength = 0.72 * min(abs(cell.shade), 1.0)
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, alpha=strength, linewidth=0))
            if room:
                axes.text(j, i, cell.text, weight="bold" if i in figure.strong else "normal", **text)


def _rows_and_columns(axes: Axes, figure: Heat, size: Size) -> None:
    """Names of rows on the left, of columns above, every one or as many as have room."""
    axes.set_yticks(range(len(figure.rows)), figure.rows, color=PALETTE.ink)
    for i in figure.strong:
        axes.get_yticklabels()[i].set_fontweight("bold")
        axes.axhline(i - 0.5, color=PALETTE.other, linewidth=0.8)
    step = max(1, len(figure.columns) // (8 if size.narrow else _MOST_NUMBERS))
    heads = [c.replace(" ", "\n") if size.narrow else c for c in figure.columns]
    text = size.text - 2.5 if size.narrow else size.text  # two heads side by side must not become one word
    axes.set_xticks(range(0, len(heads), step), heads[::step], color=PALETTE.ink, fontsize=text)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(figure.across)


def _curve(drawing: Drawing, figure: Curve, size: Size) -> None:
    drawing.set_size_inches(size.width, size.width * (0.6 if size.narrow else 0.3))
    axes = drawing.subplots()
    axes.grid(color=PALETTE.grid, linewidth=0.6)
    axes.step(figure.trials, figure.values, where="post", color=PALETTE.front, linewidth=1.8)
    if figure.mark is not None:
        value = figure.values[figure.trials.index(figure.mark)]
        axes.axvline(figure.mark, color=PALETTE.pick, linewidth=1.0, linestyle="--")
        axes.annotate(
            f"flat from trial {figure.mark}",
            (figure.mark, value / 2),
            xytext=(5, 0),
            textcoords="offset points",
            color=PALETTE.pick,
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(figure.y)
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


_DRAW: Final[Mapping[type, Callable[[Drawing, Any, Size], None]]] = {
    Scatter: _scatter,
    Bars: _recipe,
    Heat: _heat,
    Curve: _curve,
}
