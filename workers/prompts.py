"""From questions to tokens: the chat template where the prompt is a chat, the seam between prompt and answer."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from search_spaces.errors import InputError
from workers.engine import Request
from workers.questions import Continuation, Question
from workers.suites import Prompt


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; raises InputError where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as e:
        raise InputError(f"the base must have a tokenizer, but {path} has none that loads: {e}") from e
    return tokenizer


def to_request(tokenizer: PreTrainedTokenizerBase, question: Question) -> Request:
    """The question in tokens.

    Prompt and continuation are tokenised together and cut where the prompt alone ends, as
    lm-evaluation-harness does; behind a plain-text prompt that does not end in white space a space goes between.
    """
    text, special = _prompt_text(tokenizer, question.prompt)
    prompt = tuple(tokenizer.encode(text, add_special_tokens=special))
    if not isinstance(question, Continuation):
        return Request(prompt=prompt, max_new_tokens=question.max_new_tokens)
    seam = " " if special and not text[-1].isspace() else ""
    whole = tuple(tokenizer.encode(text + seam + question.text, add_special_tokens=special))
    continuation = whole[len(prompt) :]
    if not continuation:
        raise InputError(f"a target must hold a token, but {question.text!r} holds none for this tokenizer.")
    return Request(prompt=whole[: len(prompt)], continuation=continuation, ends=question.ends)


def _prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, bool]:
    """The prompt as one text, and whether the tokenizer shall add its special tokens to it."""
    if isinstance(prompt, str):
        return prompt, True
    if tokenizer.chat_template is None:
        raise InputError("a chat prompt needs a chat template, but the base's tokenizer has none.")
    text = tokenizer.apply_chat_template([dict(m) for m in prompt], tokenize=False, add_generation_prompt=True)
    return str(text), False
