"""Checkpoints in S3 and in Google's storage: servers that speak their protocols, through a relay that counts and fails.

The servers are moto's and gcp-storage-emulator; s3fs and gcsfs are told of them as users tell them of any endpoint.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pytest
from gcp_storage_emulator.server import create_server
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from optimizer import api
from storage import staging
from storage.checkpoints import Checkpoint, Source
from storage.errors import CheckpointError
from storage.staging import stage
from storage.store import Store

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""

WEIGHTS = "model.safetensors"
SECRET = "wJalrXUtnFEMI"

logging.getLogger("werkzeug").setLevel(logging.ERROR)


def ask(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    """One request of the server on this port."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


class Cloud:
    """A bucket on a server. ``trouble`` is asked for every part of a weight file before it is delivered, and may change
    the part or give a status in its place.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self.scheme, self.port, self.bucket = scheme, port, f"b{uuid4().hex}"
        self.served: Counter[str] = Counter()
        self.trouble: Callable[[bytes], bytes | int] = lambda part: part
        self.refusal: bytes | None = None
        if scheme == "s3":
            self._upload("PUT", f"/{self.bucket}")
        else:
            self._upload("POST", "/storage/v1/b", json.dumps({"name": self.bucket}).encode(), kind="application/json")
        self._relay = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Relay, self))
        threading.Thread(target=self._relay.serve_forever, args=(0.05,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._relay.server_port}"

    def url(self, name: str) -> str:
        """Of a model in the bucket."""
        return f"{self.scheme}://{self.bucket}/family/{name}"

    def put(self, directory: Path) -> None:
        """Upload a model under its own name, one of its files in a directory of its own, too."""
        for path in directory.iterdir():
            self.put_file(f"family/{directory.name}/{path.name}", path.read_bytes())
        self.put_file(f"family/{directory.name}/onnx/config.json", b"{}")

    def put_file(self, key: str, content: bytes) -> None:
        """Upload one file."""
        if self.scheme == "s3":
            self._upload("PUT", f"/{self.bucket}/{key}", content)
        else:
            self._upload("POST", f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={key}", content)

    def close(self) -> None:
        """The relay answers no more."""
        self._relay.shutdown()
        self._relay.server_close()

    def _upload(self, method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> None:
        headers = {"Content-Type": kind, "Authorization": "AWS me:signed"}  # moto wants to see one, whatever it says
        status, _, said = ask(self.port, method, path, body, headers)
        assert status == 200, said


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, cloud: Cloud, *arguments: Any) -> None:
        self.cloud = cloud
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        """As the server says."""
        self.do_GET()

    def do_GET(self) -> None:
        """As the server says, unless there is trouble."""
        status, headers, body = ask(self.cloud.port, self.command, self.path, headers=dict(self.headers))
        if self.cloud.refusal is not None:
            status, body = 401, self.cloud.refusal
        name = unquote(self.path).partition("?")[0].rpartition("/")[2]
        if self.command == "GET" and name == WEIGHTS and status == 206:
            answer = self.cloud.trouble(body)
            status, sent = (answer, b"") if isinstance(answer, int) else (status, answer)
            self.cloud.served[unquote(self.path).split("/")[-2]] += len(sent)
            length, body = len(body) if sent else 0, sent
        else:
            length = int(headers["Content-Length"]) if self.command == "HEAD" else len(body)
        self.send_response(status)
        for key, value in headers.items():
            if key not in ("Content-Length", "Connection", "Transfer-Encoding", "Server", "Date"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = len(body) < length


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, int]]:
    """The servers' ports, by scheme."""
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gs = create_server("127.0.0.1", port, in_memory=True)
    gs.start()
    yield {"s3": s3.get_host_and_port()[1], "gs": port}
    gs.stop()
    s3.stop()


