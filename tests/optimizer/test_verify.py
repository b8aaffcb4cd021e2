"""A swapped engine against a fresh one, with the engine that every environment has."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.baselines import starting_points
from optimizer.cli import main
from optimizer.preflight import check
from optimizer.spec import load_spec
from optimizer.verify import compared, verify_swap
from tests.conftest import CHECKPOINTS, save, tiny_llama
from workers.canary import Canary
from workers.vllm_plan import is_installed

VLLM = {"engine": "vllm", "device": "cpu", "count": 1, "dtype": "float32"}


def canary(*totals: float, digest: str = "d", exact: bool = False) -> Canary:
    return Canary(digest=digest, totals=totals, exact=exact)


def test_the_command_says_the_largest_difference(
    study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-swap", str(study_file())]) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"swapped, against a fresh engine: largest difference 0 in \d\d+ log-likelihoods", said[0])
    assert said[1] == "swapped back, against before: largest difference 0"


def test_a_study_that_holds_its_checkpoints_to_their_files_is_proven_too(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file())
    found = check(spec, timed=False, progress=lambda *_: None)
    assert found.fingerprints.keys() == found.files.keys() == {"base", *CHECKPOINTS}
    setup = replace(spec.setup(device="cpu"), fingerprints=found.fingerprints, files=found.files)
    assert verify_swap(setup, starting_points(spec)[0].recipe).problem == ""


@pytest.mark.parametrize(
    ("live", "fresh", "message"),
    [
        (
            (canary(-1.0), canary(-1.0), canary(-1.0)),
            canary(-9.0),
            "1 of 1 .* are not a fresh engine's, .* -1.0000 and -9",
        ),
        (
            (canary(-1.0), canary(-9.0), canary(-3.0)),
            canary(-9.0),
            "are not those before, swapped back, .* -3.0000 and",
        ),
        ((canary(-1.0), canary(-9.0, digest="e"), canary(-1.0)), canary(-9.0), "must give the merge that is exported"),
        ((canary(-1.0), canary(float("nan")), canary(-1.0)), canary(-9.0), "1 of 1 .* are not a fresh engine's"),
        (
            (canary(-1.0), canary(-9.001, exact=True), canary(-1.0)),
            canary(-9.0, exact=True),
            "1 of 1 .* are not a fresh engine's",
        ),
    ],
    ids=["stale", "not back", "another merge", "nan", "last bits of an exact engine"],
)
def test_an_engine_that_does_not_swap_is_told_apart(live: tuple[Canary, ...], fresh: Canary, message: str) -> None:
    assert re.search(message, compared(live, fresh).problem)


def test_last_bits_are_no_fault_where_batches_differ() -> None:
    proof = compared((canary(-1.0), canary(-9.001), canary(-1.0)), canary(-9.0))
    assert proof.problem == ""
    assert proof.swapped == pytest.approx(0.001)
    assert (proof.back, proof.answers) == (0.0, 1)


@pytest.mark.skipif(is_installed(), reason="vLLM is installed here")
def test_without_vllm_check_says_how_to_install_it(study_file: Callable[..., Path]) -> None:
    problems = check(load_spec(study_file(workers=VLLM)), timed=False, progress=lambda *_: None).problems
    assert problems == ("workers.engine is vllm, but vLLM is not installed here: pip install 'mergefront[vllm]'.",)


def test_items_beyond_max_model_len_are_named_before_anything_starts(study_file: Callable[..., Path]) -> None:
    problems = check(
        load_spec(study_file(workers=VLLM | {"max_model_len": 6})), timed=False, progress=lambda *_: None
    ).problems
    assert any(
        re.fullmatch(
            r"items must fit into workers.max_model_len, but item safety-\d+ of safety/0:safety.jsonl needs 7 tokens "
            r"and it is 6 \(the model itself can read 64\).",
            problem,
        )
        for problem in problems
    )


def test_a_mixture_of_experts_is_refused_on_a_cpu(study_file: Callable[..., Path], tmp_path: Path) -> None:
    path = study_file(workers=VLLM, base="moe")
    save(tiny_llama(0), tmp_path / "moe")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config | {"num_local_experts": 4}))
    problems = check(load_spec(path), timed=False, progress=lambda *_: None).problems
    assert (
        "vLLM on a CPU must run a dense model, but this is a mixture of experts; take `engine: transformers`, or a GPU."
        in problems
    )
