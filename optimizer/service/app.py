"""The service as an ASGI application."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp

from optimizer.service import exports, pages, problems, studies
from optimizer.service.desk import Desk, TheDesk
from optimizer.service.gate import COOKIE, Gate, address_of
from optimizer.service.metrics import StudyMetrics
from optimizer.service.settings import Settings
from optimizer.service.shapes import SessionAsked
from storage.store import Store

_HERE = Path(__file__).parent

_log = logging.getLogger(__name__)


def make_app(settings: Settings, store: Store) -> ASGIApp:
    """The application behind its gate. ``store`` stays the caller's to close."""

    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        desk = app.state.desk = Desk(settings, store)
        runner = asyncio.create_task(desk.runner.run())
        try:
            yield
        finally:
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner
            desk.close()

    app = FastAPI(
        title="mergefront",
        version=version("mergefront"),
        description="Searches merges of checkpoints: studies, their fronts, their exports.",
        docs_url=None,
        redoc_url=None,
        lifespan=alive,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,
    )
    problems.install(app)
    app.include_router(studies.router)
    app.include_router(exports.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=_HERE / "static"))
    gate = Gate(app, settings, store.access)
    _add_health(app)
    _add_session(app, gate)
    _describe(app)
    return gate


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": problems.ProblemBody}})
    async def readyz(desk: TheDesk) -> dict[str, str]:
        """The database answers too, and the roots are there."""
        await asyncio.to_thread(desk.store.access.any_token)
        gone = [root for root in desk.settings.roots if not root.is_dir()]
        if gone:
            raise problems.Problem(503, f"every root must be a directory, but {gone[0]} is none.")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(desk: TheDesk) -> Response:
        """For Prometheus."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StudyMetrics(desk.store, desk.fronts))
        text = await asyncio.to_thread(generate_latest, registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _add_session(app: FastAPI, gate: Gate) -> None:
    @app.post("/v1/session", status_code=204, response_class=Response)
    async def sign_in(request: Request, asked: SessionAsked) -> Response:
        """Keep a token in a cookie, for the pages; scripts and other sites do not get at it."""
        await gate.known(address_of(request), asked.token)
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, asked.token, httponly=True, samesite="strict", secure=secure)
        return response

    @app.delete("/v1/session", status_code=204, response_class=Response)
    async def sign_out() -> Response:
        """Forget it."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _describe(app: FastAPI) -> None:
    """OpenAPI with the bearer token, which the gate asks for and no handler knows of."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}, {}]
            for item in schema["paths"].values():
                for operation in item.values():
                    _name_problems(operation["responses"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way of changing it


def _name_problems(answers: dict[str, Any]) -> None:
    """FastAPI takes every model for application/json; the gate's answers may come from anywhere."""
    for code in (*_ANYWHERE, *(c for c in answers if c[0] in "45")):
        answers[code] = {
            "description": HTTPStatus(int(code)).phrase,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }


_ANYWHERE = ("400", "401", "403", "413", "422", "429", "503")
