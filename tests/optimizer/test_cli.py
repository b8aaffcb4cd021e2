"""The command line as a process of its own, with Ray, on the tiny family of random weights."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer import cli

MERGEFRONT = Path(sys.executable).parent / "mergefront"


def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([MERGEFRONT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_the_three_jobs(study_file: Callable[..., Path], storage: str, tmp_path: Path) -> None:
    """Launch, resume with more trials, read, validate, export; machine output alone on stdout."""
    path = study_file(search={"trials": 6, "sampler": "tpe", "evaluation": {"items": 10}})
    launched = run("launch", path, "--trials", "7")
    assert "trials: 7 of 7" in launched.stderr
    assert "trials:" not in launched.stdout
    again = run("launch", path, code=2)
    assert "there is a study 'tiny' already; `mergefront resume tiny` goes on with it" in again.stderr
    run("resume", "tiny", "--trials", "3")
    (summary,) = json.loads(run("studies", "--format", "json").stdout)
    assert (summary["name"], summary["measured"], summary["planned"]) == ("tiny", 10, 10)
    rows = json.loads(run("front", "tiny", "--format", "json", "--all").stdout)
    assert [r["trial"] for r in rows] == list(range(10))
    assert {r["objectives"]["safety"]["n"] for r in rows} == {10}
    table = list(csv.DictReader(io.StringIO(run("front", "tiny", "--format", "csv", "--all").stdout)))
    assert [float(r["safety.mean"]) for r in table] == [r["objectives"]["safety"]["mean"] for r in rows]
    found = json.loads(run("validate", "tiny", "--format", "json").stdout)
    baselines = {f["baseline"] for f in found["finalists"]}
    assert baselines >= {"uniform", "base", "alpha", "beta", "gamma"}
    assert all(
        set(s) == {"mean", "stderr", "n", "low", "high"}
        for f in found["finalists"]
        for s in f["splits"]["validation"].values()
    )
    out = run("export", "tiny", "--trial", "8", "--out", tmp_path / "out").stdout.strip()
    assert (Path(out) / "model.safetensors").is_file()


def test_an_interrupted_launch_keeps_the_study(study_file: Callable[..., Path], storage: str) -> None:
    path = study_file(search={"trials": 2000, "sampler": "random"})
    process = subprocess.Popen([MERGEFRONT, "launch", path], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trials:") or time.monotonic() > deadline:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the study is kept" in said
    (summary,) = json.loads(run("studies", "--format", "json").stdout)
    assert 0 < summary["measured"] < 2000


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["launch"], ["export", "x", "--out", "y"], ["front", "x", "--format", "xml"]]
)
def test_wrong_commands_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: mergefront" in capsys.readouterr().err


def test_the_study_list_imports_neither_torch_nor_ray(storage: str) -> None:
    code = (
        "import sys; from optimizer import cli; from storage.store import Store\n"
        f"Store.open({storage!r}, create=True).close()\n"
        "assert cli.main(['studies']) == 0\n"
        "assert not {'torch', 'ray', 'transformers', 'botorch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_our_distribution_alone_owns_the_four_packages() -> None:
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    for name in ("optimizer", "workers", "search_spaces", "storage"):
        assert set(owners[name]) == {"mergefront"}
