"""What a mark is, and what every scorer has."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar, Literal, Protocol, runtime_checkable

from workers.errors import EngineError, TrialError
from workers.questions import Answer, Generated, LogLikelihood, Question
from workers.second_stage import SecondStage
from workers.suites import Item

Bounds = tuple[float, float] | None
Needs = Literal["loglikelihood", "first_token", "generation"]
"""What a scorer's questions cost: a prefill of prompt and answer, one of the prompt alone, or decoding."""

MOST_UNSCORED = 0.02
"""Share of a suite's items that may stay unscored; above it the trial fails. Items too long for the model are apart."""

GOLD_NLL = "gold_nll"
"""The part that scorers of likelihoods add: negative log-likelihood of the gold answer in nats a token."""

Asked = tuple[Item, Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One item's outcome; ``parts`` are named values that are averaged beside the score: 0 or 1, or `GOLD_NLL`."""

    value: float | None
    verdict: str | None = None
    output: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


class _Asks(Protocol):
    version: ClassVar[int]

    @property
    def name(self) -> str:
        """By which a study file calls it."""
        ...

    @property
    def needs(self) -> Needs:
        """The dearest kind of question that it asks."""
        ...

    @property
    def maximise(self) -> bool:
        """Whether more is better."""
        ...

    @property
    def bounds(self) -> Bounds:
        """Where its values lie, None without bounds."""
        ...

    def check(self, item: Item) -> str | None:
        """What the item lacks for this scorer, in words; None where it lacks nothing."""
        ...

    def ask(self, item: Item) -> Sequence[Question]:
        """The questions about one item."""
        ...


class OneByOne(_Asks, Protocol):
    """A scorer that needs nothing but an item's answers."""

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """The outcome, given the answers in the questions' order."""
        ...


@runtime_checkable
class _MarksAll(Protocol):
    def mark_all(self, asked: Sequence[Asked], stage: SecondStage) -> list[Mark]:
        """The outcomes of many items, in their order."""
        ...


class InBatches(_Asks, _MarksAll, Protocol):
    """A scorer whose marks come from a second model or from a service."""


Scorer = OneByOne | InBatches


@runtime_checkable
class Prepares(Protocol):
    """A scorer that can say before a study starts whether what it needs is there."""

    def prepare(self) -> None:
        """Raises InputError where a file, a module or an environment variable is missing or broken."""
        ...


@runtime_checkable
class Opens(Protocol):
    """A scorer with a second model, which is loaded when it is first needed, or by this."""

    def open(self, stage: SecondStage) -> None:
        """Load it; raises TrialError where it does not load."""
        ...


def open_all(scorers: Sequence[Scorer], stage: SecondStage) -> None:
    """Load every second model now. One that does not load fails the trials, with its reason, and not the worker."""
    for scorer in scorers:
        if isinstance(scorer, Opens):
            with suppress(TrialError):
                scorer.open(stage)


def mark_all(scorer: Scorer, asked: Sequence[Asked], stage: SecondStage) -> list[Mark]:
    """The marks of many items, in their order; raises TrialError where they cannot be had."""
    if isinstance(scorer, _MarksAll):
        return scorer.mark_all(asked, stage)
    return [scorer.mark(item, answers) for item, answers in asked]


def loglikelihood(answer: Answer) -> LogLikelihood:
    """The answer as what it must be; raises EngineError where it is not finite."""
    if not isinstance(answer, LogLikelihood):
        raise TypeError("this scorer asks for log-likelihoods")
    if not isfinite(answer.total):
        raise EngineError(f"log-likelihoods must be finite, but the engine gave {answer.total}.")
    return answer


def gold_nll(answer: LogLikelihood) -> dict[str, float]:
    """The part of a mark that the gold answer's likelihood gives; none where it is not finite."""
    return {GOLD_NLL: -answer.total / answer.tokens} if isfinite(answer.total) else {}


def generated(answers: Sequence[Answer]) -> Generated:
    """The one answer to the one generation that was asked for."""
    (answer,) = answers
    if not isinstance(answer, Generated):
        raise TypeError("this scorer asks for a generation")
    return answer


def last_words(item: Item) -> str:
    """What the model was asked last."""
    return item.prompt if isinstance(item.prompt, str) else item.prompt[-1]["content"]


def gold_text(item: Item) -> str | None:
    """The right answer: the target, else the gold choice."""
    return item.choices[item.gold] if item.target is None and item.gold is not None else item.target
