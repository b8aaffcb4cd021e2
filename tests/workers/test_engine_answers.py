"""What scorers rely on in the engine's answers: how sure it was, and prompts that are read once for many questions."""

from math import exp
from pathlib import Path

import pytest

from workers.engine import Request
from workers.prompts import load_tokenizer, to_request
from workers.questions import Generation
from workers.scorers import make_scorer
from workers.suites import Item
from workers.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def engine(models: Path) -> TransformersEngine:
    return TransformersEngine(models / "alpha", load_tokenizer(models / "alpha"), dtype="float32", device="cpu")


PROMPTS = [tuple(range(6, 6 + n)) for n in (3, 5, 5, 9)]


def test_confidence_is_the_mean_probability_of_what_was_written(engine: TransformersEngine) -> None:
    asked = tuple(Request(prompt=(6 + i, 7, 9 + i), max_new_tokens=3) for i in range(30))
    compared = 0
    for request, answer in zip(asked, engine.generate(asked), strict=True):
        written = tuple(engine._endings.tokenizer.encode(answer.text, add_special_tokens=False))
        if len(written) == 3:  # the text leaves special tokens out
            (likely,) = engine.loglikelihood((Request(prompt=request.prompt, continuation=written),))
            assert likely.greedy
            assert answer.confidence == pytest.approx(exp(likely.total / likely.tokens), rel=1e-4)
            compared += 1
    assert compared > 5


def test_questions_that_differ_in_their_last_token_read_their_prompt_once(engine: TransformersEngine) -> None:
    letters = tuple(Request(prompt=p, continuation=(letter,)) for p in PROMPTS for letter in (7, 8, 9))
    longer = tuple(Request(prompt=p, continuation=(7, letter)) for p in PROMPTS for letter in (8, 9))
    asked = letters + longer
    together = engine.loglikelihood(asked)
    read = sum(len(batch.tokens) for batch, _ in engine._batches(asked))
    assert read == 2 * len(set(PROMPTS))
    for request, answer in zip(asked, together, strict=True):
        (alone,) = engine.loglikelihood((request,))
        assert answer.total == pytest.approx(alone.total, abs=1e-4)
        assert (answer.tokens, answer.greedy) == (alone.tokens, alone.greedy)


def test_letters_of_a_chat_cost_one_prompt_an_item(engine: TransformersEngine, models: Path) -> None:
    scorer = make_scorer("choice_letter", {"letters": ["w1", "w2", "w3"], "lettered": True})
    tokenizer = load_tokenizer(models / "alpha")
    items = [
        Item(
            id=f"i{i}", prompt=({"role": "user", "content": f"w{i} w9"},), lang="en", choices=("w5", "w6", "w7"), gold=0
        )
        for i in range(6)
    ]
    asked = tuple(to_request(tokenizer, question) for item in items for question in scorer.ask(item))  # type: ignore[arg-type]
    assert len(asked) == 6 * 3 * 2
    assert sum(len(batch.tokens) for batch, _ in engine._batches(asked)) == len(items)


def test_a_forgotten_request_is_prepared_anew(engine: TransformersEngine, models: Path) -> None:
    question = Generation(prompt="w1 w2", max_new_tokens=2)
    asked = (to_request(load_tokenizer(models / "alpha"), question),)
    first = engine.generate(asked)
    engine.forget(asked)
    assert id(asked) not in engine._prepared
    assert engine.generate(asked) == first
