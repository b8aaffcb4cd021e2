"""``/v1/studies``: ask for studies, see how they stand, steer them."""

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from optimizer.service import reader
from optimizer.service.desk import Desk, TheDesk, caller_of
from optimizer.service.problems import Problem, ProblemBody
from optimizer.service.shapes import (
    NAME,
    Number,
    ResumeAsked,
    StudiesBody,
    StudyBody,
    StudyName,
    SummaryBody,
    TrialBody,
)
from optimizer.states import State, Status, statuses
from search_spaces.errors import InputError
from storage.access import Answer
from storage.errors import StoreError
from storage.events import Position
from storage.records import SPLITS
from storage.store import Store

_YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
_MOST_LISTENERS = 1000
Responses = dict[int | str, dict[str, Any]]


def _problems(*codes: int) -> Responses:
    return {code: {"model": ProblemBody} for code in codes}


_GONE = _problems(404)
_TAKEN = _problems(409)
_WRONG = _problems(415)
_FRONT: Responses = {
    200: {"content": {"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}}},
    304: {"description": "It is what If-None-Match names."},
}
_STREAM: Responses = {200: {"content": {"text/event-stream": {}}}}
_HTML: Responses = {200: {"content": {"text/html": {}}}}
_REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The report brings its own script, which its own policy names by a digest; sandboxed it gets at nothing of ours."""

_TEXT: Responses = {200: {"content": {"text/plain": {}}}}

router = APIRouter(prefix="/v1")

_STUDY_FILE = {
    "requestBody": {
        "required": True,
        "description": "The study file, as `mergefront launch` reads it; relative paths start from the first root.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}


@router.get("/studies", response_model=StudiesBody)
async def list_studies(
    desk: TheDesk,
    state: Annotated[State | None, Query(description="Only those in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(pattern=NAME, description="Begin after the study of this name.")] = None,
) -> dict[str, Any]:
    """Every study, oldest first, a page at a time."""
    found = [s for s in await asyncio.to_thread(statuses, desk.store) if state in (None, s.state)]
    names = [s.name for s in found]
    if after is not None and after not in names:
        raise Problem(422, f"after must be a study of the list, but there is no {after!r}.")
    start = 0 if after is None else names.index(after) + 1
    page = found[start : start + limit]
    more = start + limit < len(found)
    return {"studies": [_line(s) for s in page], "next": page[-1].name if more else None}


@router.post(
    "/studies", status_code=201, response_model=StudyBody, openapi_extra=_STUDY_FILE, responses=_TAKEN | _WRONG
)
async def launch(
    desk: TheDesk,
    request: Request,
    trials: Annotated[int | None, Query(ge=1, le=1_000_000, description="In place of the file's number.")] = None,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Check a study and queue it. The answer comes when the preflight is through, which may take minutes."""
    said = await request.body()

    async def act() -> tuple[Answer, Mapping[str, str]]:
        spec = await _checked(desk, request, said)
        study, planned = spec["study"], trials or spec["search"]["trials"]
        await desk.record(request, "launch", study, {"trials": planned})
        wanted = {"spec": spec, "trials": planned}
        await _queue(desk, request, study, "launch", wanted)
        return Answer(status=201, body=await desk.study_body(study)), {"location": f"/v1/studies/{study}"}

    return await desk.once(request, said, act)


@router.post("/checks", openapi_extra=_STUDY_FILE, responses=_WRONG)
async def check(desk: TheDesk, request: Request) -> dict[str, Any]:
    """What `mergefront check` finds: facts and warnings, and nothing is begun. Problems are a 422."""
    spec = await _parsed(desk, request, await request.body())
    return await _preflight(desk, spec)


@router.get("/studies/{name}", response_model=StudyBody, responses=_GONE)
async def study(desk: TheDesk, name: StudyName) -> dict[str, Any]:
    """State, progress, hypervolume and workers."""
    return await desk.study_body(name)


@router.post("/studies/{name}/resume", status_code=202, response_model=StudyBody, responses=_GONE | _TAKEN)
async def resume(
    desk: TheDesk,
    request: Request,
    name: StudyName,
    asked: ResumeAsked | None = None,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Go on with a study, with more trials than so far planned where the body says so."""
    trials = asked.trials if asked is not None else 0

    async def act() -> tuple[Answer, Mapping[str, str]]:
        found = await desk.status(name)
        _check_resumable(found, trials)
        await desk.record(request, "resume", name, {"trials": trials})
        if found.begun:
            await _queue(desk, request, name, "resume", {"trials": trials})
        else:
            earlier = (await asyncio.to_thread(desk.store.jobs.latest))[name].request
            planned = earlier["trials"] + trials
            await _queue(desk, request, name, "launch", dict(earlier) | {"trials": planned})
        return Answer(status=202, body=await desk.study_body(name)), {}

    return await desk.once(request, str(trials).encode(), act)


@router.post("/studies/{name}/pause", status_code=202, response_model=StudyBody, responses=_GONE | _TAKEN)
async def pause(
    desk: TheDesk,
    request: Request,
    name: StudyName,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Hand out nothing new; what runs is waited for. A queued study leaves the queue."""

    async def act() -> tuple[Answer, Mapping[str, str]]:
        found = await desk.status(name)
        if found.state not in ("queued", "running"):
            raise Problem(409, f"only what is queued or running can be paused, but {name} is {found.state}.")
        await desk.record(request, "pause", name, {})
        if not await asyncio.to_thread(_pause, desk, found):
            raise Problem(409, f"a study is paused where it runs, but {name} runs on another machine, {found.driver}.")
        return Answer(status=202, body=await desk.study_body(name)), {}

    return await desk.once(request, b"", act)


@router.delete("/studies/{name}", status_code=204, response_class=Response, responses=_GONE | _TAKEN)
async def delete(
    desk: TheDesk,
    request: Request,
    name: StudyName,
    confirm: Annotated[str, Query(description="The study's name again: what was measured cannot be had back.")] = "",
) -> Response:
    """Delete a study and all that was measured. Exports stay."""
    found = await desk.status(name)
    if confirm != name:
        raise Problem(422, f"deleting asks for the name again: confirm must be {name}, but got {confirm[:100]!r}.")
    if found.state in ("queued", "running"):
        raise Problem(409, f"a study must be paused before it is deleted, but {name} is {found.state}.")
    await desk.record(request, "delete", name, {"measured": found.measured})
    try:
        await asyncio.to_thread(desk.store.delete if found.begun else desk.store.jobs.forget, name)
    except StoreError as e:
        raise Problem(409, str(e)) from e
    desk.fronts.forget(name)
    return Response(status_code=204)


@router.get(
    "/studies/{name}/front",
    response_class=Response,
    responses=_GONE | _FRONT,
)
async def front(
    desk: TheDesk,
    name: StudyName,
    everything: Annotated[bool, Query(alias="all", description="Every measured trial, baselines named.")] = False,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The JSON that `mergefront front STUDY --format json` prints. While a study runs it may be some trials behind."""
    try:
        known = await desk.fronts.get(name)
    except StoreError:
        await desk.status(name)  # 404, or a study that has not begun
        return Response(b"[]", media_type="application/json")
    headers = {"etag": f'"{known.tag}{"-all" * everything}"', "cache-control": "no-cache"}
    if if_none_match is not None and headers["etag"] in [t.strip() for t in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    body = known.reading.rows if everything else known.reading.front
    return Response(body, media_type="application/json", headers=headers)


@router.get("/studies/{name}/trials/{number}", response_model=TrialBody, responses=_GONE)
async def trial(desk: TheDesk, name: StudyName, number: Number) -> dict[str, Any]:
    """One trial: its row, its scores and parts on every split, and the reasons of attempts that failed."""
    if not (await desk.status(name)).begun:
        raise Problem(404, f"{name} has no trials yet.")
    known = await desk.fronts.get(name)
    rows = {row["trial"]: row for row in json.loads(known.reading.rows)}
    found = await asyncio.to_thread(_trial, desk.store, name, number)
    if not found["splits"] and not found["failures"]:
        raise Problem(404, f"the trial must be a measured or failed one of {name}, but got {number}.")
    return found | {"row": rows.get(number)}


async def _start(
    desk: TheDesk,
    name: StudyName,
    last_event_id: Annotated[str | None, Header(description="Where to begin; 0 is the study's beginning.")] = None,
) -> Position:
    """Where a listener begins; what is wrong with the request shows before the stream begins."""
    if desk.feeds.listeners >= _MOST_LISTENERS:
        raise Problem(503, f"at most {_MOST_LISTENERS} may listen.", headers={"retry-after": "30"})
    now = desk.feeds.position(name)
    if now is None:
        await desk.status(name)
    if last_event_id == "0":
        return Position()
    if last_event_id:
        return Position.parse(last_event_id)
    return await asyncio.to_thread(desk.store.position, name) if now is None else now


@router.get("/studies/{name}/events", response_class=Response, responses=_GONE | _STREAM)
async def events(desk: TheDesk, name: StudyName, start: Annotated[Position, Depends(_start)]) -> Response:
    """Server-sent events: `measured`, `failed`, `state`. With Last-Event-ID everything since then; else from now on."""
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(desk.feeds.follow(name, start), media_type="text/event-stream", headers=headers)


@router.get("/studies/{name}/report", response_class=Response, responses=_GONE | _HTML)
async def report(
    desk: TheDesk,
    name: StudyName,
    pick: Annotated[str | None, Query(min_length=1, max_length=1000, description="Which merge to put forward.")] = None,
    download: Annotated[bool, Query(description="To be kept as a file.")] = False,
) -> Response:
    """The page that `mergefront report` writes."""
    known = await desk.known(name)
    html = await desk.reader.run(reader.report_html, desk.settings.storage, name, known.revision, pick)
    headers = {"content-security-policy": _REPORT_POLICY}
    if download:
        headers["content-disposition"] = f'attachment; filename="{name}.html"'
    return Response(html, media_type="text/html", headers=headers)


@router.get("/studies/{name}/log", response_class=Response, responses=_GONE | _TEXT)
async def log(desk: TheDesk, name: StudyName, lines: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
    """The last lines of the study's log, as far as it was driven from here."""
    await desk.status(name)
    text = await asyncio.to_thread(desk.log_tail, name, lines)
    return Response(text, media_type="text/plain; charset=utf-8")


async def _checked(desk: Desk, request: Request, said: bytes) -> dict[str, Any]:
    """The study's spec after the preflight. Raises Problem: 409 for a name that is taken, 422 with what check says."""
    spec = await _parsed(desk, request, said)
    known = {s.name: s for s in await asyncio.to_thread(statuses, desk.store)}
    taken = known.get(spec["study"])
    if taken is not None and (taken.begun or taken.state in ("queued", "running")):
        raise Problem(409, f"study names must be unique in a database, but there is a study {taken.name!r} already.")
    await _preflight(desk, spec)
    return spec


async def _parsed(desk: Desk, request: Request, said: bytes) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and kind not in _YAML:
        raise Problem(415, f"a study must be application/json or application/yaml, but is {kind[:100] or 'neither'}.")
    try:
        text = said.decode()
    except UnicodeDecodeError as e:
        raise InputError(f"a study must be UTF-8, but {e}.") from e
    return await desk.reader.run(reader.parsed, desk.settings, text, kind == "application/json")


async def _preflight(desk: Desk, spec: dict[str, Any]) -> dict[str, Any]:
    report = await desk.checker.run(reader.preflight, spec)
    if report["problems"]:
        raise Problem(422, *report["problems"], warnings=report["warnings"])
    return report


async def _queue(desk: Desk, request: Request, study: str, kind: Any, wanted: Mapping[str, Any]) -> None:
    try:
        await asyncio.to_thread(desk.store.jobs.add, study, kind, wanted, caller_of(request).name)
    except StoreError as e:
        raise Problem(409, str(e)) from e
    desk.runner.wake()


def _check_resumable(found: Status, trials: int) -> None:
    if found.state in ("queued", "running"):
        raise Problem(409, f"only what stands still can be resumed, but {found.name} is {found.state}.")
    if found.state == "done" and not trials:
        raise Problem(409, f"{found.name} has all its {found.planned} trials; trials says how many more.")


def _pause(desk: Desk, found: Status) -> bool:
    store, job = desk.store, desk.store.jobs.latest().get(found.name)
    if job is not None and job.stage == "waiting" and store.jobs.withdraw(job.key):
        return True
    driver = store.driver(found.name) if found.begun else None
    return desk.runner.pause(job, driver)


def _trial(store: Store, name: str, number: int) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        measured = store.measured(name, split).get(number)
        if measured is not None:
            splits[split] = {
                "scores": {o: s.to_json() for o, s in measured.scores.items()},
                "parts": {o: {p: s.to_json() for p, s in parts.items()} for o, parts in measured.breakdown.items()},
                "seconds": dict(measured.seconds),
                "worker": measured.worker,
                "digest": measured.digest,
                "stopped": measured.stopped,
            }
    return {"trial": number, "splits": splits, "failures": store.failures(name).get(number, [])}


def _line(found: Status) -> dict[str, Any]:
    document = found.to_json()
    return {key: document[key] for key in SummaryBody.model_fields}
