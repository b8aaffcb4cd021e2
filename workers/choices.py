"""Scorers of items with choices: the likeliest choice, or the likeliest letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import numpy as np
from pydantic import Field

from search_spaces.errors import InputError
from workers.marks import Bounds, Mark, Needs, gold_nll, loglikelihood
from workers.questions import Answer, Continuation, Question
from workers.suites import Item, Prompt


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    """1 where the gold choice is the likeliest (lm-evaluation-harness's ``acc``; ``acc_norm`` with bytes).

    ``normalise`` divides each log-likelihood: ``sum`` by nothing, ``characters`` and ``bytes`` by the choice's length.
    """

    name: ClassVar[str] = "multiple_choice"
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = "loglikelihood"
    maximise: ClassVar[bool] = True
    bounds: ClassVar[Bounds] = (0.0, 1.0)

    normalise: str = "sum"

    def __post_init__(self) -> None:
        if self.normalise not in ("sum", "characters", "bytes"):
            raise InputError(f"normalise must be sum, characters or bytes, but got {self.normalise!r}.")

    def check(self, item: Item) -> str | None:
        """Needs choices and the gold one's index."""
        return None if item.choices and item.gold is not None else "choices and gold"

    def ask(self, item: Item) -> Sequence[Question]:
        """The likelihood of every choice."""
        return [Continuation(prompt=item.prompt, text=choice) for choice in item.choices]

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """1 or 0, and the choice that won; the first of equals wins."""
        totals = [loglikelihood(a).total / self._length(c) for a, c in zip(answers, item.choices, strict=True)]
        best = max(range(len(totals)), key=totals.__getitem__)
        right = best == item.gold
        verdict = "correct" if right else "wrong"
        gold = gold_nll(loglikelihood(answers[item.gold or 0]))
        return Mark(value=float(right), verdict=verdict, output=item.choices[best], parts=gold)

    def _length(self, choice: str) -> int:
        return {"sum": 1, "characters": len(choice), "bytes": len(choice.encode())}[self.normalise]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceLetter:
    """1 where the gold choice's letter is the likeliest first word of the answer (as MMLU is asked).

    The item's prompt shows the choices with their letters; with ``lettered`` they are added to it, one a line. A
    letter's probability is that of it with and without a space before it, for tokenizers differ in what they want.
    ``letters`` are A, B, C ... or others: a digit, a letter of another alphabet.
    """

    name: ClassVar[str] = "choice_letter"
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = "first_token"
    maximise: ClassVar[bool] = True
    bounds: ClassVar[Bounds] = (0.0, 1.0)

    letters: tuple[Annotated[str, Field(min_length=1)], ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    lettered: bool = False

    def __post_init__(self) -> None:
        if len(set(self.letters)) < max(len(self.letters), 2):
            raise InputError(f"letters must be two or more that differ, but got {', '.join(self.letters)}.")

    def check(self, item: Item) -> str | None:
        """Needs choices, the gold one's index, and a letter for each choice."""
        if not item.choices or item.gold is None:
            return "choices and gold"
        few = len(self.letters) < len(item.choices)
        return f"no more choices than there are letters ({len(self.letters)})" if few else None

    def ask(self, item: Item) -> Sequence[Question]:
        """The likelihood of every choice's letter, in each of its spellings."""
        prompt = self._shown(item) if self.lettered else item.prompt
        return [question for letter in self.letters[: len(item.choices)] for question in _spellings(prompt, letter)]

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """1 or 0, and the letter that won. Unscored where the tokenizer gives all letters the same tokens."""
        each = np.array([loglikelihood(a).total for a in answers]).reshape(len(item.choices), -1)
        totals: list[float] = np.logaddexp.reduce(each, axis=1).tolist()
        if min(totals) == max(totals):
            return Mark(value=None, verdict="letters_alike")
        best = max(range(len(totals)), key=totals.__getitem__)
        right = best == item.gold
        return Mark(value=float(right), verdict="correct" if right else "wrong", output=self.letters[best])

    def _shown(self, item: Item) -> Prompt:
        lines = "".join(f"\n{letter}. {choice}" for letter, choice in zip(self.letters, item.choices, strict=False))
        if isinstance(item.prompt, str):
            return f"{item.prompt}{lines}\nAnswer:"
        *before, last = item.prompt
        return (*before, {**last, "content": last["content"] + lines})


def _spellings(prompt: Prompt, letter: str) -> list[Question]:
    """The letter at once and after a space; behind white space at once only."""
    if not isinstance(prompt, str):
        return [Continuation(prompt=prompt, text=text) for text in (letter, f" {letter}")]
    spaced = Continuation(prompt=prompt, text=letter)
    return [spaced] if prompt[-1:].isspace() else [spaced, Continuation(prompt=prompt, text=letter, joined=True)]
