"""Upload of an export to a repository on the Hugging Face hub, or on whatever ``HF_ENDPOINT`` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from optimizer.export import MANIFEST
from search_spaces.errors import InputError

_OF_THE_HUB = ".gitattributes"
_TROUBLE: Final = cast(
    "tuple[type[Exception], ...]", (HfHubHTTPError, *HfHubHTTPError.__bases__, RuntimeError, ValueError)
)
"""Of the hub, its HTTP client (which is another one in another version), its storage, and of a card that it refuses."""


class PushError(Exception):
    """The hub could not be had, or refused; what was exported is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository that may be filled: its URL, the commit that it is at and the files there."""

    name: str
    url: str
    commit: str | None
    files: frozenset[str]


def prepare(name: str, *, private: bool, overwrite: bool) -> Repository:
    """Make the repository or look at the one there is, before anything is merged.

    Args:
        name: ``OWNER/NAME``. private: make it so; one that is there must be so. overwrite: replace an earlier export.
    Raises: InputError without a token, for a name that is none, and where other things lie there; PushError where the
        hub cannot be had, or does not let this token write.
    """
    if name.count("/") != 1:
        raise InputError(f"--push-to-hub must read OWNER/NAME, but got {name!r}.")
    if get_token() is None:
        raise InputError(
            "an upload takes a token that may write, but there is none: set HF_TOKEN, or say `hf auth login`."
        )
    hub = HfApi()
    try:
        with _said(f"{name} cannot be prepared"):
            url = hub.create_repo(name, private=private or None, exist_ok=True)
            found = hub.model_info(name)
    except HFValidationError as e:
        raise InputError(f"--push-to-hub must name a repository: {e}") from e
    if private and not found.private:
        raise InputError(f"--private fills a private repository, but {name} exists and is public.")
    files = frozenset(s.rfilename for s in found.siblings or ()) - {_OF_THE_HUB}
    _check_content(name, files, overwrite=overwrite)
    return Repository(name=name, url=str(url), commit=found.sha, files=files)


def push(directory: Path, repository: Repository, *, title: str) -> None:
    """Upload a directory as one commit: the repository has all of it or, after an error, none.

    Raises: PushError where it cannot be done; the directory is kept.
    """
    files = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if path.is_file()}
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    deleted = [CommitOperationDelete(path_in_repo=name) for name in sorted(repository.files - set(files))]
    with _said(f"{directory} is written and kept, but was not uploaded to {repository.name}"):
        HfApi().create_commit(
            repository.name, [*added, *deleted], commit_message=title, parent_commit=repository.commit
        )


def _check_content(name: str, files: frozenset[str], *, overwrite: bool) -> None:
    if not files or (overwrite and MANIFEST in files):
        return
    shown = ", ".join(sorted(files)[:3]) + ", …" * (len(files) > 3)
    hint = "; it is an earlier export, which --overwrite replaces" if MANIFEST in files else ""
    raise InputError(f"the repository to fill must be new or empty, but {name} holds {shown}{hint}.")


@contextmanager
def _said(what: str) -> Iterator[None]:
    """What they say becomes PushError, in one line."""
    try:
        yield
    except HFValidationError:
        raise
    except _TROUBLE as e:
        said = str(e.__cause__ if isinstance(e, RuntimeError) and e.__cause__ else e)
        raise PushError(f"{what}: {' '.join(said.split())}") from e
