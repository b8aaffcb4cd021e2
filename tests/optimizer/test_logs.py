"""One line an event, with its study and trial; tracebacks in the file alone."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer import logs


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    hook = sys.excepthook
    yield
    sys.excepthook = hook
    for handler in logs._handlers:
        logging.getLogger().removeHandler(handler)
        handler.close()
    logs._handlers.clear()


def say() -> None:
    named = logs.STUDY.set("mine")
    logging.getLogger("optimizer.study").info("measured", extra={"trial": 4, "seconds": {"merge": 0.5}})
    logging.getLogger("workers.ray_pool").warning("its worker died", extra={"trial": 5})
    logging.getLogger("elsewhere").info("chatter")
    logs.STUDY.reset(named)


def test_text_has_warnings_on_stderr_and_everything_of_ours_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(file=tmp_path / "x.log", as_json=False)
    say()
    assert capsys.readouterr().err == "WARNING study=mine trial=5 its worker died\n"
    first, second = (tmp_path / "x.log").read_text().splitlines()
    assert first.endswith("INFO study=mine trial=4 measured")
    assert second.endswith("WARNING study=mine trial=5 its worker died")


def test_json_has_one_object_an_event_on_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(file=tmp_path / "x.log", as_json=True)
    say()
    shown = capsys.readouterr().err
    assert shown == (tmp_path / "x.log").read_text()
    first, second = map(json.loads, shown.splitlines())
    assert (first["study"], first["trial"], first["event"], first["level"]) == ("mine", 4, "measured", "INFO")
    assert first["seconds"] == {"merge": 0.5}
    assert (second["trial"], second["event"]) == (5, "its worker died")


def test_nothing_to_say_makes_no_file(tmp_path: Path) -> None:
    logs.set_up(file=tmp_path / "x.log", as_json=False)
    assert not (tmp_path / "x.log").exists()


def test_an_error_of_ours_is_one_line_on_stderr_and_a_traceback_in_the_file(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from optimizer import logs; "
        f"logs.set_up(file=Path({str(tmp_path / 'x.log')!r}), as_json=False); {{}}['missing']"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"CRITICAL internal error, KeyError: 'missing' (traceback in {tmp_path}/x.log)\n"
    assert "Traceback (most recent call last)" in (tmp_path / "x.log").read_text()
