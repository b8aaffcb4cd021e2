"""The service as a process: its study is one of its own, and goes on without it."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from storage.store import Store

Start = Callable[..., Any]


def listen(url: str, after: str, until: Callable[[list[dict[str, Any]], dict[str, Any]], bool]) -> tuple[str, Any, Any]:
    """Server-sent events until they are enough: the last id, the measured trials, the last state."""
    trials: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    last, name = after, ""
    headers = {"last-event-id": after} if after else {}
    with httpx2.stream("GET", f"{url}/v1/studies/tiny/events", headers=headers, timeout=240) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            kind, _, text = line.partition(": ")
            if kind == "event":
                name = text
            elif kind == "id":
                last = text
            elif kind == "data":
                trials += [json.loads(text)] if name == "measured" else []
                state = json.loads(text) if name == "state" else state
            elif not line and until(trials, state):
                return last, trials, state
    return last, trials, state


@pytest.fixture
def root(study_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A directory with a study of more trials than are ever run, its models in it."""
    study_file(search={"trials": 3000, "sampler": "random"})
    target = (tmp_path / "models").resolve()
    (tmp_path / "models").unlink()
    shutil.copytree(target, tmp_path / "models")
    return tmp_path


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, storage: str) -> str:
    return storage if request.param == "sqlite" else str(request.getfixturevalue("postgresql_url"))


def test_a_restart_in_mid_study_loses_nothing_and_listeners_catch_up(root: Path, database: str, start: Start) -> None:
    first = start(root, database)
    body, kind = (root / "study.yaml").read_bytes(), {"content-type": "application/yaml"}
    assert first.post("/v1/studies", content=body, headers=kind).status_code == 201
    again = first.post("/v1/studies", content=body.replace(b"study: tiny", b"study: next"), headers=kind)
    assert again.status_code == 201
    last, seen, state = listen(first.url, "0", lambda trials, _: len(trials) >= 5)
    driver = state["driver"]
    assert driver
    assert first.get("/v1/studies/next").json()["state"] == "queued", "one study runs at a time"
    assert first.stop() == 0
    process = psutil.Process(int(driver.rpartition(":")[2]))
    assert process.is_running(), "the study goes on without the service"
    measured = Store.open(database)
    before = len(measured.measured("tiny"))
    while len(measured.measured("tiny")) < before + 5:
        time.sleep(0.2)

    second = start(root, database)
    found = second.get("/v1/studies/tiny").json()
    assert (found["state"], found["driver"]) == ("running", driver)
    (worker,) = found["workers"]
    assert worker["doing"] == "idle" or worker["doing"].startswith("trial ")
    assert worker["measured"] >= 5
    last, missed, _ = listen(second.url, last, lambda trials, state: len(trials) >= 10 and bool(state))
    assert second.post("/v1/studies/tiny/pause").status_code == 202
    _, rest, state = listen(second.url, last, lambda _, state: state.get("state") == "paused")
    told = [e["trial"] for e in [*seen, *missed, *rest]]
    assert sorted(told) == sorted(measured.measured("tiny")), "every trial is told once"
    assert (state["state"], state["workers"][0]["doing"]) == ("paused", None)

    asked = second.post("/v1/studies/tiny/exports", json={"trial": 3, "out": "exported"})
    export = asked.headers["location"]
    deadline = time.monotonic() + 120
    while second.get("/v1/studies/next").json()["state"] == "queued":
        assert time.monotonic() < deadline, "the next in the queue begins when there is room"
        time.sleep(0.5)
    assert second.post("/v1/studies/next/pause").status_code == 202
    while second.get("/v1/studies/next").json()["state"] == "running" or second.get(export).json()["ended"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert second.get(export).json()["state"] == "done"
    assert json.loads((root / "exported" / "merge_recipe.json").read_text())["trial"] == 3
    measured.close()


def test_the_command_line_refuses_what_would_be_open_to_others(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer import cli

    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "a service that other machines can reach needs tokens" in capsys.readouterr().err
    assert cli.main(["serve", "--root", str(tmp_path / "nowhere")]) == 2
    assert "--root must be a directory" in capsys.readouterr().err
    assert cli.main(["serve", "--at-once", "0"]) == 2


def test_tokens_are_made_listed_and_revoked(
    storage: str, root: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer import cli

    assert cli.main(["token", "create", "ci", "--role", "operator"]) == 0
    token = capsys.readouterr().out.strip()
    service = start(root, storage)
    assert service.get("/v1/studies").status_code == 401
    headers = {"authorization": f"Bearer {token}"}
    assert service.get("/v1/studies", headers=headers).status_code == 200
    assert cli.main(["token", "list"]) == 0
    listed = capsys.readouterr().out
    assert "ci" in listed
    assert token not in listed
    assert cli.main(["token", "revoke", "ci"]) == 0
    assert service.get("/v1/studies", headers=headers).status_code == 401
    assert cli.main(["token", "revoke", "ci"]) == 2
    assert cli.main(["token", "create", "ci"]) == 2
    assert "token names must be unique" in capsys.readouterr().err
