"""Small figures for the page, in the report's colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adjustText import adjust_text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optimizer.report.drawing import PALETTE, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Points of one kind: their names (empty for none) with x and y, their mark, and whether a line joins them."""

    points: Sequence[tuple[str, float, float]]
    mark: str = "o"
    colour: str = PALETTE.other
    joined: bool = False


def plane(path: Path, groups: Mapping[str, Group], *, x: str, y: str) -> None:
    """Write one plane as SVG, up and to the right being better; the same points give the same bytes."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, group in groups.items():
        points = sorted(group.points, key=lambda p: p[1])
        axes.plot(
            [p[1] for p in points],
            [p[2] for p in points],
            linestyle="-" if group.joined else "none",
            marker=group.mark,
            color=group.colour,
            linewidth=1,
            label=label,
        )
    axes.margins(0.08)
    named = [point for group in groups.values() for point in group.points if point[0]]
    texts = [axes.text(at_x, at_y, name, fontsize=7, color=PALETTE.muted) for name, at_x, at_y in named]
    everything = [point for group in groups.values() for point in group.points]
    marks = {"x": [p[1] for p in everything], "y": [p[2] for p in everything]}
    if texts:  # a number of steps, not a time: the same points must give the same drawing on a busy machine
        adjust_text(texts, ax=axes, iter_lim=200, arrowprops={"arrowstyle": "-", "color": PALETTE.grid}, **marks)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(figure, path, salt=path.stem)
