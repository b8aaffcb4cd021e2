"""Which mergefront this is: two machines may have different ones installed, and their trials are not to be compared."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("search_spaces", "storage", "workers")
"""What a worker runs of it."""


@cache
def code_version() -> str:
    """The version, and a digest of the code that workers run: versions are the same while one is being worked on."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return f"mergefront {_version()} (code {digest.hexdigest()[:8]})"


def _version() -> str:
    try:
        return version("mergefront")
    except PackageNotFoundError:
        return "not installed"
