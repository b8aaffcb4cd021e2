"""The report as one HTML file: it asks the network for nothing, and nothing in it runs but its own script.

Names, model outputs and reasons are strangers' texts. They are escaped by the template, embedded data is JSON without
any ``<``, and the page's policy lets a browser run the one script whose digest it names.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from optimizer.report import words
from optimizer.report.drawing import NARROW, WIDE
from optimizer.report.figures import Figure, Table, figures
from optimizer.report.findings import Findings
from optimizer.report.svg import inline
from storage.files import whole_file

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A figure ready for a page: drawn for a desk and for a phone, its texts, and its table."""

    name: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup
    table: Table


def shown(figure: Figure) -> Shown:
    """A figure as a page shows it (the template's macro ``figure`` lays it out)."""
    return Shown(
        name=figure.name,
        title=figure.title,
        caption=figure.caption,
        wide=Markup(inline(figure, WIDE)),
        narrow=Markup(inline(figure, NARROW)),
        table=figure.table,
    )


def page(found: Findings) -> str:
    """The report of a study; the same findings give the same text."""
    drawn = [shown(f) for f in figures(found)]
    style, script = asset("report.css"), asset("report.js")
    return (
        environment()
        .get_template("report.html")
        .render(
            found=found,
            words=words,
            figures={group: _named(drawn, names) for group, names in _PLACES.items()},
            trials={"study": found.record.name, "rows": words.trial_rows(found), "open": _opened(found)},
            specification=yaml.safe_dump(dict(found.record.spec), sort_keys=False, allow_unicode=True),
            style=Markup(style),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def write_page(found: Findings, path: Path) -> None:
    """Write the report; the file appears whole or not at all."""
    with whole_file(path) as file:
        file.write(page(found).encode())


@cache
def environment() -> Environment:
    """The templates, in which everything is escaped that is not marked as markup."""
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def asset(name: str) -> str:
    """The text of ``report.css`` or ``report.js``, which pages of a service need too."""
    return (_HERE / name).read_text(encoding="utf-8")


_PLACES = {
    "front": ("front",),
    "pick": ("recipe", "parts"),
    "why": ("weights", "checkpoints"),
    "trust": ("hypervolume",),
}
"""How names of figures begin, by the report's sections."""


def _named(drawn: Sequence[Shown], names: tuple[str, ...]) -> list[Shown]:
    return [s for s in drawn if s.name.startswith(names)]


def _opened(found: Findings) -> int | None:
    """The trial that is shown before anybody has chosen one."""
    if found.choice is not None:
        return found.choice.trial
    return found.results.rows[0].trial if found.results.rows else None
