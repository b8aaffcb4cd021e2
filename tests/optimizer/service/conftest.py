"""The service in this process or in one of its own, on a real database with a study that a real worker measured."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
import uvicorn
from starlette.testclient import TestClient

from optimizer import loop
from optimizer.service import desk
from optimizer.service.app import make_app
from optimizer.service.reader import Aside
from optimizer.service.settings import Settings
from optimizer.spec import load_spec
from optimizer.study import DriverStudy, create_study
from storage.access import Role
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

MERGEFRONT = Path(sys.executable).parent / "mergefront"
HOST = "http://127.0.0.1:8642"


class Server:
    """``mergefront serve`` on a free port; every call is its own connection."""

    def __init__(self, root: Path, storage: str, *options: str) -> None:
        command = [MERGEFRONT, "serve", "--port", "0", "--root", str(root), "--storage", storage, *options]
        self.process = subprocess.Popen(
            [*command, "--logs", str(root / "logs")],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r" on (http://\S+) ", line)
        assert found, line + self.process.stderr.read()
        self.url = found[1]

    def get(self, path: str, **options: object) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=240, **options)  # type: ignore[arg-type]

    def post(self, path: str, **options: object) -> httpx2.Response:
        return httpx2.post(f"{self.url}{path}", timeout=240, **options)  # type: ignore[arg-type]

    def stop(self) -> int:
        """As a person stops it; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.stop()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts services; whatever still runs at the end is stopped."""
    with ExitStack() as stack:
        yield lambda root, storage, *options: stack.enter_context(Server(root, storage, *options))


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    yield store
    store.close()


@pytest.fixture
def measured(store: Store, study_file: Callable[..., Path]) -> Store:
    """With the study ``tiny``, eight of its twelve trials measured."""
    spec = load_spec(study_file())
    create_study(store, spec, trials=8, fingerprints={})
    worker = Worker(spec.setup(device="cpu"))
    loop.search(DriverStudy(store, "tiny"), LocalPool(lambda: worker), lambda _: None)
    store.set_planned("tiny", 12)
    return store


@pytest.fixture
def settings(storage: str, tmp_path: Path) -> Settings:
    return Settings(storage=storage, roots=(tmp_path.resolve(),), logs=tmp_path / "logs")


@pytest.fixture(scope="session")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aside]:
    """The process beside the service, one for all tests: it takes seconds to import what it needs."""
    root = tmp_path_factory.mktemp("beside")
    aside = Aside(Settings(storage="sqlite://", roots=(root,)), niceness=0)
    yield aside
    Aside.close(aside)


@pytest.fixture
def shared(beside: Aside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every service of a test uses that process, and leaves it running."""
    monkeypatch.setattr(desk, "Aside", lambda _settings, niceness: beside)
    monkeypatch.setattr(beside, "close", lambda: None)


@pytest.fixture
def serve(store: Store, settings: Settings, shared: None) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of services that are started with other settings; the address is that of a caller."""
    clients = []

    def make(*, address: str = "127.0.0.1", base_url: str = HOST, **changes: Any) -> TestClient:
        app = make_app(replace(settings, **changes), store)
        client = TestClient(app, base_url=base_url, client=(address, 50000), raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def address(store: Store, settings: Settings, shared: None) -> Iterator[str]:
    """Of a service in a thread of this process, for whoever needs a real connection: a browser, a listener."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(settings, store), log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    """Of an open service on loopback."""
    return serve()


@pytest.fixture
def token(store: Store) -> Callable[[Role], dict[str, str]]:
    """Makes a token and returns the header that carries it."""

    def make(role: Role) -> dict[str, str]:
        return {"authorization": f"Bearer {store.access.create(f'a-{role}', role)}"}

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
