"""Scorers of items with a right answer: the very answer, its likelihood, and the perplexity of a text."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import ClassVar, Literal, final

from search_spaces.errors import InputError
from workers.errors import TrialError
from workers.marks import Bounds, Mark, Needs, gold_nll, gold_text, loglikelihood
from workers.options import Tokens
from workers.questions import Answer, Continuation, Generation, LogLikelihood, Question, WholeText
from workers.suites import Item
from workers.validity import without_thought

Step = Literal["case", "space", "punctuation", "articles", "accents", "numbers"]

_LARGEST = 700.0
"""Nats above which a perplexity is no float any more."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """1 where the answer is the target, else 0.

    Teacher-forced, the target and the end of the turn are fed and every greedy choice must be theirs: the same
    verdict as generating (tokenised alike), for the price of one prefill. Otherwise the model generates; reasoning in
    <think> tags is cut off, ``extract`` takes the ``last`` (or ``first``) match of a regular expression (its first
    group where it has one), and both sides are brought into one form by the steps of ``normalise``.
    """

    name: ClassVar[str] = "exact_match"
    version: ClassVar[int] = 2
    maximise: ClassVar[bool] = True
    bounds: ClassVar[Bounds] = (0.0, 1.0)

    teacher_forced: bool = False
    max_new_tokens: Tokens = 32
    normalise: tuple[Step, ...] = ("case", "space")
    extract: str | None = None
    take: Literal["first", "last"] = "last"

    def __post_init__(self) -> None:
        if self.extract is not None:
            _pattern(self.extract)
        if self.teacher_forced and self.extract is not None:
            raise InputError("extract needs an answer that was generated, but teacher_forced is true.")

    @property
    def needs(self) -> Needs:
        """A log-likelihood where it is teacher-forced."""
        return "loglikelihood" if self.teacher_forced else "generation"

    def check(self, item: Item) -> str | None:
        """Needs a target."""
        return None if item.target else "a target"

    def ask(self, item: Item) -> Sequence[Question]:
        """The target's likelihood, or a generation."""
        if self.teacher_forced:
            return [Continuation(prompt=item.prompt, text=item.target or "", ends=True)]
        return [Generation(prompt=item.prompt, max_new_tokens=self.max_new_tokens)]

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """1 or 0, with the generated text where there is one. An answer that ``extract`` does not find is wrong."""
        (answer,) = answers
        if isinstance(answer, LogLikelihood):
            verdict = "correct" if answer.greedy else "wrong"
            return Mark(value=float(answer.greedy), verdict=verdict, parts=gold_nll(answer))
        found = self._extracted(without_thought(answer.text))
        if found is None:
            return Mark(value=0.0, verdict="no_match", output=answer.text)
        right = self._form(found) == self._form(item.target or "")
        return Mark(value=float(right), verdict="correct" if right else "wrong", output=answer.text)

    def _extracted(self, text: str) -> str | None:
        if self.extract is None:
            return text
        found = [m[1] if m.re.groups else m[0] for m in re.finditer(self.extract, text)]
        return None if not found else found[0 if self.take == "first" else -1]

    def _form(self, text: str | None) -> str:
        text = unicodedata.normalize("NFKC", text or "")
        for name, step in _STEPS.items():
            if name in self.normalise:
                text = step(text)
        return text.strip()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GoldNll:
    """Negative log-likelihood of the gold answer; lower is better.

    In nats a token (``nats_per_token``), which compares models of one tokenizer, or in bits a byte of its UTF-8 text
    (``bits_per_byte``), which compares any.
    """

    name: ClassVar[str] = "gold_nll"
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = "loglikelihood"
    maximise: ClassVar[bool] = False
    bounds: ClassVar[Bounds] = None

    unit: Literal["nats_per_token", "bits_per_byte"] = "nats_per_token"

    def check(self, item: Item) -> str | None:
        """Needs a target, or choices and the gold one's index."""
        return None if gold_text(item) else "a target, or choices and gold"

    def ask(self, item: Item) -> Sequence[Question]:
        """The gold answer's likelihood."""
        return [Continuation(prompt=item.prompt, text=gold_text(item) or "")]

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """Nats a token or bits a byte."""
        answer = loglikelihood(answers[0])
        if self.unit == "nats_per_token":
            return Mark(value=-answer.total / answer.tokens, parts=gold_nll(answer))
        bits = -answer.total / log(2) / len((gold_text(item) or "").encode())
        return Mark(value=bits, parts=gold_nll(answer))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity of a text; lower is better: exp(negative log-likelihood / number of units).

    The text is the item's target, after its prompt; without a target it is the prompt itself from its first token on,
    in windows where it is longer than the model's context. The unit is a ``token`` (of one tokenizer), a ``word``
    (between white space) or a ``byte`` of UTF-8. An objective is the mean of its texts' perplexities.
    """

    name: ClassVar[str] = "perplexity"
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = "loglikelihood"
    maximise: ClassVar[bool] = False
    bounds: ClassVar[Bounds] = None

    unit: Literal["token", "word", "byte"] = "token"

    def check(self, item: Item) -> str | None:
        """Needs a text: a target, or a prompt that is no chat."""
        return None if item.target or isinstance(item.prompt, str) else "a target, or a prompt that is plain text"

    def ask(self, item: Item) -> Sequence[Question]:
        """The text's likelihood."""
        if item.target:
            return [Continuation(prompt=item.prompt, text=item.target)]
        return [WholeText(text=str(item.prompt))]

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """The perplexity, 1 or more."""
        answer = loglikelihood(answers[0])
        text = item.target or str(item.prompt)
        units = {"token": answer.tokens, "word": len(text.split()), "byte": len(text.encode())}[self.unit]
        nats = -answer.total / max(units, 1)
        if nats > _LARGEST:
            raise TrialError(f"perplexities must be finite, but item {item.id} has {nats:.0f} nats a {self.unit}.")
        return Mark(value=exp(nats))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as e:
        raise InputError(f"extract must be a regular expression, but got {text!r}: {e}.") from e


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text if not unicodedata.category(c).startswith("P"))


def _as_numbers(text: str) -> str:
    """1,000 as 1000 and 3.50 as 3.5, in every digit that Unicode knows."""
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    joined = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", digits)
    return re.sub(r"(\d+)\.(\d*?)0*(?!\d)", lambda m: f"{m[1]}.{m[2]}".rstrip("."), joined)


_STEPS: Mapping[Step, Callable[[str], str]] = {
    "case": str.casefold,
    "numbers": _as_numbers,
    "accents": _without_accents,
    "punctuation": _without_punctuation,
    "articles": lambda text: re.sub(r"\b(a|an|the)\b", " ", text, flags=re.IGNORECASE),
    "space": lambda text: " ".join(text.split()),
}
"""In the order in which they are done."""
