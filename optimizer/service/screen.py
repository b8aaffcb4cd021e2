"""What a study that arrives over the network may name: paths below the roots; code and URLs where allowed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from optimizer.service.settings import Settings
from search_spaces.errors import InputError
from storage.checkpoints import HUB

_CODE = "python:"
_PROSE = frozenset({"rubric", "template", "doc_to_text", "doc_to_target", "description"})
"""Keys of texts that are read by models: what looks like a path or a URL in them is neither."""


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
    found = _walk(settings, "", document)
    assert isinstance(found, dict)
    return found


def _walk(settings: Settings, key: str, value: Any) -> Any:
    """Every text that is a path or a URL, wherever it stands: scorers and tasks have options of their own."""
    if isinstance(value, dict):
        return {name: _walk(settings, str(name), child) for name, child in value.items()}
    if isinstance(value, list):
        return [_walk(settings, key, child) for child in value]
    if not isinstance(value, str) or key in _PROSE:
        return value
    if "://" in value:
        _check_url(settings, value)
        return value
    return str(inside(settings, value)) if _is_path(value) else value


def _is_path(text: str) -> bool:
    """Absolute, of somebody's home, or leading upwards; names and hub ids are none of these."""
    return text.startswith(("/", "~")) or ".." in text.split("/")


def _check_url(settings: Settings, url: str) -> None:
    """The service would fetch it with its own credentials, or send it items, answers and a key of its environment.

    What lies on the Hugging Face hub is no more than a hub id can name.
    """
    if url.startswith(HUB) and "::" not in url:
        return
    if not any(_begins(url, allowed) for allowed in settings.urls):
        raise InputError(f"a URL must be one of `mergefront serve --allow-url URL`, but got {url[:200]}.")


def _refuse_code(document: Mapping[str, Any]) -> None:
    workers = document.get("workers")
    if isinstance(workers, dict) and workers.get("trust_remote_code"):
        raise InputError("workers.trust_remote_code runs a model's code, which takes `mergefront serve --allow-code`.")
    for suite in _suites(document):
        scorer = suite.get("scorer")
        if isinstance(scorer, str) and scorer.startswith(_CODE):
            raise InputError(f"the scorer {scorer[:200]} is code, which takes `mergefront serve --allow-code`.")


def _begins(url: str, allowed: str) -> bool:
    """Same scheme, host and port, and a path below; texts alone would take judge.evil.example for judge."""
    asked, known = urlsplit(url), urlsplit(allowed)
    below = f"{known.path.rstrip('/')}/"
    same = (asked.scheme, asked.netloc) == (known.scheme, known.netloc)
    return same and f"{asked.path}/".startswith(below) and not any(odd in asked.path for odd in ("..", "%", "::"))


def _suites(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    objectives = document.get("objectives")
    for objective in objectives if isinstance(objectives, list) else []:
        suites = objective.get("suites") if isinstance(objective, dict) else None
        yield from (s for s in (suites if isinstance(suites, list) else []) if isinstance(s, dict))
