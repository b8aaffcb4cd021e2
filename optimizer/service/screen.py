"""What a study that arrives over the network may name: paths below the roots; code and judges where allowed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from optimizer.service.settings import Settings
from search_spaces.errors import InputError

_CODE = "python:"


def inside(settings: Settings, text: str) -> Path:
    """The path that a text names, every link resolved; relative ones start from the first root.

    Raises: InputError where it does not lie below a root. What is there is not looked at before that is known.
    """
    try:
        path = (settings.roots[0] / Path(text).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a null character
        raise InputError(f"a path must be one that this system takes, but got {text[:200]!r}.") from None
    if not any(path.is_relative_to(root) for root in settings.roots):
        shown = ", ".join(map(str, settings.roots))
        raise InputError(f"paths must lie below the service's roots ({shown}), but {text[:200]} does not.")
    return path


def screened(settings: Settings, document: dict[str, Any]) -> dict[str, Any]:
    """A study's document with the links in its paths resolved, or InputError for what it may not name here."""
    if not settings.allow_code:
        _refuse_code(document)
    _refuse_judges(settings, document)
    found = _walk(settings, document)
    assert isinstance(found, dict)
    return found


def _walk(settings: Settings, value: Any) -> Any:
    """Every text that is a path, wherever it stands: scorers and tasks have options of their own."""
    if isinstance(value, dict):
        return {key: _walk(settings, child) for key, child in value.items()}
    if isinstance(value, list):
        return [_walk(settings, child) for child in value]
    if isinstance(value, str) and _is_path(value):
        return str(inside(settings, value))
    return value


def _is_path(text: str) -> bool:
    """Absolute, of somebody's home, or leading upwards; names and hub ids are none of these."""
    return text.startswith(("/", "~")) or ".." in text.split("/")


def _refuse_code(document: Mapping[str, Any]) -> None:
    workers = document.get("workers")
    if isinstance(workers, dict) and workers.get("trust_remote_code"):
        raise InputError("workers.trust_remote_code runs a model's code, which takes `mergefront serve --allow-code`.")
    for suite in _suites(document):
        scorer = suite.get("scorer")
        if isinstance(scorer, str) and scorer.startswith(_CODE):
            raise InputError(f"the scorer {scorer[:200]} is code, which takes `mergefront serve --allow-code`.")


def _refuse_judges(settings: Settings, document: Mapping[str, Any]) -> None:
    """A judge gets items, answers and a key from the environment: only where the operator of the service said so."""
    for suite in _suites(document):
        url = suite.get("url")
        if url is not None and not any(_begins(str(url), allowed) for allowed in settings.judges):
            raise InputError(f"a judge must be one of `mergefront serve --allow-judge URL`, but got {str(url)[:200]}.")


def _begins(url: str, allowed: str) -> bool:
    """Same scheme, host and port, and a path below; texts alone would take judge.evil.example for judge."""
    asked, known = urlsplit(url), urlsplit(allowed)
    below = f"{known.path.rstrip('/')}/"
    same = (asked.scheme, asked.netloc) == (known.scheme, known.netloc)
    return same and f"{asked.path}/".startswith(below) and ".." not in asked.path


def _suites(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    objectives = document.get("objectives")
    for objective in objectives if isinstance(objectives, list) else []:
        suites = objective.get("suites") if isinstance(objective, dict) else None
        yield from (s for s in (suites if isinstance(suites, list) else []) if isinstance(s, dict))
