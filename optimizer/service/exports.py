"""``/v1/studies/{name}/exports``: a trial's merge as a model directory, written by a process of its own."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from starlette.responses import Response

from optimizer.service import reader
from optimizer.service.desk import TheDesk, caller_of
from optimizer.service.problems import Problem, ProblemBody
from optimizer.service.screen import inside
from optimizer.service.shapes import ExportAsked, ExportBody, StudyName, export_body
from storage.access import Answer
from storage.errors import StoreError

_RESPONSES: dict[int | str, dict[str, Any]] = {code: {"model": ProblemBody} for code in (404, 409)}

router = APIRouter(prefix="/v1/studies/{name}/exports", responses=_RESPONSES)

Key = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]


@router.post("", status_code=202, response_model=ExportBody)
async def export(
    desk: TheDesk,
    request: Request,
    name: StudyName,
    asked: ExportAsked,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Have a trial written to a directory below the roots, which appears whole or not at all."""

    async def act() -> tuple[Answer, Mapping[str, str]]:
        if not (await desk.status(name)).begun:
            raise Problem(409, f"{name} has no trials to export yet.")
        out = str(await asyncio.to_thread(inside, desk.settings, asked.out))
        revision = await desk.fronts.revision(name)
        url = desk.settings.storage
        trial = await desk.reader.run(reader.to_export, url, name, revision, asked.trial, asked.pick, out)
        wanted = {"trial": trial, "out": out}
        await desk.record(request, "export", name, wanted)
        job = await asyncio.to_thread(desk.store.jobs.add, name, "export", wanted, caller_of(request).name)
        desk.runner.wake()
        location = f"/v1/studies/{name}/exports/{job.key}"
        return Answer(status=202, body=export_body(job)), {"location": location}

    return await desk.once(request, asked.model_dump_json().encode(), act)


@router.get("/{key}", response_model=ExportBody)
async def exported(desk: TheDesk, name: StudyName, key: Key) -> dict[str, Any]:
    """How far an export is."""
    try:
        job = await asyncio.to_thread(desk.store.jobs.get, key)
    except StoreError as e:
        raise Problem(404, str(e)) from e
    if job.kind != "export" or job.study != name:
        raise Problem(404, f"the export must be one of {name}, but got {key}.")
    return export_body(job)
