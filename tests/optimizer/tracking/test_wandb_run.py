"""A study told to wandb: offline, read back from its files; online, against a server that keeps what it gets."""

import base64
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from optimizer import api
from optimizer.cli import main
from optimizer.tracking.story import about
from search_spaces.errors import InputError
from storage.lease import Holder
from storage.store import Store
from tests.optimizer.tracking.conftest import LOOK

wandb = pytest.importorskip("wandb", reason="wandb is missing: pip install --group dev")
from wandb.proto.wandb_internal_pb2 import Record  # noqa: E402 (skipped before where it is not installed)

KEY = "5ecret" * 7
MERGEFRONT = Path(sys.executable).parent / "mergefront"


class Service(ThreadingHTTPServer):
    """One run, as W&B keeps it: lines of history by their place, a summary, and artifacts' files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.run: dict[str, Any] = {}
        self.history: list[str] = []
        self.summary: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: list[tuple[str, str]] = []
        self.sent = ""
        self.tokens: set[str | None] = set()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]

    def handle_error(self, *_: Any) -> None:
        """A client that was killed."""


class _Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        service, answer = self.server, {}
        if self.path.startswith("/up/"):
            service.files[self.path.removeprefix("/up/")] = body
        else:
            service.tokens.add(self.headers.get("Authorization"))
            service.sent += body.decode()
            answer = self._stream(json.loads(body)) if "file_stream" in self.path else self._graphql(json.loads(body))
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_PUT = do_POST  # noqa: N815 (http.server calls it so)

    def _stream(self, body: dict[str, Any]) -> dict[str, Any]:
        files = body.get("files") or {}
        if lines := files.get("wandb-history.jsonl"):
            self.server.history[lines["offset"] :] = lines["content"]
        if summary := files.get("wandb-summary.json"):
            self.server.summary = json.loads(summary["content"][-1])
        return {}

    def _graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        variables = body.get("variables") or {}
        answer = _ANSWERS.get(body.get("operationName") or "", lambda _service, _variables: {"project": None})
        return {"data": answer(self.server, variables)}


def _upserted(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    service.run |= {name: value for name, value in asked.items() if value is not None}
    project = {"id": "p", "name": asked["project"], "entity": {"id": "e", "name": "someone"}}
    bucket = {"id": "r", "name": asked["name"], "config": "{}", "project": project}
    return {"upsertBucket": {"bucket": bucket, "inserted": not service.history}}


def _resumed(service: Service, _asked: dict[str, Any]) -> dict[str, Any]:
    entity = {"id": "e", "name": "someone"}
    if not service.run:
        return {"model": {"id": "p", "name": "p", "entity": entity, "bucket": None}}
    bucket = {
        "id": "r",
        "name": service.run["name"],
        "displayName": "tiny",
        "tags": [],
        "notes": None,
        "logLineCount": 0,
        "eventsLineCount": 0,
        "historyLineCount": len(service.history),
        "historyTail": json.dumps(service.history[-1:]),
        "eventsTail": "[]",
        "config": service.run["config"],
        "wandbConfig": '{"t": 1}',
        "summaryMetrics": json.dumps(service.summary),
    }
    return {"model": {"id": "p", "name": "p", "entity": entity, "bucket": bucket}}


def _artifact(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    wanted = asked["input"]
    service.artifacts.append((wanted["artifactCollectionName"], wanted["digest"]))
    number = str(len(service.artifacts))
    made = {"id": number, "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
    return {"createArtifact": {"artifact": made}}


def _place(service: Service, name: str) -> dict[str, Any]:
    return {"id": "f", "name": name, "displayName": name, "uploadUrl": f"{service.url}/up/{name}", "uploadHeaders": []}


def _artifact_files(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    nodes = [
        _place(service, file["name"]) | {"storagePath": "x", "uploadMultipartUrls": None, "artifact": {"id": "1"}}
        for file in asked["input"]["artifactFiles"]
    ]
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


_ANSWERS: dict[str, Callable[[Service, dict[str, Any]], dict[str, Any]]] = {
    "UpsertBucket": _upserted,
    "RunResumeStatus": _resumed,
    "Viewer": lambda _s, _v: {"viewer": {"id": "v", "entity": "someone", "username": "someone"}},
    "CreateRunFiles": lambda s, v: {
        "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": [_place(s, name) for name in v["files"]]}
    },
    "CreateArtifact": _artifact,
    "CreateArtifactManifest": lambda s, v: {
        "createArtifactManifest": {"artifactManifest": {"id": "m", "file": _place(s, v["name"])}}
    },
    "UpdateArtifactManifest": lambda s, v: {
        "updateArtifactManifest": {"artifactManifest": {"id": "m", "file": _place(s, "manifest")}}
    },
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": lambda _s, _v: {"commitArtifact": {"artifact": {"id": "1", "digest": "d"}}},
}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb keeps its files below the test's own directory, and forgets what an earlier test told it."""
    wandb.teardown()
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-files"))
    (tmp_path / "wandb-files").mkdir()
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()


