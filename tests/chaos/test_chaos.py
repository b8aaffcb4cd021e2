"""The short version of `make chaos`: one kill of every kind, and one more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1800)  # minutes of real kills, more on a busy machine
def test_five_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    program = Path(__file__).parent / "chaos.py"
    command = [sys.executable, str(program), "--kills", "5", "--dir", str(tmp_path / "chaos")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "chaos" / "summary.json").read_text())
    assert sum(summary["kills"].values()) == 5
    assert set(summary["kills"]) == {"driver", "worker", "ray", "database"}
    for name in ("sqlite", "postgresql"):
        found = summary[name]
        assert found["measured"] + found["failed"] == found["planned"] > 10
        wrong = ("lost", "changed", "doubled", "corrupt", "unlike", "unfinished", "not paused")
        assert {book: found[book] for book in wrong} == dict.fromkeys(wrong, 0)
