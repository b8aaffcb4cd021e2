"""What is answered where something is wrong: one JSON form (RFC 9457), its sentences those of the command line."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from optimizer.patience import UNREACHABLE, first_line
from search_spaces.errors import InputError

_log = logging.getLogger(__name__)


class ProblemBody(BaseModel):
    """A problem. ``problems`` has one sentence each, the same as ``mergefront check`` prints."""

    title: str
    status: int
    detail: str
    problems: list[str] = []
    warnings: list[str] = []


class Problem(Exception):  # noqa: N818 (RFC 9457's word)
    """Ends a request with a status and what is wrong, a sentence each."""

    def __init__(
        self,
        status: int,
        *problems: str,
        warnings: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(*problems)
        self.status = status
        self.problems = problems
        self.warnings = tuple(warnings)
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer."""
        body = ProblemBody(
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.problems[0] if self.problems else "",
            problems=list(self.problems),
            warnings=list(self.warnings),
        )
        return JSONResponse(body.model_dump(), self.status, headers=self.headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Have every error answered in this form."""

    @app.exception_handler(Problem)
    def _problem(_request: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(InputError)
    def _input(_request: Request, error: InputError) -> JSONResponse:
        return Problem(422, *str(error).split("\n")).response()

    @app.exception_handler(RequestValidationError)
    def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return Problem(422, *map(_sentence, error.errors()[:20])).response()

    @app.exception_handler(HTTPException)
    def _http(_request: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, str(error.detail), headers=error.headers).response()

    for kind in UNREACHABLE:
        app.add_exception_handler(kind, _away)
    app.add_exception_handler(Exception, _ours)


def _away(_request: Request, error: Exception) -> JSONResponse:
    _log.warning("the database is out of reach: %s", first_line(error))
    return Problem(503, "the database must be in reach, but it is not at the moment.").response()


def _ours(_request: Request, _error: Exception) -> JSONResponse:
    return Problem(500, "an internal error; its traceback is in the service's log.").response()


def _sentence(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    rule = str(error["msg"]).removeprefix("Input should ").removeprefix("Value error, ").rstrip(".")
    return f"{place}: {rule}, but got {str(error.get('input'))[:100]!r}."