@pytest.fixture
def service(alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    server = Service()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    yield server
    server.shutdown()
    server.server_close()


def records(directory: Path) -> list[Any]:
    """What a run's file holds: records in LevelDB's log format, in blocks of 32 KiB."""
    (path,) = directory.glob("run-*.wandb")
    data, place, found, part = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(part))
            part = b""
    return found


def offline_rows(directory: Path) -> list[dict[str, Any]]:
    histories = [r.history for r in records(directory) if r.WhichOneof("record_type") == "history"]
    return [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in h.item} for h in histories]


def in_order(store: Store) -> list[int]:
    """Numbers of the trials in the order in which they were measured."""
    return [*store.measured("tiny"), LOOK]


def test_offline_every_run_of_ours_is_whole(
    told_study: Store, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    api.track("tiny", wandb="merges")
    time.sleep(1.0)  # its directories are named to the second
    api.track("tiny", wandb="merges")
    directories = sorted((tmp_path / "wandb-files" / "wandb").glob("offline-run-*"))
    assert len(directories) == 2
    key = about(told_study, "tiny").key
    for directory in directories:
        assert directory.name.endswith(f"-{key}")
        rows = offline_rows(directory)
        assert [row["trial"] for row in rows] == in_order(told_study)
        first = told_study.measured("tiny")[0]
        assert rows[0]["safety/mean"] == first.scores["safety"].mean
        assert rows[0]["weight/alpha"] == first.recipe.mean_weights()["alpha"]


def test_a_study_is_a_run_with_a_row_for_each_trial(told_study: Store, service: Service, tmp_path: Path) -> None:
    export = tmp_path / "picked"
    export.mkdir()
    (export / "README.md").write_text("the card")
    (export / "merge_recipe.json").write_text(json.dumps({"merge_digest": "d" * 64}))
    (export / "model.safetensors").write_bytes(b"the weights")
    told_study.add_export("tiny", 1, str(export), "d" * 64)
    assert main(["track", "tiny", "--wandb", "someone/merges"]) == 0
    assert [row["trial"] for row in service.rows] == in_order(told_study)
    assert [row["_step"] for row in service.rows] == list(range(len(service.rows)))
    assert service.summary["failed"] == 1
    assert json.loads(service.run["config"])["spec_digest"]["value"] == told_study.study("tiny").spec_digest
    table = json.loads(service.files["front.table.json"])
    assert [row[0] for row in table["data"]] == [r.trial for r in api.front("tiny").front]
    assert service.files["README.md"] == b"the card"
    assert b"the weights" not in b"".join(service.files.values())
    assert {name.split("-")[0] for name, _ in service.artifacts} == {"front", "tiny"}
    assert service.tokens == {"Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()}
    for private in (str(Path(api.spec("tiny").base).parent), sys.executable):
        assert private not in service.sent
    # As a word: the letters of a short name turn up in what is encoded.
    assert not re.search(rf"(?<![\w+/=]){re.escape(os.uname().nodename)}(?![\w+/=])", service.sent)


def test_sent_again_only_what_is_new_is_sent(told_study: Store, service: Service) -> None:
    api.track("tiny", wandb="merges")
    before = list(service.history)
    told_study.add_measured("tiny", replace(told_study.with_marks("tiny", 0), number=95, marks={}))
    api.track("tiny", wandb="merges")
    assert service.history[: len(before)] == before
    assert [row["trial"] for row in service.rows] == [*in_order(told_study)[:-2], LOOK, 95]


def test_after_a_power_cut_no_trial_is_missing_and_none_is_doubled(told_study: Store, service: Service) -> None:
    told_study.hold("tiny", Holder.me())
    process = subprocess.Popen([MERGEFRONT, "track", "tiny", "--wandb", "merges"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not service.history and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGKILL)
    process.wait()
    assert service.history
    told_study.add_measured("tiny", replace(told_study.with_marks("tiny", 0), number=95, marks={}))
    told_study.release("tiny")
    api.track("tiny", wandb="merges")
    assert [row["trial"] for row in service.rows] == [*in_order(told_study)[:-2], LOOK, 95]
    assert [row["_step"] for row in service.rows] == list(range(len(service.rows)))


def test_a_project_is_named_with_or_without_its_owner(told_study: Store) -> None:
    for wrong in ("a/b/c", "/p", ""):
        with pytest.raises(InputError, match=r"--wandb must read PROJECT or ENTITY/PROJECT"):
            api.track("tiny", wandb=wrong)


def test_without_wandb_the_extra_is_named(told_study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'mergefront\[wandb\]'"):
        api.track("tiny", wandb="merges")
