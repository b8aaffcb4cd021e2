"""From questions to tokens: the chat template where the prompt is a chat, the seam between prompt and answer."""

from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from search_spaces.errors import InputError
from workers.engine import Request
from workers.questions import Continuation, Generation, Question, WholeText
from workers.suites import Prompt

Tokens = tuple[int, ...]

_OF_TEMPLATES = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What a template can raise: Jinja's own errors, and what Python says to its expressions."""


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; raises InputError where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
        tokenizer.encode("a")  # some broken files load, and fail at the first text
    except BaseException as e:
        # The tokenizers library is Rust: a broken file is a bare Exception there, or a panic, which is not even one.
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        reason = " ".join(str(e).split())[:500]
        raise InputError(f"the base must have a tokenizer, but {path} has none that loads: {reason}") from e
    return tokenizer


def to_requests(tokenizer: PreTrainedTokenizerBase, question: Question, context: int) -> tuple[Request, ...]:
    """The question in tokens: one request, or the windows of a text that is longer than the model's ``context``."""
    if isinstance(question, WholeText):
        return tuple(_windows(tokenizer, question.text, context))
    return (to_request(tokenizer, question),)


def to_request(tokenizer: PreTrainedTokenizerBase, question: Continuation | Generation) -> Request:
    """The question in tokens.

    Prompt and continuation are tokenised together and cut where the prompt alone ends; where the prompt's last token
    merges with what follows, it counts to the continuation. Behind a plain-text prompt a space goes between, unless
    there is white space on either side of the seam.
    """
    text, special = prompt_text(tokenizer, question.prompt)
    if isinstance(question, Generation):
        prompt = _encode(tokenizer, text, special) or _prefix(tokenizer)
        return Request(prompt=prompt, max_new_tokens=question.max_new_tokens, stop=question.stop)
    if question.joined:
        prompt, continuation = _cut_as_lm_eval(tokenizer, text, question.text, special)
    else:
        prompt, continuation = _cut(tokenizer, text, question.text, special)
    if not continuation:
        raise InputError(f"a target must hold a token, but {question.text!r} holds none for this tokenizer.")
    return Request(prompt=prompt, continuation=continuation, ends=question.ends)


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, bool]:
    """The prompt as one text, and whether the tokenizer shall add its special tokens to it.

    A chat whose last words are the assistant's is one that it shall go on with.
    """
    if isinstance(prompt, str):
        return prompt, not (tokenizer.bos_token and prompt.startswith(str(tokenizer.bos_token)))
    if tokenizer.chat_template is None:
        raise InputError("a chat prompt needs a chat template, but the base's tokenizer has none.")
    begun = prompt[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in prompt], tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
    except _OF_TEMPLATES as e:
        raise InputError(f"the base's chat template must render every chat, but: {type(e).__name__}: {e}") from e
    return str(text), False


def _cut(tokenizer: PreTrainedTokenizerBase, text: str, answer: str, special: bool) -> tuple[Tokens, Tokens]:
    seam = " " if special and not (text[-1:].isspace() or answer[:1].isspace()) else ""
    whole = _encode(tokenizer, text + seam + answer, special)
    shared = _shared(_encode(tokenizer, text, special), whole)
    return whole[:shared] or _prefix(tokenizer), whole[shared:]


def _cut_as_lm_eval(tokenizer: PreTrainedTokenizerBase, text: str, answer: str, special: bool) -> tuple[Tokens, Tokens]:
    """The rule of lm-evaluation-harness (``TemplateLM.loglikelihood`` and ``_encode_pair``), token for token.

    It leaves unscored what of the answer merges with the prompt's last token. Where that is all, which ends their
    program, the merged token is scored.
    """
    prompt = text.rstrip()
    if not prompt:
        whole, prefix = _encode(tokenizer, text + answer, False), _prefix(tokenizer)
        return (whole[:1], whole[1:]) if whole[:1] == prefix else (prefix, whole)
    whole = _encode(tokenizer, text + answer, special)
    before = _encode(tokenizer, prompt, special)
    if before and len(before) < len(whole):
        return before, whole[len(before) :]
    shared = _shared(before, whole)
    return whole[:shared] or _prefix(tokenizer), whole[shared:]


def _shared(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _windows(tokenizer: PreTrainedTokenizerBase, text: str, context: int) -> Iterator[Request]:
    """Every token once, each window as full as the model can read (lm-evaluation-harness's rolling log-likelihood).

    The first token follows the beginning of a text, or its end where the tokenizer has no token for the beginning.
    """
    tokens = _encode(tokenizer, text, False)
    if not tokens:
        raise InputError(f"a text must hold a token, but {text!r} holds none for this tokenizer.")
    tokens, done = _prefix(tokenizer) + tokens, 1
    while done < len(tokens):
        end = min(done + context, len(tokens))
        yield Request(prompt=tokens[max(end - 1 - context, 0) : done], continuation=tokens[done:end])
        done = end


def _prefix(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """What a text without a prompt follows."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise InputError("a text without a prompt needs a token for its beginning or its end, but there is neither.")
    return (int(token),)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> Tokens:
    return tuple(tokenizer.encode(text, add_special_tokens=special))
