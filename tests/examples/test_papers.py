"""The three papers' replays, short: one training seed, few steps, few trials."""

import re
from pathlib import Path

import pytest
import yaml

from examples.papers.__main__ import KEYS, main, paper
from examples.papers.kit.lab import Lab
from examples.papers.kit.models import Models
from examples.papers.kit.sizes import SHORT
from optimizer.preflight import check

PAPERS = Path(__file__).parents[2] / "examples" / "papers"
STUDIES = sorted(path for key in KEYS for path in (PAPERS / key).glob("*.yaml"))


def short(directory: Path) -> str:
    """The page."""
    main(["--short", "--dir", str(directory), "--processes", "1"])
    return (directory / "papers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory after a short run."""
    directory = tmp_path_factory.mktemp("papers")
    short(directory)
    return directory


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
    if f"papers/{key}/0/" not in path.read_text(encoding="utf-8"):
        pytest.skip("names checkpoints that are not trained here")
    models = Models(replayed / "models", 0).paths(paper(key).runs(SHORT))
    spec = Lab(replayed / key / "0", models, seed=0, size=SHORT).spec(path)
    assert check(spec, timed=False, progress=lambda *_: None).problems == ()


def test_every_study_file_names_its_own_paper() -> None:
    assert len({yaml.safe_load(path.read_text(encoding="utf-8"))["study"] for path in STUDIES}) == len(STUDIES)
