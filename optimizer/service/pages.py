"""Pages for people: rendered here, kept up to date by one small script, everything in them escaped."""

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from optimizer.service import reader
from optimizer.service.desk import Desk, TheDesk
from optimizer.service.gate import ANYBODY
from optimizer.service.problems import Problem
from optimizer.service.shapes import StudyName
from optimizer.states import statuses
from search_spaces.methods import METHODS
from storage.errors import StoreError

_HERE = Path(__file__).parent
_REPORT = _HERE.parent / "report"
_LOG_LINES = 60

router = APIRouter(include_in_schema=False)


@cache
def environment() -> Environment:
    """The templates, the report's below ``report/``; everything is escaped that is not marked as markup."""
    found = Environment(
        loader=ChoiceLoader(
            [FileSystemLoader(_HERE / "templates"), PrefixLoader({"report": FileSystemLoader(_REPORT)})]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"weights": _weights, "time": _time}
    return found


@router.get("/")
async def home(desk: TheDesk, request: Request) -> Response:
    """Every study, the newest first."""
    found = await asyncio.to_thread(statuses, desk.store)
    return _page(request, "studies.html", studies=found[::-1])


@router.get("/new")
async def new(desk: TheDesk, request: Request) -> Response:
    """Start a study."""
    return _page(request, "new.html", methods=METHODS, roots=desk.settings.roots)


@router.get("/login")
async def login(request: Request) -> Response:
    """Where a token is given."""
    return _page(request, "login.html")


@router.get("/studies/{name}")
async def study(desk: TheDesk, request: Request, name: StudyName) -> Response:
    """One study, live."""
    try:
        found = await _live(desk, name)
    except Problem as e:
        return _page(request, "missing.html", e.status, title="Not here", detail=e.problems[0])
    return _page(request, "study.html", roots=desk.settings.roots, **found)


@router.get("/studies/{name}/live")
async def live(desk: TheDesk, request: Request, name: StudyName) -> Response:
    """What changes on that page."""
    return _page(request, "live.html", **await _live(desk, name))


@router.get("/studies/{name}/figure")
async def figure(desk: TheDesk, name: StudyName) -> Response:
    """The front and how the hypervolume grew, drawn as in the report."""
    known = await desk.known(name)
    html = await desk.reader.run(reader.figures_html, desk.settings.storage, name, known.revision)
    return HTMLResponse(html)


@router.get("/static/report.css")
async def style() -> Response:
    """The report's style, which the pages share."""
    return Response((_REPORT / "report.css").read_text(encoding="utf-8"), media_type="text/css")


async def _live(desk: Desk, name: str) -> dict[str, Any]:
    body = await desk.study_body(name)
    log = await asyncio.to_thread(desk.log_tail, name, _LOG_LINES)
    found = {"s": body, "rows": [], "revision": "", "log": log}
    try:
        known = await desk.fronts.get(name)
    except StoreError:  # it has not begun
        return found
    return found | {"rows": json.loads(known.reading.front), "revision": known.tag if body["measured"] else ""}


def _page(request: Request, template: str, status: int = 200, **found: Any) -> Response:
    caller = request.state.caller
    who = {
        "caller": caller.name if caller else "",
        "operator": caller is not None and caller.role == "operator",
        "signed_in": caller is not None and caller is not ANYBODY,
    }
    return HTMLResponse(environment().get_template(template).render(**who, **found), status)


def _weights(weights: Mapping[str, float]) -> str:
    """The weights that are not zero, the largest first."""
    shown = sorted(((w, name) for name, w in weights.items() if round(w, 2)), reverse=True)
    return " + ".join(f"{name} {w:.2f}" for w, name in shown) or "no checkpoint"


def _time(text: str) -> str:
    """``2026-11-28 07:31:13`` of an ISO time in UTC."""
    return text[:19].replace("T", " ")
