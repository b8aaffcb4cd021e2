"""Checkpoints behind URLs: a real HTTP server that fails, stalls, cuts off and lies; real processes share a cache."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import pytest

from search_spaces.errors import InputError
from storage import staging
from storage.checkpoints import Checkpoint, Source, locate
from storage.errors import CheckpointError
from storage.staging import stage


class Server:
    """Serves a directory. ``trouble`` is asked before every part of a weight file; it may do what it likes."""

    def __init__(self, root: Path, *, ranges: bool = True) -> None:
        self.root = root
        self.ranges = ranges
        self.served: Counter[str] = Counter()
        self.trouble: Callable[[SimpleHTTPRequestHandler], bool] = lambda handler: False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Nobody answers any more."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: object) -> None:
        self.mine = server
        super().__init__(*arguments, directory=str(server.root))  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        """A directory's list, or the part of a file that is asked for."""
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            super().do_GET()
            return
        if path.suffix == ".safetensors" and self.mine.trouble(self):
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted and self.mine.ranges:
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.mine.served[path.name] += len(part)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, small parts and no long waits."""
    monkeypatch.setenv("MERGEFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(staging, "CHUNK", 5_000)
    monkeypatch.setattr(staging, "_WAITS", (0.01, 0.01, 0.01))
    yield tmp_path / "cache"
    for lock in staging._HELD.values():
        os.close(lock)
    staging._HELD.clear()


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[Server]:
    """Serves copies of the tiny models."""
    for name in ("alpha", "beta"):
        shutil.copytree(models / name, tmp_path / "there" / name)
    found = Server(tmp_path / "there")
    yield found
    found.close()


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_a_staged_checkpoint_is_the_one_that_lies_there(server: Server, models: Path) -> None:
    there = Checkpoint(Source(name="a", model=str(models / "alpha")))
    here = Checkpoint(Source(name="a", model=f"{server.url}/alpha"))
    assert here.fingerprint == there.fingerprint
    assert {p.name for p in here.path.iterdir()} == {p.name for p in (models / "alpha").iterdir()}


def test_a_second_use_fetches_nothing(server: Server) -> None:
    first = stage(f"{server.url}/alpha")
    served = dict(server.served)
    assert stage(f"{server.url}/alpha/") == first
    assert dict(server.served) == served


def test_files_that_two_checkpoints_share_are_kept_once(server: Server, cache: Path) -> None:
    alpha, beta = stage(f"{server.url}/alpha"), stage(f"{server.url}/beta")
    assert (alpha / "tokenizer.json").samefile(beta / "tokenizer.json")
    assert not (alpha / "model.safetensors").samefile(beta / "model.safetensors")


def test_a_server_without_ranges_will_do(models: Path) -> None:
    server = Server(models, ranges=False)
    try:
        assert weights(stage(f"{server.url}/alpha")) == weights(models / "alpha")
    finally:
        server.close()


def test_errors_now_and_then_are_waited_out(server: Server, models: Path) -> None:
    asked = Counter[str]()

    def every_second(handler: SimpleHTTPRequestHandler) -> bool:
        asked["weights"] += 1
        if asked["weights"] % 2:
            handler.send_error(503)
        return bool(asked["weights"] % 2)

    server.trouble = every_second
    assert weights(stage(f"{server.url}/alpha")) == weights(models / "alpha")
    assert asked["weights"] > 2


def test_a_connection_that_is_cut_goes_on_where_it_was(server: Server, models: Path) -> None:
    parts = Counter[str]()

    def down_after_three(handler: SimpleHTTPRequestHandler) -> bool:
        parts["weights"] += 1
        if parts["weights"] > 3:
            handler.send_error(503)
        return parts["weights"] > 3

    server.trouble = down_after_three
    with pytest.raises(CheckpointError, match=r"model\.safetensors of .*/alpha was not in 4 tries: .*503"):
        stage(f"{server.url}/alpha")
    server.trouble = lambda handler: False
    assert weights(stage(f"{server.url}/alpha")) == weights(models / "alpha")
    assert server.served["model.safetensors"] == len(weights(models / "alpha"))  # no byte came twice


def test_a_server_that_stalls_is_asked_again(server: Server, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "SILENCE", 0.5)
    asked = Counter[str]()
    again = threading.Event()
    given_up: Queue[bool] = Queue()

    def once(handler: SimpleHTTPRequestHandler) -> bool:
        asked["times"] += 1
        if asked["times"] == 2:
            given_up.put(again.wait(10.0))
        elif asked["times"] > 2:
            again.set()
        return False

    server.trouble = once
    assert weights(stage(f"{server.url}/alpha")) == weights(models / "alpha")
    assert given_up.get(timeout=20.0), "the request that stalled was waited for"


def test_a_part_that_is_too_short_is_asked_for_again(server: Server, models: Path) -> None:
    cut = Counter[str]()

    def short(handler: SimpleHTTPRequestHandler) -> bool:
        cut["times"] += 1
        if cut["times"] != 2:
            return False
        handler.send_response(206)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b"x" * 100)
        handler.close_connection = True
        return True

    server.trouble = short
    assert weights(stage(f"{server.url}/alpha")) == weights(models / "alpha")


def test_what_came_with_other_bits_is_not_the_study_s_checkpoint(server: Server, models: Path) -> None:
    began = Checkpoint(Source(name="alpha", model=str(models / "alpha"))).fingerprint

    def other_bits(handler: SimpleHTTPRequestHandler) -> bool:
        handler.send_response(206)
        first, last = (int(n) for n in handler.headers["Range"].removeprefix("bytes=").split("-"))
        part = bytearray(weights(server.root / "alpha")[first : last + 1])
        part[-1] ^= 1
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        handler.wfile.write(part)
        return True

    server.trouble = other_bits
    found = Checkpoint(Source(name="alpha", model=f"{server.url}/alpha"))
    with pytest.raises(CheckpointError, match="what it was when the study began, but alpha has changed"):
        found.require(began)


def test_a_checkpoint_that_changes_there_is_another_here(server: Server) -> None:
    first = stage(f"{server.url}/alpha")
    time.sleep(1.1)  # HTTP dates count seconds
    shutil.copy(server.root / "beta" / "model.safetensors", server.root / "alpha" / "model.safetensors")
    second = stage(f"{server.url}/alpha")
    assert second != first
    assert weights(second) == weights(server.root / "beta")


def test_processes_of_one_machine_fetch_a_file_once(server: Server, models: Path, cache: Path) -> None:
    program = f"from storage.staging import stage; print(stage('{server.url}/alpha'))"
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        for _ in range(3)
    ]
    told = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(told) == 1
    assert server.served["model.safetensors"] == len(weights(models / "alpha"))


def test_room_is_made_by_what_nobody_uses(
    server: Server, models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"from storage.staging import stage; stage('{server.url}/alpha')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)  # used, and not any more
    shared = len((models / "alpha" / "tokenizer.json").read_bytes())
    size = sum(path.stat().st_size for path in cache.glob("blobs/*"))
    monkeypatch.setenv("MERGEFRONT_CACHE_GIB", str((size + shared + 4_000) / 2**30))
    beta = stage(f"{server.url}/beta")
    assert [p.name for p in cache.glob("models/*")] == [beta.name]
    assert all(path.stat().st_nlink > 1 for path in cache.glob("blobs/*"))


def test_what_is_in_use_is_not_cleared_for_another(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = stage(f"{server.url}/alpha")
    size = sum(path.stat().st_size for path in cache.glob("blobs/*"))
    monkeypatch.setenv("MERGEFRONT_CACHE_GIB", str((size + 1_000) / 2**30))
    with pytest.raises(InputError, match=r"the cache must have room for the checkpoints in use, but [\d,]+ bytes"):
        stage(f"{server.url}/beta")
    assert weights(alpha)


SMALL_DISK = """
import os, subprocess, sys
from pathlib import Path
from storage import staging

