"""The API of studies and exports, with the processes beside the service but without a driver of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from optimizer.service.runner import Runner
from storage.jobs import PAUSED
from storage.lease import Holder
from storage.store import Store

MERGEFRONT = Path(sys.executable).parent / "mergefront"
YAML = {"content-type": "application/yaml"}


@pytest.fixture(autouse=True)
def _nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs wait: what a job's process does is tested where one runs."""
    monkeypatch.setattr(Runner, "look", lambda self: None)


@pytest.fixture
def body(study_file: Callable[..., Path], tmp_path: Path) -> bytes:
    """A study file; the models are copied below the root, for links out of it are refused."""
    path = study_file()
    _copy_models(tmp_path)
    return path.read_bytes()


def _copy_models(root: Path) -> None:
    import shutil

    target = (root / "models").resolve()
    (root / "models").unlink()
    shutil.copytree(target, root / "models")


@pytest.fixture
def finished(measured: Store) -> Store:
    """The study ``tiny`` with all its eight trials."""
    measured.set_planned("tiny", 8)
    return measured


def detail(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["detail"])


def test_a_study_is_checked_queued_and_not_queued_twice(client: TestClient, body: bytes, store: Store) -> None:
    first = client.post("/v1/studies?trials=9", content=body, headers=YAML)
    assert first.status_code == 201, first.text
    assert first.headers["location"] == "/v1/studies/tiny"
    assert (first.json()["state"], first.json()["planned"]) == ("queued", 9)
    assert client.get("/v1/studies/tiny").json() == first.json()
    assert client.get("/v1/studies?state=queued").json()["studies"][0]["name"] == "tiny"
    assert client.get("/v1/studies?state=running").json()["studies"] == []
    assert client.get("/v1/studies/tiny/front").json() == []
    assert "there is a study 'tiny' already" in detail(client.post("/v1/studies", content=body, headers=YAML), 409)
    (job,) = store.jobs.waiting()
    assert job.request["spec"]["base"].startswith("/")
    assert [(e.action, e.about) for e in store.access.audit()] == [("launch", "tiny")]


def test_json_and_yaml_are_the_same_study(client: TestClient, body: bytes, store: Store) -> None:
    as_json = json.dumps(yaml.safe_load(body) | {"study": "other"})
    assert client.post("/v1/studies", content=body, headers=YAML).status_code == 201
    kind = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/v1/studies", content=as_json, headers=kind).status_code == 201
    first, second = (job.request["spec"] for job in store.jobs.waiting())
    assert first | {"study": ""} == second | {"study": ""}


def test_what_check_finds_is_what_422_says(client: TestClient, body: bytes, tmp_path: Path, store: Store) -> None:
    (tmp_path / "models" / "beta" / "model.safetensors").unlink()
    done = subprocess.run([MERGEFRONT, "check", tmp_path / "study.yaml"], capture_output=True, text=True, check=False)
    said = [line.removeprefix("problem: ") for line in done.stderr.splitlines() if line.startswith("problem: ")]
    assert said
    for path in ("/v1/studies", "/v1/checks"):
        response = client.post(path, content=body, headers=YAML)
        assert response.status_code == 422
        assert response.json()["problems"] == said
    assert store.jobs.waiting() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objectives": []}, "objectives must have at least 1 entries, but has 0."),
        ({"colour": "red"}, "keys must be known, but colour is not"),
        ({"search": {"sampler": "random", "trials": 0}}, "search.trials must be greater than 0"),
    ],
)
def test_a_study_file_that_is_wrong_is_told_with_its_line(
    client: TestClient, body: bytes, change: dict[str, Any], said: str
) -> None:
    wrong = yaml.safe_dump(yaml.safe_load(body) | change, sort_keys=False).encode()
    response = client.post("/v1/studies", content=wrong, headers=YAML)
    assert said in detail(response, 422)
    assert response.json()["detail"].startswith("the study, line ")


def test_a_check_begins_nothing(client: TestClient, body: bytes, store: Store) -> None:
    found = client.post("/v1/checks", content=body, headers=YAML)
    assert found.status_code == 200
    assert "a trial" in found.json()["facts"]
    assert (store.jobs.waiting(), store.access.audit()) == ([], [])


