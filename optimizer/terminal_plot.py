"""The front as characters, for a terminal."""

from collections.abc import Sequence
from string import ascii_letters

import plotille
from rich.text import Text

from optimizer.report.figures import Point, Role, Scatter, roomy

_MARKS = {Role.DOMINATED: ("·", "dim"), Role.INFEASIBLE: ("×", "dim"), Role.FRONT: ("●", "bright_blue")}
_LETTERS = "bright_yellow"
_PICK = ("★", "bright_green")


def plot(figure: Scatter, *, width: int, height: int) -> Text:
    """A plane of trials of so many characters and lines with its axes, and below it what the marks mean.

    Baselines are letters. Everything stands where the posterior means are; what lies outside the figure's frame is
    left out.
    """
    canvas = _canvas(figure, width, height)
    (left, right), (low, high) = canvas.x_limits(), canvas.y_limits()
    shown = [p for p in figure.points if left <= _at(p)[0] <= right and low <= _at(p)[1] <= high]
    groups = [(mark, role.value, [p for p in shown if p.role is role]) for role, (mark, _) in _MARKS.items()]
    baselines = zip(ascii_letters, (p for p in shown if p.role is Role.BASELINE), strict=False)
    groups += [(letter, p.label, [p]) for letter, p in baselines]
    groups += [(_PICK[0], f"the pick, trial {p.trial}", [p]) for p in shown if p.chosen]
    for mark, _, points in groups:
        _put(canvas, points, mark)
    return _coloured(canvas.show(), "   ".join(f"{mark} {meaning}" for mark, meaning, points in groups if points))


def _canvas(figure: Scatter, width: int, height: int) -> plotille.Figure:
    """An empty plane with its axes."""
    canvas = plotille.Figure()
    canvas.width, canvas.height = max(width - _Y_AXIS, 20), max(height - _LINES, 4)
    canvas.with_colors, canvas.origin = False, False  # plotille asks stdout about colours, and we may write elsewhere
    canvas.x_label, canvas.y_label = (axis.label for axis in figure.axes)
    canvas.register_label_formatter(float, _label)
    x, y = figure.frame
    canvas.set_x_limits(*roomy(*x))
    canvas.set_y_limits(*roomy(*y))
    return canvas


_Y_AXIS = 13
"""Characters that plotille puts before a line."""

_LINES = 5
"""Lines that it puts above and below, and ours."""


def _at(point: Point) -> tuple[float, float]:
    x, y = point.posterior
    return x.mean, y.mean


def _put(canvas: plotille.Figure, points: Sequence[Point], mark: str) -> None:
    if points:
        canvas.scatter([_at(p)[0] for p in points], [_at(p)[1] for p in points], marker=mark)


def _coloured(drawn: str, meanings: str) -> Text:
    """The marks of the canvas in their colours; its lines hold nothing else behind the axis."""
    styles = dict([*_MARKS.values(), _PICK]) | dict.fromkeys(ascii_letters, _LETTERS)
    text = Text()
    for line in drawn.splitlines():
        axis, bar, canvas = line.partition(" | ")
        text.append(axis + bar)
        for mark in canvas:
            text.append(mark, styles.get(mark, ""))
        text.append("\n")
    return text.append(meanings)


def _label(value: float, chars: int, delta: float, left: bool = False) -> str:
    """A number on an axis, three figures of it."""
    text = f"{value:.3g}" if abs(value) >= 1 or value == 0 else f"{value:.3f}"
    return text.ljust(chars) if left else text.rjust(chars)
