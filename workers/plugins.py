"""A scorer of one's own: a Python function that the study file names."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, final

from search_spaces.errors import InputError
from workers.errors import TrialError
from workers.marks import Bounds, Mark, Needs, generated
from workers.options import Tokens
from workers.questions import Answer, Generation, Question
from workers.suites import Item

PREFIX = "python:"

Function = Callable[[Item, str], float | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFunction:
    """What ``function(item, output)`` of an importable module returns: a number, or None for *unscored*.

    The module is imported by ``check``, ``launch`` and the workers, never by what only reads a database. Values must
    lie within ``bounds`` where the study file gives some; more is better unless ``maximise`` is false.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = "generation"

    function: str
    max_new_tokens: Tokens = 64
    maximise: bool = True
    bounds: Bounds = None

    def __post_init__(self) -> None:
        module, _, name = self.function.partition(":")
        if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise InputError(f"a scorer of your own must read python:module:function, but got {self.name!r}.")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise InputError(f"bounds must be [low, high] with low < high, but got {list(self.bounds)}.")

    @property
    def name(self) -> str:
        """``python:module:function``."""
        return f"{PREFIX}{self.function}"

    def prepare(self) -> None:
        """The function must be there."""
        self._load()

    def check(self, item: Item) -> str | None:
        """Needs nothing but the prompt."""
        return None

    def ask(self, item: Item) -> Sequence[Question]:
        """One generation."""
        return [Generation(prompt=item.prompt, max_new_tokens=self.max_new_tokens)]

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """What the function returns; raises TrialError with the item where it raises or returns anything else."""
        text = generated(answers).text
        try:
            value = self._load()(item, text)
        except Exception as e:  # somebody else's code may raise anything: the trial fails, not the worker
            raise TrialError(f"item {item.id}: the scorer {self.name} raised {type(e).__name__}: {e}") from e
        if value is None:
            return Mark(value=None, verdict="unscored", output=text)
        if not isinstance(value, int | float) or not isfinite(value) or not self._within(float(value)):
            limits = "finite" if self.bounds is None else f"in {list(self.bounds)}"
            raise TrialError(
                f"item {item.id}: the scorer {self.name} must return a number {limits}, but got {value!r}."
            )
        return Mark(value=float(value), output=text)

    def _within(self, value: float) -> bool:
        return self.bounds is None or self.bounds[0] <= value <= self.bounds[1]

    def _load(self) -> Function:
        module, _, name = self.function.partition(":")
        try:
            function: Function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as e:
            raise InputError(f"{self.name} must name a function that can be imported, but: {e}.") from e
        if not callable(function):
            raise InputError(f"{self.name} must name a function, but it is a {type(function).__name__}.")
        return function
