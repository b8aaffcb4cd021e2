"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write beside the place and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