def test_a_request_that_is_sent_again_is_done_once(client: TestClient, body: bytes, store: Store) -> None:
    headers = YAML | {"idempotency-key": "k-1"}
    first = client.post("/v1/studies", content=body, headers=headers)
    again = client.post("/v1/studies", content=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert len(store.jobs.waiting()) == 1
    other = client.post("/v1/studies", content=body + b"\n", headers=headers)
    assert "belongs to one request" in detail(other, 422)


def test_a_refused_request_may_be_sent_again_with_its_key(client: TestClient, finished: Store) -> None:
    headers = {"idempotency-key": "k-2"}
    assert client.post("/v1/studies/tiny/resume", headers=headers).status_code == 409
    assert client.post("/v1/studies/tiny/resume", headers=headers).status_code == 409
    finished.set_planned("tiny", 12)
    assert client.post("/v1/studies/tiny/resume", headers=headers).status_code == 202


def test_the_front_is_what_the_command_line_prints(client: TestClient, finished: Store) -> None:
    for path, options in (("front", []), ("front?all=true", ["--all"])):
        printed = subprocess.run(
            [MERGEFRONT, "front", "tiny", "--format", "json", *options], capture_output=True, check=True
        ).stdout
        assert client.get(f"/v1/studies/tiny/{path}").content == printed


def test_a_front_that_is_known_is_not_sent_again(client: TestClient, finished: Store) -> None:
    first = client.get("/v1/studies/tiny/front")
    tag = first.headers["etag"]
    again = client.get("/v1/studies/tiny/front", headers={"if-none-match": f'"x", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/v1/studies/tiny/front?all=true").headers["etag"] != tag
    failed = finished.measured("tiny")[3]
    with finished._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM mergefront_evaluation WHERE number = 3")
    time.sleep(0.3)
    changed = client.get("/v1/studies/tiny/front?all=true", headers={"if-none-match": tag})
    assert changed.status_code == 200
    assert failed.number not in {r["trial"] for r in changed.json()}


def test_a_trial_is_told_with_its_splits_and_failures(client: TestClient, finished: Store) -> None:
    found = client.get("/v1/studies/tiny/trials/2").json()
    assert found["row"]["trial"] == 2
    assert set(found["splits"]) == {"search"}
    assert found["splits"]["search"]["scores"] == found["row"]["objectives"]
    assert "must be a measured or failed one of tiny, but got 99" in detail(
        client.get("/v1/studies/tiny/trials/99"), 404
    )


def test_studies_come_a_page_at_a_time(client: TestClient, store: Store) -> None:
    for i in range(5):
        store.jobs.add(f"s{i}", "launch", {"trials": 3, "spec": {}}, "me")
    seen, after = [], ""
    while True:
        page = client.get(f"/v1/studies?limit=2{after}").json()
        seen += [s["name"] for s in page["studies"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == [f"s{i}" for i in range(5)]
    assert client.get("/v1/studies?after=nobody").status_code == 422
    assert client.get("/v1/studies?limit=0").status_code == 422


def test_a_queued_study_leaves_the_queue_when_it_is_paused_and_comes_back(client: TestClient, body: bytes) -> None:
    client.post("/v1/studies", content=body, headers=YAML)
    assert client.post("/v1/studies/tiny/pause").json()["state"] == "paused"
    assert "only what is queued or running can be paused" in detail(client.post("/v1/studies/tiny/pause"), 409)
    back = client.post("/v1/studies/tiny/resume", json={"trials": 4})
    assert (back.status_code, back.json()["state"], back.json()["planned"]) == (202, "queued", 12)


def test_a_paused_study_is_resumed_with_more_trials(client: TestClient, measured: Store) -> None:
    assert client.get("/v1/studies/tiny").json()["state"] == "paused"
    resumed = client.post("/v1/studies/tiny/resume", json={"trials": 5})
    assert (resumed.status_code, resumed.json()["state"]) == (202, "queued")
    (job,) = measured.jobs.waiting()
    assert (job.kind, job.request) == ("resume", {"trials": 5})
    assert "only what stands still can be resumed" in detail(client.post("/v1/studies/tiny/resume"), 409)


def test_a_finished_study_is_resumed_with_more_trials_only(client: TestClient, finished: Store) -> None:
    assert client.get("/v1/studies/tiny").json()["state"] == "done"
    assert "has all its 8 trials" in detail(client.post("/v1/studies/tiny/resume"), 409)
    for wrong in ({"trials": -1}, {"trials": "5"}, {"tries": 5}):
        assert client.post("/v1/studies/tiny/resume", json=wrong).status_code == 422


@pytest.fixture
def driver(measured: Store) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the study and ends well on SIGTERM."""
    code = (
        "import sys, signal; from storage.store import Store; from storage.lease import Holder\n"
        f"store = Store.open({measured._url.render_as_string()!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (store.release('tiny'), sys.exit(130)))\n"
        "store.hold('tiny', Holder.me()); print('held', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_study_that_the_command_line_drives_is_paused_too(client: TestClient, driver: Any) -> None:
    assert client.get("/v1/studies/tiny").json()["state"] == "running"
    assert client.post("/v1/studies/tiny/resume").status_code == 409
    assert client.delete("/v1/studies/tiny?confirm=tiny").status_code == 409
    assert client.post("/v1/studies/tiny/pause").status_code == 202
    assert driver.wait(30) == PAUSED
    assert client.get("/v1/studies/tiny").json()["state"] == "paused"


def test_a_driver_that_was_killed_shows_as_failed_and_is_not_the_end(client: TestClient, driver: Any) -> None:
    driver.kill()
    driver.wait()
    found = client.get("/v1/studies/tiny").json()
    assert found["state"] == "failed"
    assert "ended without a word" in found["reason"]
    assert client.post("/v1/studies/tiny/resume").status_code == 202


def test_a_study_on_another_machine_is_not_paused_from_here(client: TestClient, measured: Store) -> None:
    measured.hold("tiny", Holder(host="elsewhere", pid=1, started=1.0))
    said = detail(client.post("/v1/studies/tiny/pause"), 409)
    assert "tiny runs on another machine, elsewhere:1" in said


def test_deleting_asks_for_the_name_again(client: TestClient, measured: Store) -> None:
    for wrong in ("", "?confirm=", "?confirm=Tiny", "?confirm=other"):
        assert "asks for the name again" in detail(client.delete(f"/v1/studies/tiny{wrong}"), 422)
    assert client.delete("/v1/studies/tiny?confirm=tiny").status_code == 204
    assert client.get("/v1/studies/tiny").status_code == 404
    assert client.get("/v1/studies/tiny/front").status_code == 404
    assert [e.action for e in measured.access.audit()] == ["delete"]


def test_an_export_is_queued_for_the_trial_that_its_pick_chooses(client: TestClient, finished: Store) -> None:
    url = "/v1/studies/tiny/exports"
    asked = client.post(url, json={"pick": "max general", "out": "out/model"})
    assert asked.status_code == 202, asked.text
    found = asked.json()
    best = max(client.get("/v1/studies/tiny/front").json(), key=lambda r: r["posterior"]["general"]["mean"])
    assert found["trial"] == best["trial"]
    assert found["state"] == "queued"
    assert client.get(asked.headers["location"]).json() == found
    finished.jobs.claim(found["id"], Holder.me())
    finished.jobs.report(found["id"], "writing tensors", 3, 9)
    at_work = client.get(asked.headers["location"]).json()
    assert (at_work["state"], at_work["progress"]) == ("running", {"stage": "writing tensors", "done": 3, "total": 9})
    finished.jobs.end(found["id"], 1, "the disk ran full")
    ended = client.get(asked.headers["location"]).json()
    assert (ended["state"], ended["reason"]) == ("failed", "the disk ran full")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"trial": 99, "out": "x"}, "the trial must be a measured one"),
        ({"pick": "best", "out": "x"}, "--pick must read like"),
        ({"pick": "max safety where safety >= 2", "out": "x"}, "a trial must meet"),
        ({"trial": 1, "out": "/etc/x"}, "below the service's roots"),
        ({"trial": 1, "out": "../x"}, "below the service's roots"),
        ({"trial": 1, "out": "suites"}, "the directory to write must not exist"),
        ({"out": "x"}, "either trial or pick"),
        ({"trial": 1, "pick": "max safety", "out": "x"}, "either trial or pick"),
    ],
)
def test_an_export_that_cannot_be_is_refused_at_once(
    client: TestClient, finished: Store, asked: dict[str, Any], said: str
) -> None:
    assert said in detail(client.post("/v1/studies/tiny/exports", json=asked), 422)
    assert finished.jobs.waiting() == []


def test_metrics_are_what_prometheus_reads(client: TestClient, finished: Store) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client.get("/v1/studies/tiny/front")
    found = {
        (s.name, s.labels.get("state") or s.labels.get("stage")): s.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for s in family.samples
    }
    assert found["mergefront_trials", "measured"] == 8
    assert found["mergefront_studies", "done"] == 1
    assert found["mergefront_failures_total", None] == 0
    seconds = sum(m.seconds["forward"] for m in finished.measured("tiny").values())
    assert found["mergefront_stage_seconds_total", "forward"] == pytest.approx(seconds)
    assert found["mergefront_workers_busy", None] == 0
    assert ("mergefront_hypervolume", None) in found
