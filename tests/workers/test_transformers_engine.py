"""The engine against transformers itself, one request at a time and without padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.engine import Request
from workers.errors import EngineError
from workers.prompts import load_tokenizer, to_request
from workers.questions import Continuation, Generation
from workers.transformers_engine import TransformersEngine, empty_weights

PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), (6, 6), (20, 21, 22), (30, 31, 32, 33)]


@pytest.fixture(scope="module")
def engine(models: Path) -> TransformersEngine:
    return TransformersEngine(models / "alpha", load_tokenizer(models / "alpha"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def reference(models: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(models / "alpha", dtype=torch.float32)
    return model


@pytest.mark.parametrize("ends", [False, True])
def test_loglikelihoods_are_those_of_each_request_alone(
    engine: TransformersEngine, reference: torch.nn.Module, ends: bool
) -> None:
    requests = tuple(Request(prompt=p, continuation=tuple(range(15, 16 + i)), ends=ends) for i, p in enumerate(PROMPTS))
    for request, answer in zip(requests, engine.loglikelihood(requests), strict=True):
        wanted = [*request.continuation, *([2] if ends else [])]
        ids = torch.tensor([[*request.prompt, *wanted]])
        with torch.no_grad():
            logp = reference(ids).logits.log_softmax(-1)[0, len(request.prompt) - 1 : -1]
        expected = logp[range(len(wanted)), wanted]
        assert answer.total == pytest.approx(expected.sum().item(), abs=1e-4)
        assert answer.tokens == len(wanted)
        assert answer.greedy == bool((logp.argmax(-1) == torch.tensor(wanted)).all())


def test_generation_is_the_librarys_own_greedy_one(engine: TransformersEngine, reference: torch.nn.Module) -> None:
    requests = tuple(Request(prompt=p, max_new_tokens=4 + i) for i, p in enumerate(PROMPTS))
    tokenizer = load_tokenizer(Path(reference.config._name_or_path))  # type: ignore[union-attr,arg-type]
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            written = reference.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, do_sample=False
            )[0, len(request.prompt) :]
        assert answer.text == tokenizer.decode(written, skip_special_tokens=True)
        assert answer.truncated == (2 not in written.tolist())


def test_teacher_forcing_gives_the_verdict_of_generating(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    """What the model writes is, fed back as a target, greedy; with one token changed it is not."""
    for prompt in range(6, 40):
        ids = torch.tensor([[prompt]])
        with torch.no_grad():
            written = reference.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
            )[0, 1:].tolist()
        ends = 2 in written
        target = tuple(written[: written.index(2)] if ends else written)
        if not target:
            continue
        other = (*target[:-1], (target[-1] + 1) % 40)
        right, wrong = engine.loglikelihood(
            tuple(Request(prompt=(prompt,), continuation=c, ends=ends) for c in (target, other))
        )
        assert (right.greedy, wrong.greedy) == (True, False)


def test_the_order_of_answers_is_the_order_of_requests(engine: TransformersEngine) -> None:
    requests = tuple(Request(prompt=p, continuation=(7, 8)) for p in PROMPTS)
    forward = engine.loglikelihood(requests)
    backward = engine.loglikelihood(requests[::-1])
    assert [a.total for a in forward] == pytest.approx([a.total for a in reversed(backward)], abs=1e-5)


def test_the_same_requests_give_the_same_bits_again(engine: TransformersEngine) -> None:
    requests = tuple(Request(prompt=p, continuation=(7, 8)) for p in PROMPTS)
    assert engine.loglikelihood(requests) == engine.loglikelihood(requests)


def test_weights_that_are_written_are_the_weights_that_answer(models: Path) -> None:
    tokenizer = load_tokenizer(models / "alpha")
    engine = TransformersEngine(models / "alpha", tokenizer, dtype="float32", device="cpu")
    other = TransformersEngine(models / "beta", tokenizer, dtype="float32", device="cpu")
    requests = tuple(Request(prompt=p, continuation=(7, 8)) for p in PROMPTS)
    for name, tensor in engine.weights().items():
        tensor.copy_(other.weights()[name])
    assert engine.loglikelihood(requests) == other.loglikelihood(requests)


def test_tied_weights_stand_once_and_like_the_live_ones(models: Path, engine: TransformersEngine) -> None:
    empty = empty_weights(models / "alpha", "float32")
    assert "lm_head.weight" not in empty
    assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {
        n: (t.shape, t.dtype) for n, t in engine.weights().items()
    }


@pytest.mark.parametrize("kind", ["loglikelihood", "generate"])
def test_weights_that_give_nan_are_an_error_and_no_answer(models: Path, kind: str) -> None:
    engine = TransformersEngine(models / "alpha", load_tokenizer(models / "alpha"), dtype="float32", device="cpu")
    engine.weights()["model.norm.weight"].fill_(float("nan"))
    request = (
        Request(prompt=(5,), continuation=(6,)) if kind == "loglikelihood" else Request(prompt=(5,), max_new_tokens=2)
    )
    with pytest.raises(EngineError, match="logits must be finite"):
        getattr(engine, kind)((request,))


def test_chat_prompts_get_the_template_and_plain_ones_a_space(models: Path) -> None:
    tokenizer = load_tokenizer(models / "base")
    chat = to_request(tokenizer, Continuation(prompt=({"role": "user", "content": "w1"},), text="w2"))
    assert tokenizer.convert_ids_to_tokens(list(chat.prompt)) == ["<user>", "w1", "<assistant>"]
    assert tokenizer.convert_ids_to_tokens(list(chat.continuation)) == ["w2"]
    plain = to_request(tokenizer, Continuation(prompt="w1", text="w2 w3"))
    assert tokenizer.convert_ids_to_tokens([*plain.prompt, *plain.continuation]) == ["w1", "w2", "w3"]
    assert to_request(tokenizer, Generation(prompt="w1", max_new_tokens=3)).max_new_tokens == 3


def test_a_stop_string_cuts_what_is_generated_without_it(engine: TransformersEngine) -> None:
    """For every word that some answer holds: what stands before its first place, and no word of it decoded in vain."""
    prompts = [(i, j) for i in range(6, 30, 3) for j in (7, 20)]
    plain = engine.generate(tuple(Request(prompt=p, max_new_tokens=12) for p in prompts))
    words = sorted({word for answer in plain for word in answer.text.split()})
    for word in words:
        stopped = engine.generate(tuple(Request(prompt=p, max_new_tokens=12, stop=("nowhere", word)) for p in prompts))
        for whole, cut in zip(plain, stopped, strict=True):
            before, found, _ = whole.text.partition(word)
            assert cut.text == before
            assert cut.truncated == (whole.truncated and not found)


def test_rows_with_and_without_stop_strings_share_a_batch(engine: TransformersEngine) -> None:
    word = engine.generate((Request(prompt=(6, 7), max_new_tokens=12),))[0].text.split()[1]
    with_stop, without = (Request(prompt=(6, 7), max_new_tokens=12, stop=stop) for stop in ((word,), ()))
    cut, whole = engine.generate((with_stop, without))
    assert cut.text == whole.text.partition(word)[0]
    assert whole == engine.generate((without,))[0]


def test_decoding_ends_when_every_row_has_stopped(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    word = engine.generate((Request(prompt=(6, 7), max_new_tokens=12),))[0].text.split()[0]
    steps = 0
    forward = engine._forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*arguments, **options)

    monkeypatch.setattr(engine, "_forward", counted)
    (answer,) = engine.generate((Request(prompt=(6, 7), max_new_tokens=40, stop=(word,)),))
    assert (answer.text, answer.truncated) == ("", False)
    assert steps <= 4
