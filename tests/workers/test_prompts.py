"""From questions to tokens, with a tokenizer whose tokens cross spaces and merge, as those of real models do."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from search_spaces.errors import InputError
from workers.prompts import load_tokenizer, to_request, to_requests
from workers.questions import Continuation, Generation, LogLikelihood, WholeText, joined

_TEXTS = ["the answer is four", "what is the answer?\nAnswer: four", " the the  answer\n\n answers"] * 8


def trained(*, begins: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE; with ``begins`` it puts <s> before a text by itself, as Llama's does."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    if begins:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


BARE, BEGUN = trained(begins=False), trained(begins=True)


def texts(tokenizer: PreTrainedTokenizerFast, *tokens: int) -> str:
    return str(tokenizer.decode(list(tokens)))


@pytest.mark.parametrize(
    ("prompt", "answer", "read", "scored"),
    [
        ("Answer:", "four", "Answer:", " four"),
        ("Answer:", " four", "Answer:", " four"),
        ("Answer: ", "four", "Answer:", " four"),
        ("Answer:\n", "four", "Answer:\n", "four"),
        ("Answer:", "\nfour", "Answer:", "\nfour"),
    ],
)
def test_one_space_goes_between_and_no_second_one(prompt: str, answer: str, read: str, scored: str) -> None:
    request = to_request(BARE, Continuation(prompt=prompt, text=answer))
    assert (texts(BARE, *request.prompt), texts(BARE, *request.continuation)) == (read, scored)


@pytest.mark.parametrize("tokenizer", [BARE, BEGUN])
@given(prompt=st.text("theansw \n:", min_size=1, max_size=20), answer=st.text("theansw \n:", min_size=1, max_size=12))
def test_nothing_of_an_answer_is_left_unscored(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> None:
    """Prompt and continuation are the text, and the continuation holds at least the answer."""
    request = to_request(tokenizer, Continuation(prompt=prompt, text=answer))
    whole = texts(tokenizer, *request.prompt, *request.continuation).removeprefix("<s>")
    assert request.prompt
    assert whole in {prompt + answer, f"{prompt} {answer}"}
    assert texts(tokenizer, *request.continuation).endswith(answer)


@given(prompt=st.text("theansw \n:", max_size=20), answer=st.text("theansw \n:", min_size=1, max_size=12))
def test_a_joined_answer_always_has_a_prompt_and_something_to_score(prompt: str, answer: str) -> None:
    for tokenizer in (BARE, BEGUN):
        request = to_request(tokenizer, Continuation(prompt=prompt, text=answer, joined=True))
        assert request.prompt
        assert request.continuation


def test_joined_texts_get_no_space_and_white_space_moves_to_the_answer() -> None:
    request = to_request(BARE, Continuation(prompt="答え: \n", text="four", joined=True))
    assert (texts(BARE, *request.prompt), texts(BARE, *request.continuation)) == ("答え:", " \nfour")


@pytest.mark.parametrize(("prompt", "text"), [("", "the answer"), (" ", "the answer")])
def test_an_answer_without_a_prompt_follows_the_beginning_of_a_text(prompt: str, text: str) -> None:
    for tokenizer in (BARE, BEGUN):
        request = to_request(tokenizer, Continuation(prompt=prompt, text=text, joined=True))
        assert request.prompt == (0,)
        assert texts(tokenizer, *request.continuation) == prompt + text


def test_a_text_that_begins_with_the_beginning_has_it_once() -> None:
    request = to_request(BEGUN, Generation(prompt="<s>the answer", max_new_tokens=1))
    assert list(request.prompt).count(0) == 1
    assert to_request(BEGUN, Generation(prompt="the answer", max_new_tokens=1)) == request


@given(st.text("theansw \n", min_size=1, max_size=60), st.integers(2, 9))
def test_the_windows_of_a_text_score_each_token_once_and_fit(text: str, context: int) -> None:
    """They follow each other without a gap, and every one but the last is as full as the model can read."""
    windows = to_requests(BEGUN, WholeText(text=text), context)
    assert [t for w in windows for t in w.continuation] == BEGUN.encode(text, add_special_tokens=False)
    assert windows[0].prompt == (0,)
    assert all(w.prompt and w.length <= context for w in windows)
    assert all(w.length == context for w in windows[:-1])
    for before, after in pairwise(windows):
        assert after.prompt[-1] == before.continuation[-1]


def test_the_answers_of_windows_add_up() -> None:
    parts = [LogLikelihood(total=-1.5, tokens=3, greedy=True), LogLikelihood(total=-2.0, tokens=1, greedy=False)]
    assert joined(parts) == LogLikelihood(total=-3.5, tokens=4, greedy=False)
    assert joined(parts[:1]) == parts[0]


def test_a_chat_that_ends_with_the_assistants_words_is_gone_on_with(models: Path) -> None:
    tokenizer = load_tokenizer(models / "base")
    user, begun = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
    request = to_request(tokenizer, Continuation(prompt=(user, begun), text=" w3"))
    assert tokenizer.convert_ids_to_tokens(list(request.prompt)) == ["<user>", "w1", "<assistant>", "w2"]


def test_what_holds_no_token_is_an_error() -> None:
    with pytest.raises(InputError, match="a text must hold a token"):
        to_requests(BARE, WholeText(text=""), 8)
    with pytest.raises(InputError, match="a target must hold a token"):
        to_request(BARE, Continuation(prompt="the", text="", joined=True))
