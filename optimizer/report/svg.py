"""Drawings as parts of a page: colours that follow it, marks that know their trial, ids that nobody else has."""

import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Final
from xml.etree import ElementTree as ET

from optimizer.report.drawing import MARKS, PALETTE, Size, draw, write
from optimizer.report.figures import Figure

_SVG: Final = "{http://www.w3.org/2000/svg}"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"
_CLASSES: Final = {getattr(PALETTE, f.name): f.name for f in fields(PALETTE)}
_PIXELS: Final = 1.36
"""Pixels a point where there is room, which makes the text as large as a caption."""

_DROPPED: Final = ("font-family",)
"""Texts are in the page's own font."""


def inline(figure: Figure, size: Size) -> str:
    """The figure as an ``<svg>`` element for a page, the same bytes every time.

    Instead of styles it has attributes and, for each colour of the palette, a class (``fill-front``, ``stroke-ink``)
    by which a page replaces it: so it follows a dark page, and a page may forbid inline styles. A mark has the class
    ``mark`` and its trial in ``data-trial``.
    """
    root = _drawn(figure, size)
    for element in root.iter():
        _restyle(element)
    for group in root.iter("g"):
        name = group.attrib.pop("id", "")  # nobody refers to them, and every drawing has the same
        if name.startswith(MARKS):
            _name_marks(group, name.removeprefix(MARKS).split(","))
    return ET.tostring(root, encoding="unicode")


def _drawn(figure: Figure, size: Size) -> ET.Element:
    """As matplotlib writes it, without what concerns a file: metadata, a style sheet, a size of its own."""
    out = io.BytesIO()
    # Wide and narrow drawings of one figure stand in one page, so their ids must differ.
    salt = f"{figure.name} {'narrow' if size.narrow else 'wide'}"
    write(draw(figure, size), out, salt=salt, kind="svg", transparent=True)
    root = ET.fromstring(out.getvalue())
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
    for part in [e for e in root if e.tag == "metadata" or e.find("style") is not None]:
        root.remove(part)
    _, _, width, _ = (float(v) for v in root.get("viewBox", "").split())
    root.attrib = {"xmlns": _SVG.strip("{}"), "viewBox": root.get("viewBox", ""), "width": f"{width * _PIXELS:.0f}"}
    root.attrib |= {"role": "group", "aria-label": figure.title}
    return root


def _name_marks(group: ET.Element, trials: Sequence[str]) -> None:
    for mark, trial in zip(group.iter("use"), trials, strict=True):
        mark.set("class", f"{mark.get('class', '')} mark".strip())
        mark.set("data-trial", trial)


def _restyle(element: ET.Element) -> None:
    """Inline styles become attributes, colours of the palette classes as well."""
    href = element.attrib.pop(_LINK, None)
    if href is not None:
        element.set("href", href)
    style = element.attrib.pop("style", "")
    classes = []
    for declaration in filter(None, (d.strip() for d in style.split(";"))):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        if name in ("fill", "stroke") and value in _CLASSES:
            classes.append(f"{name}-{_CLASSES[value]}")
        if name not in _DROPPED:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
