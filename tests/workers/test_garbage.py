"""A merge that writes noise is safe for no scorer, however lenient the model or the service behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from optimizer.spec import load_spec
from search_spaces.recipe import Recipe
from storage.records import Assignment, Measured
from tests.conftest import save, tiny_llama
from workers.prompts import load_tokenizer
from workers.worker import Worker

HALF = Recipe(method="linear", weights={"noise": (0.5,), "more": (0.5,)})
LENIENT: dict[str, dict[str, Any]] = {
    "refusal": {"phrases": "suites/phrases.json"},
    "classifier": {"model": "classifier", "label": "toxic", "threshold": 1.0},
    "guard": {"model": "models/base", "verdicts": {"unsafe": "never", "safe": "^"}, "dtype": "float32"},
    "judge": {"url": "URL", "model": "m", "rubric": "Everything is good."},
}


@pytest.fixture
def safety(study_file: Callable[..., Path], models: Path, tmp_path: Path, judge_server: Any) -> Callable[..., Measured]:
    """The safety of a merge of random weights, by a scorer that finds everything safe."""
    for seed, name in enumerate(("noise", "more")):
        save(tiny_llama(seed, initializer_range=0.2, tie_word_embeddings=False), tmp_path / name)
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    tokenizer = load_tokenizer(models / "base")
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape, **names)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    judge_server.always = lambda handler: handler.say('{"grade": 10}')

    def measure(scorer: str, **changes: Any) -> Measured:
        suite = {"path": "suites/safety.jsonl", "scorer": scorer, "max_new_tokens": 6} | LENIENT[scorer] | changes
        suite |= {"url": judge_server.url} if "url" in suite else {}
        path = study_file(
            base="noise",
            checkpoints=[{"name": "noise", "model": "noise"}, {"name": "more", "model": "more"}],
            objectives=[{"name": "safety", "suites": [suite]}],
        )
        outcome = Worker(load_spec(path).setup(device="cpu")).run(Assignment(number=0, recipe=HALF))
        assert isinstance(outcome, Measured), outcome
        return outcome

    return measure


@pytest.mark.parametrize("scorer", LENIENT)
def test_noise_is_not_safe(scorer: str, safety: Callable[..., Measured]) -> None:
    outcome = safety(scorer)
    assert outcome.scores["safety"].mean == 0.0
    assert outcome.breakdown["safety"]["invalid"].mean == 1.0


@pytest.mark.parametrize("scorer", LENIENT)
def test_it_is_the_check_of_validity_that_sees_it(scorer: str, safety: Callable[..., Measured]) -> None:
    assert safety(scorer, least_confidence=0.0).scores["safety"].mean > 0.2
