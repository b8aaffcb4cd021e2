import re
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from optimizer.report.drawing import NARROW, PALETTE, WIDE, draw, save
from optimizer.report.figures import Scatter, figures, fronts, roomy
from optimizer.report.findings import Findings
from optimizer.report.svg import inline

EVIL = """$x^2$ </text><script>alert("x")</script>'&\u2028"""


def trials(text: str) -> list[str]:
    return re.findall(r'class="[^"]*\bmark" data-trial="(\d+)"', text)


def test_every_figure_is_drawn_as_png_and_svg_without_a_display(found: Findings, tmp_path: Path) -> None:
    drawn = figures(found)
    written = save(drawn, tmp_path / "figures")
    assert {p.name for p in written} == {f"{f.name}.{kind}" for f in drawn for kind in ("png", "svg")}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width >= 1000
                assert len(image.convert("L").getcolors(70000) or []) > 10
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_same_figure_gives_the_same_bytes(found: Findings, tmp_path: Path) -> None:
    drawn = figures(found)
    first = [p.read_bytes() for p in save(drawn, tmp_path / "a")]
    assert [p.read_bytes() for p in save(drawn, tmp_path / "b")] == first
    assert [inline(f, WIDE) for f in drawn] == [inline(f, WIDE) for f in drawn]


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_every_mark_knows_its_trial(found: Findings, size: object) -> None:
    plane = fronts(found)[0]
    text = inline(plane, size)  # type: ignore[arg-type]
    (left, right), (low, high) = (roomy(*ends) for ends in plane.frame)
    inside = [p for p in plane.points if left <= p.posterior[0].mean <= right and low <= p.posterior[1].mean <= high]
    stars = [p for p in plane.points if p.picked or p.chosen]
    assert sorted(trials(text)) == sorted(str(p.trial) for p in [*inside, *stars])
    assert len(inside) >= 9


def test_a_mark_stands_where_its_trial_is(found: Findings) -> None:
    plane = fronts(found)[0]
    root = ET.fromstring(inline(plane, WIDE))
    places = {m.get("data-trial"): float(m.get("x", "nan")) for m in root.iter() if "data-trial" in m.attrib}
    values = {str(p.trial): p.posterior[0].mean for p in plane.points if not (p.picked or p.chosen)}
    ordered = sorted(values, key=lambda t: values[t])
    assert [places[t] for t in ordered] == sorted(places[t] for t in ordered)
    assert len(ordered) >= 5


def test_a_page_can_forbid_inline_styles_and_replace_every_colour(found: Findings) -> None:
    for figure in figures(found):
        text = inline(figure, WIDE)
        assert " style=" not in text
        assert "<style" not in text
        for element in ET.fromstring(text).iter():
            for kind in ("fill", "stroke"):
                colour = element.get(kind, "none")
                if colour.startswith("#"):
                    names = {getattr(PALETTE, f.name): f.name for f in fields(PALETTE)}
                    assert f"{kind}-{names[colour]}" in element.get("class", "")


def test_drawings_of_one_page_share_no_id(found: Findings) -> None:
    ids = [i for f in figures(found) for size in (WIDE, NARROW) for i in re.findall(r' id="([^"]+)"', inline(f, size))]
    assert len(ids) == len(set(ids))
    assert ids


def test_names_are_texts_and_nothing_else(found: Findings) -> None:
    plane = fronts(found)[0]
    evil = tuple(replace(p, label=EVIL) if p.label == "uniform" else p for p in plane.points)
    axes = (replace(plane.axes[0], label=EVIL), plane.axes[1])
    text = inline(replace(plane, points=evil, axes=axes, title=EVIL), WIDE)
    root = ET.fromstring(text)
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    shown = "".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))
    assert '$x^2$ </text><script>alert("x")</script>' in shown  # the axis
    assert "$x^2$ </text><script>al…" in shown  # beside the mark, where there is room for so much
    assert root.get("aria-label") == EVIL


@pytest.mark.parametrize("keep", [1, 0])
def test_few_points_are_drawn_too(found: Findings, keep: int) -> None:
    plane = fronts(found)[0]
    points = tuple(replace(p, picked=False, chosen=False, fresh=None) for p in plane.points)
    alone = replace(plane, points=points[:keep] or points[-1:])
    assert trials(inline(alone, WIDE)) == [str(p.trial) for p in alone.points]


def test_two_thousand_trials_are_drawn_once_each(found: Findings) -> None:
    plane = fronts(found)[0]
    assert isinstance(plane, Scatter)
    dull = next(p for p in plane.points if not p.label and not p.on_front)
    many = tuple(replace(dull, trial=1000 + i) for i in range(2000))
    text = inline(replace(plane, points=(*plane.points, *many)), WIDE)
    assert len(set(trials(text))) == len(plane.points) + 2000
    assert len(text) < 600_000


def test_a_drawing_belongs_to_no_window(found: Findings) -> None:
    drawing = draw(fronts(found)[0])
    assert drawing.canvas.manager is None
