"""A study of the demo's family on vLLM, against the same study on transformers."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from optimizer import api
from optimizer.demo.family import default_plan, make_family
from optimizer.export import MANIFEST
from workers.vllm_plan import is_installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_installed(), reason="vLLM is missing: `make test-vllm` runs this"),
    pytest.mark.filterwarnings("default"),  # vLLM's own code warns when it is imported
]

RUNS = {"base": 500, "safety": 100, "arithmetic": 50, "mixed": 50}
"""The family's least, in fewer steps: its trials still score between nothing and everything."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads of 32 in place of four of 24, which vLLM's attention on a CPU has not."""
    plan = default_plan()
    runs = tuple(replace(run, heads=3, steps=RUNS[run.name]) for run in plan.runs if run.name in RUNS)
    general = dict.fromkeys(plan.general_groups, 8)
    safety = dict.fromkeys(plan.safety_groups, 16)
    small = replace(plan, runs=runs, general_groups=general, safety_groups=safety)
    return make_family(tmp_path_factory.mktemp("family"), progress=lambda *_: None, plan=small)


@pytest.fixture
def study_of(family: Path) -> Callable[[str], Path]:
    def write(engine: str) -> Path:
        document = yaml.safe_load(family.read_text())
        document |= {
            "study": engine,
            "search": {"trials": 12, "seed": 0},
            "workers": {"engine": engine, "device": "cpu", "count": 1, "dtype": "float32"},
        }
        path = family.with_name(f"{engine}.yaml")
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_a_study_reaches_the_front_that_transformers_reaches(
    study_of: Callable[[str], Path], storage: str, tmp_path: Path
) -> None:
    engines = ("transformers", "vllm")
    for engine in engines:
        api.launch(study_of(engine))
    theirs, ours = (api.front(engine) for engine in engines)
    assert len(ours.rows) == 12
    assert ours.rows == theirs.rows
    assert ours.front == theirs.front
    assert len({tuple(score.mean for score in row.objectives.values()) for row in ours.rows}) > 3
    _the_export_is_what_was_scored(ours.front[0].trial, tmp_path)
    _what_ran_is_kept()
    assert [p for p in psutil.Process().children(recursive=True) if "ray::" in p.name()] == []


def _the_export_is_what_was_scored(trial: int, directory: Path) -> None:
    """The export verifies the digest that was computed in the engine's process."""
    (written,) = api.export("vllm", directory / "model", trial=trial)
    assert (written / MANIFEST).is_file()


def _what_ran_is_kept() -> None:
    with api.open_store(None) as store:
        notes = store.notes("vllm")
    (facts,) = notes["engines"].values()
    assert facts["engine"] == "vllm"
    assert re.match(r"\d+\.\d+", facts["version"])
    assert facts["seconds"] > 0
    assert facts["arguments"]["dtype"] == "float32"
    proof = notes["verify_swap"]
    assert (proof["swapped"], proof["back"], proof["problem"]) == (0.0, 0.0, "")
    assert proof["answers"] > 10
