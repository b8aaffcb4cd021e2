"""Exports uploaded to a server that keeps what it gets, as the hub does: the same calls, over HTTP."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from optimizer import api, loop
from optimizer.cli import main
from optimizer.hub import PushError
from optimizer.preflight import check
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

# huggingface_hub's LFS upload still hands files to its HTTP client under a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

TOKEN = "hf_" + "s3cret" * 5
REPOSITORY = "someone/merged"


class Hub(ThreadingHTTPServer):
    """Repositories by name; ``refuses`` answers a path with a status of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answered(b"")

    def do_POST(self) -> None:
        self._answered(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_POST  # noqa: N815 (http.server calls it so)

    def _answered(self, body: bytes) -> None:
        refused = next((status for part, status in self.server.refuses.items() if part in self.path), None)
        status, document = (refused, {"error": "no"}) if refused else self._answer(body)
        payload = json.dumps(document).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _answer(self, body: bytes) -> tuple[int, Any]:
        hub = self.server
        if self.path.startswith("/objects/"):
            hub.objects[self.path.rsplit("/", 1)[1]] = body
            return 200, {}
        if self.path == "/api/agent-harnesses":
            return 404, {}  # what huggingface_hub asks anonymously, to know what runs it
        hub.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return 200, {}
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return 200, {"files": [_mode(file) for file in files]}
        if self.path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self._upload(o) for o in json.loads(body)["objects"]]}
        if self.path.endswith("/commit/main"):
            return self._commit([json.loads(line) for line in body.splitlines()])
        return self._info(self.path.removeprefix("/api/models/"))

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return 409, url
        self.server.repositories[name] = {".gitattributes": b""}
        self.server.private[name] = asked.get("visibility") == "private"
        return 200, url

    def _info(self, name: str) -> tuple[int, Any]:
        if name not in self.server.repositories:
            return 404, {}
        files = [{"rfilename": file} for file in self.server.repositories[name]]
        return 200, {"id": name, "sha": "a" * 40, "private": self.server.private[name], "siblings": files}

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"actions": {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert value["parentCommit"] == "a" * 40
        return 200, {"commitUrl": f"{self.server.url}/{name}/commit/b", "commitOid": "b" * 40}


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(".safetensors")
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of the test's own, and a token for it. Files go by LFS: the server does not speak Xet."""
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def study(study_file: Callable[..., Path], storage: str) -> Iterator[Spec]:
    """A study of two trials that has been run; its base's config says where it once lay."""
    search = {"trials": 2, "sampler": "random", "evaluation": {"items": 4}}
    path = study_file(base="base", search=search)
    shutil.copytree(path.parent / "models" / "base", path.parent / "base")
    config = json.loads((path.parent / "base" / "config.json").read_text())
    (path.parent / "base" / "config.json").write_text(json.dumps(config | {"_name_or_path": f"{path.parent}/old"}))
    spec = load_spec(path)
    store = Store.open(storage, create=True)
    report = check(spec, timed=False, progress=lambda *_: None)
    create_study(store, spec, trials=2, fingerprints=dict(report.fingerprints))
    loop.search(DriverStudy(store, spec.study), LocalPool(lambda: Worker(spec.setup(device="cpu"))), lambda _: None)
    yield spec
    store.close()


def test_what_is_uploaded_is_the_export_and_loads(
    study: Spec, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "tiny", "--trial", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--push-to-hub", REPOSITORY, "--private"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "out")
    assert TOKEN not in said.out + said.err
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert hub.private == {REPOSITORY: True}
    kept = {n: b for n, b in hub.repositories[REPOSITORY].items() if n != ".gitattributes"}
    assert kept == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert {"README.md", "merge_recipe.json"} < set(kept)
    there = tmp_path / "there"
    there.mkdir()
    for name, content in kept.items():
        (there / name).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(there).num_parameters() > 0
    assert hashlib.sha256(kept["model.safetensors"]).hexdigest() in hub.objects


def test_what_is_uploaded_names_no_place_on_this_machine(study: Spec, hub: Hub, tmp_path: Path) -> None:
    api.export("tiny", tmp_path / "out", trial=1, push_to_hub=REPOSITORY)
    files = hub.repositories[REPOSITORY]
    here = str(Path(study.base).parent)
    assert not [name for name, content in files.items() if here.encode() in content]
    named = yaml.safe_load(files["mergekit.yaml"])
    assert {m["model"] for m in named["models"]} <= {"alpha", "beta", "gamma"}
    assert named["tokenizer_source"] == "base"
    api.export("tiny", tmp_path / "kept", trial=1)
    assert here in (tmp_path / "kept" / "mergekit.yaml").read_text()


def test_a_repository_that_holds_other_things_is_left_alone(study: Spec, hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPOSITORY] = {"README.md": b"mine", "model.bin": b"mine"}
    hub.private[REPOSITORY] = False
    for overwrite in (False, True):
        with pytest.raises(InputError, match="must be new or empty, but someone/merged holds README.md, model.bin"):
            api.export("tiny", tmp_path / "out", trial=1, push_to_hub=REPOSITORY, overwrite=overwrite)
    assert not (tmp_path / "out").exists()
    assert set(hub.repositories[REPOSITORY]) == {"README.md", "model.bin"}
    with pytest.raises(InputError, match="--private fills a private repository, but .* is public"):
        api.export("tiny", tmp_path / "out", trial=1, push_to_hub=REPOSITORY, private=True)


def test_an_earlier_export_is_replaced_when_that_is_asked_for(study: Spec, hub: Hub, tmp_path: Path) -> None:
    api.export("tiny", tmp_path / "one", trial=1, push_to_hub=REPOSITORY)
    hub.repositories[REPOSITORY]["model-00002-of-00002.safetensors"] = b"of an export in more shards"
    with pytest.raises(InputError, match="it is an earlier export, which --overwrite replaces"):
        api.export("tiny", tmp_path / "two", trial=0, push_to_hub=REPOSITORY)
    api.export("tiny", tmp_path / "two", trial=0, push_to_hub=REPOSITORY, overwrite=True)
    assert json.loads(hub.repositories[REPOSITORY]["merge_recipe.json"])["trial"] == 0
    assert "model-00002-of-00002.safetensors" not in hub.repositories[REPOSITORY]


def test_an_upload_that_breaks_keeps_the_export_and_says_so(
    study: Spec, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses["/commit/main"] = 403
    command = ["export", "tiny", "--trial", "1", "--out", str(tmp_path / "out"), "--push-to-hub", REPOSITORY]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/out is written and kept, but was not uploaded to {REPOSITORY}: 403" in said
    assert "Traceback" not in said
    assert TOKEN not in said
    assert (tmp_path / "out" / "merge_recipe.json").is_file()
    assert set(hub.repositories[REPOSITORY]) == {".gitattributes"}
    hub.refuses.clear()
    assert main([*command, "--overwrite"]) == 0


def test_what_cannot_be_uploaded_is_refused_before_anything_is_merged(
    study: Spec, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="--push-to-hub must read OWNER/NAME, but got 'merged'"):
        api.export("tiny", out, trial=1, push_to_hub="merged")
    with pytest.raises(InputError, match="--push-to-hub must name a repository"):
        api.export("tiny", out, trial=1, push_to_hub="some one/merged")
    with pytest.raises(InputError, match="a repository holds one merge"):
        api.export("tiny", out, whole_front=True, push_to_hub=REPOSITORY)
    with pytest.raises(InputError, match="goes with --push-to-hub"):
        api.export("tiny", out, trial=1, private=True)
    hub.refuses["/api/repos/create"] = 403
    with pytest.raises(PushError, match="someone/merged cannot be prepared: 403"):
        api.export("tiny", out, trial=1, push_to_hub=REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match="someone/merged cannot be prepared: .*refused"):
        api.export("tiny", out, trial=1, push_to_hub=REPOSITORY)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="an upload takes a token that may write, but there is none: set HF_TOKEN"):
        api.export("tiny", out, trial=1, push_to_hub=REPOSITORY)
    assert not out.exists()