cache = Path(os.environ["MERGEFRONT_CACHE"])
cache.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[2]}", "tmpfs", str(cache)], check=True)
staging.CHUNK = 5_000
print("mounted", flush=True)
for line in sys.stdin:
    try:
        print(staging.stage(sys.argv[1]).name, flush=True)
    except Exception as e:
        print(f"{type(e).__name__}: {e}", flush=True)
"""


class SmallDisk:
    """A process whose cache lies on a disk of so many bytes, in a mount namespace of its own; ``filler`` is a file
    there.
    """

    def __init__(self, url: str, size: int, cache: Path) -> None:
        command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", SMALL_DISK, url, str(size)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._process: subprocess.Popen[str] = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            reason = self._process.communicate()[1].strip().split("\n")[-1]
            pytest.skip(f"needs mounts in a user namespace ({reason}); run it where `unshare -rm` may")
        self.filler = Path(f"/proc/{self._process.pid}/root{cache}/filler")

    def stage(self) -> str:
        """The directory's name, or the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare; run it on Linux")
def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(server: Server, cache: Path) -> None:
    disk = SmallDisk(f"{server.url}/alpha", 20_000, cache)
    assert "InputError: the disk must have room for" in (said := disk.stage())
    assert "bytes and " in said
    disk.close()
    assert server.served["model.safetensors"] == 0


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare; run it on Linux")
def test_a_disk_that_others_fill_meanwhile_is_an_error_and_what_came_is_kept(
    server: Server, models: Path, cache: Path
) -> None:
    size = len(weights(models / "alpha"))
    disk = SmallDisk(f"{server.url}/alpha", size + 200_000, cache)
    parts = Counter[str]()

    def fill(handler: SimpleHTTPRequestHandler) -> bool:
        parts["weights"] += 1
        if parts["weights"] == 3:
            with disk.filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
        return False

    server.trouble = fill
    assert "NoRoom: the disk must have room for" in (said := disk.stage())
    assert said.endswith("(No space left on device); what has come is kept, and the next try goes on from there.")
    fetched = server.served["model.safetensors"]
    disk.filler.unlink()
    assert len(disk.stage()) == 32
    disk.close()
    assert fetched < size
    assert server.served["model.safetensors"] < fetched + size, "what came before was not fetched again"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{}/nothing", "must be one that can be listed"),
        ("{}/empty", "holds none"),
        ("http://127.0.0.1:9/alpha", "must be one that can be listed"),
        ("nosuch://bucket/alpha", "Protocol not known"),
        ("http://me:secret@127.0.0.1/alpha", "must hold no password"),
    ],
)
def test_a_url_without_a_model_is_refused(server: Server, url: str, message: str) -> None:
    (server.root / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message) as refused:
        locate(url.format(server.url))
    assert "secret" not in str(refused.value)


def test_files_that_no_model_has_stay_there(server: Server) -> None:
    (server.root / "alpha" / "pytorch_model.bin").write_bytes(b"pickle")
    (server.root / "alpha" / "run.py").write_text("raise SystemExit")
    names = {path.name for path in stage(f"{server.url}/alpha").iterdir()}
    assert not names & {"pytorch_model.bin", "run.py"}


def test_a_limit_that_is_no_number_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFRONT_CACHE_GIB", "much")
    with pytest.raises(InputError, match="MERGEFRONT_CACHE_GIB must be a number of GiB, but is 'much'"):
        stage(f"{server.url}/alpha")
