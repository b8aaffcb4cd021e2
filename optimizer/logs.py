"""What happened, one line an event: warnings on stderr, everything in the log file; as text or as JSON."""

import logging
import os
import sys
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

STUDY: ContextVar[str | None] = ContextVar("study", default=None)
"""The study that this process drives; every line names it."""

_OURS = ("optimizer", "workers", "storage", "search_spaces")
_handlers: list[logging.Handler] = []
_FILE_BYTES, _FILES_KEPT = 10_000_000, 3


def set_up(*, file: Path, as_json: bool) -> None:
    """Send our own events of level INFO to ``file``, warnings to stderr; with ``as_json`` all of them to both.

    The file is made when there is something to write. Other libraries' warnings go the same way.
    """
    kept = RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, delay=True, encoding="utf-8")
    shown = _Stderr()
    shown.setLevel(logging.INFO if as_json else logging.WARNING)
    kept.setFormatter(_json() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(place)s%(message)s"))
    shown.setFormatter(_json() if as_json else _Brief("%(levelname)s %(place)s%(message)s"))
    root = logging.getLogger()
    for handler in _handlers:
        root.removeHandler(handler)
        handler.close()
    _handlers[:] = [kept, shown]
    for handler in _handlers:
        handler.addFilter(_named)
        root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    sys.excepthook = _Unexpected(file)


def default_file() -> str:
    """``MERGEFRONT_LOG``, else ``mergefront.log`` in the working directory."""
    return os.environ.get("MERGEFRONT_LOG") or "mergefront.log"


class _Stderr(logging.StreamHandler[TextIO]):
    """Whatever stderr is when a line is written: a live view puts itself between, so that lines appear above it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """It is always stderr."""


class _Unexpected:
    """An exception of ours, not of the user's: one line on stderr, the traceback in the log file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logging.getLogger(__name__).critical(
            "internal error, %s: %s (traceback in %s)", kind.__name__, error, self._file, exc_info=(kind, error, trace)
        )


class _Brief(logging.Formatter):
    """Without tracebacks: those are for the file."""

    def formatException(self, ei: object) -> str:  # noqa: N802 (logging's own name)
        return ""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None
        return super().format(record).rstrip()


def _json() -> logging.Formatter:
    return JsonFormatter(
        ["asctime", "levelname", "study", "trial", "message"],
        rename_fields={"asctime": "time", "levelname": "level", "message": "event"},
        reserved_attrs=[*RESERVED_ATTRS, "place"],
        json_ensure_ascii=False,
    )


def _named(record: logging.LogRecord) -> bool:
    """Every line says which study, and which trial where it is about one."""
    study, trial = getattr(record, "study", None) or STUDY.get(), getattr(record, "trial", None)
    record.study, record.trial = study, trial
    named = [f"{key}={value}" for key, value in (("study", study), ("trial", trial)) if value is not None]
    record.place = " ".join(named) + " " * bool(named)
    return True
