"""Numbers that are none are never told as scores: the trial fails and says why."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from optimizer.spec import load_spec
from optimizer.study import _unusable
from search_spaces.recipe import only
from storage.checkpoints import Source
from storage.records import Assignment, Failed, Measured, Score
from workers.engine import Request
from workers.errors import EngineError, TrialError
from workers.prompts import load_tokenizer
from workers.scores import Aggregation, plain_score
from workers.setup import Setup
from workers.suites import Item
from workers.transformers_engine import TransformersEngine
from workers.worker import Worker

ITEMS = [("s", Item(id=str(i), prompt="p", lang="en")) for i in range(4)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_fails_with_its_item(value: float) -> None:
    with pytest.raises(TrialError, match=f"values must be finite, but item 2 of s has {value}"):
        Aggregation(ITEMS, "mean", (0.0, 1.0)).score([0.0, 1.0, value, None])
    with pytest.raises(TrialError, match="values must be finite"):
        plain_score([0.0, value])


@pytest.mark.parametrize("value", [-0.01, 1.01, 100.0])
def test_a_value_out_of_its_scorers_range_fails_with_its_item(value: float) -> None:
    with pytest.raises(TrialError, match=rf"values must lie in \[0, 1\], but item 3 of s has {value:g}"):
        Aggregation(ITEMS, "mean", (0.0, 1.0)).score([None, 1.0, 0.0, value])
    assert Aggregation(ITEMS, "mean", None).score([value] * 4).mean == pytest.approx(value)


def test_no_items_are_no_score() -> None:
    with pytest.raises(TrialError, match="a score must be of items, but there are none"):
        Aggregation([], "mean", (0.0, 1.0)).score([])
    with pytest.raises(TrialError, match="a score must be of items, but there are none"):
        plain_score([])
    with pytest.raises(TrialError, match="every language must have a scored item"):
        Aggregation(ITEMS, "mean", (0.0, 1.0)).score([None] * 4)


@pytest.fixture
def dead(models: Path, tmp_path: Path) -> Path:
    """A model whose weights are all zero: whatever it is asked, every token is as likely as any other."""
    path = Path(shutil.copytree(models / "base", tmp_path / "dead"))
    tensors = {name: tensor.clone().zero_() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_constant_logits_fail(dead: Path, models: Path, dtype: str) -> None:
    scored = tuple(Request(prompt=(4, n), continuation=(n + 1, 8)) for n in (6, 7, 9))
    written = tuple(Request(prompt=(4, n), max_new_tokens=2) for n in (6, 7, 9))
    engine = TransformersEngine(dead, load_tokenizer(dead), dtype=dtype, device="cpu")
    for ask, requests in ((engine.loglikelihood, scored), (engine.generate, written)):
        with pytest.raises(EngineError, match="logits must depend on the prompt, but the merge gives the same ones"):
            ask(requests)
        assert ask(requests[:1])  # of one prompt alone nobody can tell
    alive = TransformersEngine(models / "base", load_tokenizer(dead), dtype=dtype, device="cpu")
    assert len(alive.loglikelihood(scored)) == len(alive.generate(written)) == 3


def test_one_prompt_with_many_answers_is_no_constant(models: Path) -> None:
    engine = TransformersEngine(models / "base", load_tokenizer(models / "base"), dtype="float32", device="cpu")
    assert len(engine.loglikelihood(tuple(Request(prompt=(4, 6), continuation=(n,)) for n in (6, 7, 9)))) == 3


def test_a_trial_of_constant_logits_fails_with_the_reason(dead: Path, study_file: Callable[..., Path]) -> None:
    setup = load_spec(study_file()).setup(device="cpu")
    source = Source(name="base", model=str(dead))
    alone = Setup(sources=(source,), base="base", objectives=setup.objectives, dtype="float32", device="cpu")
    outcome = Worker(alone).run(Assignment(number=0, recipe=only("base")))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "logits must depend on the prompt, but the merge gives the same ones to every prompt."
    assert outcome.traceback == ""


GOOD = Score(mean=0.5, stderr=0.1, n=10)


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (Score(mean=float("nan"), stderr=0.1, n=10), "scores must be finite"),
        (Score(mean=float("inf"), stderr=0.1, n=10), "scores must be finite"),
        (Score(mean=0.5, stderr=float("nan"), n=10), "scores must be finite"),
        (Score(mean=0.5, stderr=-0.1, n=10), "scores must be finite"),
        (Score(mean=0.5, stderr=0.1, n=0, unscored=10), "scores must be of items, but safety is of none"),
        (Score(mean=1.5, stderr=0.1, n=10), r"must lie in their scorer's range, but safety is 1.5"),
    ],
)
def test_the_driver_tells_no_such_score_whoever_measured_it(
    study_file: Callable[..., Path], score: Score, reason: str
) -> None:
    spec = load_spec(study_file())

    def measured(**scores: Score) -> Measured:
        return Measured(number=0, recipe=only("base"), split="search", scores=scores, breakdown={}, marks={}, digest="")

    assert _unusable(measured(safety=GOOD, general=GOOD), spec) is None
    assert reason in str(_unusable(measured(safety=score, general=GOOD), spec))
    assert "every objective must be measured, but general is not" in str(_unusable(measured(safety=GOOD), spec))
