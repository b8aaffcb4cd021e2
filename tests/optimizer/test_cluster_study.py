"""Whole studies on a cluster of Ray nodes that are processes of their own, as on machines of their own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from storage.store import Store

BIN = Path(sys.executable).parent
LIMIT = 300.0
TRIALS = 150


class Machines:
    """A head without room for workers and a node for one, each behind the command that leads to its network."""

    def __init__(self, directory: Path, head: str, reach: Sequence[Sequence[str]] = ((), ())) -> None:
        self._directory = directory
        self._head, self._reach = head, reach
        self.address = f"{head}:{_free_port()}"
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "RAY_worker_niceness": "0",
        }
        self._of_head: list[psutil.Process] = []

    def start(self, node: str) -> None:
        """Start both; ``node`` is the node's own address."""
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        self._ray(0, *head, f"--node-ip-address={self._head}", f"--temp-dir={self._directory}")
        self._of_head = self._own()
        self._ray(1, f"--address={self.address}", "--num-cpus=1", f"--node-ip-address={node}")

    def lose_head(self) -> None:
        """Its power goes off; the workers stand still, or they could end a short study before the driver knows."""
        with_it = [*(child for process in self._of_head for child in _children(process)), *self._of_head]
        for process in set(self._of_workers()) - set(with_it):
            process.suspend()
        _kill(with_it)

    def stop(self) -> None:
        """End every process of these nodes, and no other's."""
        _kill([*self._of_workers(), *self._own()])

    def drive(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The program, on the head's machine."""
        command = [*self._reach[0], str(BIN / "mergefront"), *arguments, "--ray", self.address]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _ray(self, machine: int, *options: str) -> None:
        command = [*self._reach[machine], str(BIN / "ray"), "start", *options]
        done = subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, done.stdout + done.stderr

    def _of_workers(self) -> list[psutil.Process]:
        """What the raylets have started, which are known by their parents alone."""
        return [child for process in self._own() for child in _children(process)]

    def _own(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if any(str(self._directory) in word for word in _command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """Ray's sockets lie there, and their paths may have 107 characters."""
    directory = Path(f"/tmp/mf{secrets.token_hex(4)}")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def study(study_file: Callable[..., Path]) -> Path:
    return study_file(
        search={"trials": TRIALS, "sampler": "random", "seed": 3}, workers={"count": 1, "dtype": "float32"}
    )


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    yield store
    store.close()


@pytest.mark.timeout(2 * LIMIT)
def test_a_study_outlives_the_head_of_its_cluster(study: Path, store: Store, short: Path) -> None:
    machines = Machines(short, "127.0.0.1")
    try:
        machines.start("127.0.0.1")
        driver = machines.drive("launch", str(study))
        _wait(lambda: len(_measured(store)) >= 8 or driver.poll() is not None)
        machines.lose_head()
        _, said = driver.communicate(timeout=LIMIT)
        kept = _measured(store)
        assert driver.returncode != 0, said.decode()
        assert 8 <= len(kept) < TRIALS
        machines.stop()
        machines.start("127.0.0.1")
        driver = machines.drive("resume", "tiny")
        _, said = driver.communicate(timeout=LIMIT)
        assert driver.returncode == 0, said.decode()
        found = _measured(store)
        assert len(found) == TRIALS
        assert {number: found[number] for number in kept} == kept
    finally:
        machines.stop()


def _measured(store: Store) -> dict[int, str]:
    """By whom each trial was measured."""
    return {n: m.worker for n, m in store.measured("tiny").items()} if store.studies() else {}


def _wait(met: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not met():
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.fixture
def two_networks() -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them: 10.203.0.1 and 10.203.0.2."""
    names = [f"mf{secrets.token_hex(3)}" for _ in range(2)]
    reach = [["ip", "netns", "exec", name] for name in names]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for i, name in enumerate(names):
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "address", "add", f"10.203.0.{i + 1}/30", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
    except (subprocess.CalledProcessError, FileNotFoundError) as e:
        _remove(names)
        pytest.skip(f"network namespaces need root, CAP_SYS_ADMIN and iproute2: {e}")
    yield reach
    _remove(names)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.timeout(LIMIT)
def test_a_study_runs_on_a_machine_of_another_network(
    study: Path, store: Store, short: Path, two_networks: list[list[str]]
) -> None:
    """The driver reaches its worker by the cable alone: they share no loopback."""
    machines = Machines(short, "10.203.0.1", two_networks)
    try:
        machines.start("10.203.0.2")
        driver = machines.drive("launch", str(study), "--trials", "12")
        _, said = driver.communicate(timeout=LIMIT)
        assert driver.returncode == 0, said.decode()
        assert len(_measured(store)) == 12
    finally:
        machines.stop()
