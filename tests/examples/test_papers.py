"""The three papers' replays, short: one training seed, few steps, few trials."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from examples.papers.command import KEYS, main, paper
from examples.papers.kit.lab import Lab
from examples.papers.kit.models import Models
from examples.papers.kit.sizes import SHORT
from optimizer.preflight import check

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "examples" / "papers"
STUDIES = sorted(
    path
    for key in KEYS
    for path in (PAPERS / key).glob("*.yaml")
    if f"papers/{key}/0/" in path.read_text(encoding="utf-8")  # of what is trained here
)


def short(directory: Path) -> str:
    """The page."""
    main(["--short", "--dir", str(directory), "--processes", "1"])
    return (directory / "papers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """A work directory where a short run, in processes of its own, was killed as its first study began; its weights."""
    directory = tmp_path_factory.mktemp("papers")
    command = [sys.executable, "-m", "examples.papers", KEYS[0], "--short", "--dir", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as run:
        while not (directory / KEYS[0] / "0" / "studies.db").exists():
            assert run.poll() is None
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGKILL)
    return directory, _weights(directory)


@pytest.fixture(scope="module")
def replayed(killed: tuple[Path, dict[Path, int]]) -> Path:
    """The directory after a short run of all papers, which went on from the killed one."""
    directory, _ = killed
    short(directory)
    return directory


def _weights(directory: Path) -> dict[Path, int]:
    """When each checkpoint was written."""
    return {path: path.stat().st_mtime_ns for path in (directory / "models").glob("*/model.safetensors")}


def test_after_a_kill_no_checkpoint_is_trained_again(killed: tuple[Path, dict[Path, int]], replayed: Path) -> None:
    _, before = killed
    assert len(before) == len(paper(KEYS[0]).runs(SHORT))
    assert before.items() <= _weights(replayed).items()


def test_every_claim_stands_on_the_page_with_a_figure_and_a_word(replayed: Path) -> None:
    page = (replayed / "papers.md").read_text(encoding="utf-8")
    assert all(f"## {paper(key).title}" in page for key in KEYS)
    rows = re.findall(r"^\| .* \| (.+?: -?\d[^|]*; must be (?:above|below) [^|]*) \| (.+) \|$", page, re.MULTILINE)
    counted = [int(n) for n in re.findall(r"^\| .*\(.* et al\. 2024\) \| (\d+) \|", page, re.MULTILINE)]
    assert len(rows) == sum(counted) > 0
    assert {word for _, word in rows} == {"*cannot be told*"}  # of one training seed nothing follows
    assert "its figures mean nothing" in page


def test_pictures_on_the_page_are_there(replayed: Path) -> None:
    page = (replayed / "papers.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert pictures
    assert all((replayed / name).stat().st_size > 1000 for name in pictures)


def test_a_second_run_trains_and_measures_nothing(replayed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (replayed / "papers.md").read_text(encoding="utf-8")
    monkeypatch.setattr(Lab, "__init__", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr("examples.papers.kit.models.train_one", lambda *_: pytest.fail("trained again"))
    assert short(replayed) == before


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_study_file_passes_the_preflight(path: Path, replayed: Path) -> None:
    key = path.parent.name
    models = Models(replayed / "models", 0).paths(paper(key).runs(SHORT))
    spec = Lab(replayed / key / "0", models, seed=0, size=SHORT).spec(path)
    assert check(spec, timed=False, progress=lambda *_: None).problems == ()


def test_no_two_study_files_make_the_same_study() -> None:
    assert len({yaml.safe_load(path.read_text(encoding="utf-8"))["study"] for path in STUDIES}) == len(STUDIES)