@pytest.fixture
def make_cloud(
    servers: dict[str, int], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Cloud]]:
    """Makes buckets that hold models (alpha, unless others are named), and tells the environment of their endpoints."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_GCE_CHECK": "true",
        "MERGEFRONT_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(staging, "CHUNK", 5_000)
    monkeypatch.setattr(staging, "_WAITS", (0.01, 0.01, 0.01))
    made: list[Cloud] = []

    def make(scheme: str, *names: str) -> Cloud:
        cloud = Cloud(scheme, servers[scheme])
        made.append(cloud)
        for name in names or ("alpha",):
            cloud.put(models / name)
        monkeypatch.setenv("AWS_ENDPOINT_URL" if scheme == "s3" else "STORAGE_EMULATOR_HOST", cloud.endpoint)
        return cloud

    yield make
    for cloud in made:
        cloud.close()
    for lock in staging._HELD.values():
        os.close(lock)
    staging._HELD.clear()


@pytest.fixture(params=["s3", "gs"])
def cloud(request: pytest.FixtureRequest, make_cloud: Callable[..., Cloud]) -> Cloud:
    """Each of the two."""
    return make_cloud(request.param)


def weights(directory: Path) -> bytes:
    return (directory / WEIGHTS).read_bytes()


def test_a_staged_checkpoint_is_the_one_that_lies_there(cloud: Cloud, models: Path) -> None:
    there = Checkpoint(Source(name="a", model=str(models / "alpha")))
    here = Checkpoint(Source(name="a", model=cloud.url("alpha")))
    assert here.fingerprint == there.fingerprint
    assert {p.name for p in here.path.iterdir()} == {p.name for p in (models / "alpha").iterdir()}
    assert stage(cloud.url("alpha") + "/") == here.path
    assert cloud.served["alpha"] == len(weights(models / "alpha"))


def test_a_fetch_that_is_cut_off_goes_on_where_it_was(cloud: Cloud, models: Path) -> None:
    parts = Counter[str]()

    def down_after_three(part: bytes) -> bytes | int:
        parts["weights"] += 1
        return part if parts["weights"] <= 3 else 400

    cloud.trouble = down_after_three
    with pytest.raises(CheckpointError, match=r"model\.safetensors of .*/alpha was not in 4 tries: .* What has come"):
        stage(cloud.url("alpha"))
    assert cloud.served["alpha"] == 3 * staging.CHUNK
    cloud.trouble = lambda part: part
    assert weights(stage(cloud.url("alpha"))) == weights(models / "alpha")
    assert cloud.served["alpha"] == len(weights(models / "alpha")), "no byte came twice"


def test_a_connection_that_breaks_within_a_part_is_made_again(cloud: Cloud, models: Path) -> None:
    cut = Counter[str]()

    def second_is_cut(part: bytes) -> bytes:
        cut["parts"] += 1
        return part[:100] if cut["parts"] == 2 else part

    cloud.trouble = second_is_cut
    assert weights(stage(cloud.url("alpha"))) == weights(models / "alpha")


def test_what_came_with_other_bits_is_not_the_study_s_checkpoint(cloud: Cloud, models: Path) -> None:
    began = Checkpoint(Source(name="alpha", model=str(models / "alpha"))).fingerprint
    cloud.trouble = lambda part: part[:-1] + bytes([part[-1] ^ 1])
    found = Checkpoint(Source(name="alpha", model=cloud.url("alpha")))
    with pytest.raises(CheckpointError, match="what it was when the study began, but alpha has changed"):
        found.require(began)


def test_a_checkpoint_that_changes_while_it_is_fetched_is_refused(cloud: Cloud, models: Path) -> None:
    parts = Counter[str]()

    def overwritten(part: bytes) -> bytes:
        parts["weights"] += 1
        if parts["weights"] == 2:
            cloud.put_file(f"family/alpha/{WEIGHTS}", weights(models / "beta"))
        return part

    cloud.trouble = overwritten
    with pytest.raises(CheckpointError, match="must stay as it is while it is fetched, but .*/alpha has changed"):
        stage(cloud.url("alpha"))
    assert weights(stage(cloud.url("alpha"))) == weights(models / "beta")


def test_processes_of_one_machine_fetch_a_file_once(cloud: Cloud, models: Path) -> None:
    program = f"from storage.staging import stage; print(stage('{cloud.url('alpha')}'))"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(told) == 1
    assert cloud.served["alpha"] == len(weights(models / "alpha"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{bucket}/family/nothing", "cannot: not found: .*nothing"),
        ("{bucket}-not/family", "cannot: not found: "),
        ("{bucket}", "must hold a model's files, but .* holds none"),
        ("Not_A_Bucket!/family", "must be one that can be listed"),
    ],
)
def test_a_place_without_a_model_is_named(cloud: Cloud, place: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as refused:
        stage(f"{cloud.scheme}://{place.format(bucket=cloud.bucket)}")
    assert "\n" not in str(refused.value)


def test_an_access_key_that_s3_does_not_know_is_said_without_the_secret(
    make_cloud: Callable[..., Cloud], servers: dict[str, int]
) -> None:
    cloud = make_cloud("s3")
    ask(servers["s3"], "POST", "/moto-api/reset-auth", b"0")  # from now on it looks at signatures
    try:
        with pytest.raises(CheckpointError, match="can be listed, but s3://.* cannot: .*Access Key Id") as refused:
            stage(cloud.url("alpha"))
    finally:
        ask(servers["s3"], "POST", "/moto-api/reset-auth", b"inf")
    assert SECRET not in str(refused.value)


def test_what_google_refuses_is_said_as_google_says_it(
    make_cloud: Callable[..., Cloud], caplog: pytest.LogCaptureFixture
) -> None:
    cloud = make_cloud("gs")
    said = "Anonymous caller does not have storage.objects.list access to the Google Cloud Storage bucket."
    cloud.refusal = json.dumps({"error": {"code": 401, "message": said}}).encode()
    with pytest.raises(CheckpointError, match="can be listed, but gs://.* cannot: Anonymous caller does not have"):
        stage(cloud.url("alpha"))
    assert not [record for record in caplog.records if record.exc_info], "no traceback beside the message"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nosuch"}, r"The config profile \(nosuch\) could not be found"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint"),
    ],
)
def test_an_environment_that_leads_nowhere_is_said(
    make_cloud: Callable[..., Cloud],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    message: str,
) -> None:
    cloud = make_cloud("s3")
    for name, value in changes.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match=f"can be listed, but s3://.* cannot: .*{message}") as refused:
        stage(cloud.url("alpha"))
    assert SECRET not in str(refused.value)


def test_a_missing_package_is_named_with_the_extra_that_has_it() -> None:
    program = """if True:
        import sys
        sys.modules |= {"s3fs": None, "gcsfs": None}
        from storage.errors import CheckpointError
        from storage.staging import stage
        for url in ("s3://bucket/alpha", "gs://bucket/alpha"):
            try:
                stage(url)
            except CheckpointError as e:
                print(e)
    """
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    s3, gs = said.splitlines()
    assert "s3fs" in s3
    assert "gcsfs" in gs
    assert all("`pip install mergefront[cloud]`" in line for line in (s3, gs))


def test_a_family_of_both_clouds_is_searched_by_two_workers(
    make_cloud: Callable[..., Cloud], models: Path, study_file: Callable[..., Path], storage: str
) -> None:
    s3, gs = make_cloud("s3", "alpha", "beta"), make_cloud("gs", "gamma")
    places = {"alpha": s3, "beta": s3, "gamma": gs}
    path = study_file(
        checkpoints=[{"name": name, "model": cloud.url(name)} for name, cloud in places.items()],
        workers={"device": "cpu", "count": 2, "dtype": "float32"},
    )
    api.launch(path)
    store = Store.open(storage)
    found = store.measured("tiny")
    store.close()
    assert len(found) >= 8
    assert len({m.worker for m in found.values()}) == 2
    sizes = {name: len(weights(models / name)) for name in places}
    assert s3.served + gs.served == sizes, "driver and workers fetched each file once"
