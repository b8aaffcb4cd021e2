"""What every engine is: one live model whose weights are swapped in place and that answers two kinds of requests.

An engine is opened by :func:`workers.engines.load`, with the base's weights in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from search_spaces.recipe import Recipe
from workers.questions import Generated, LogLikelihood


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question in tokens. ``continuation`` is empty where the model shall generate; it then stops at the first of the
    ``stop`` strings.
    """

    prompt: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    ends: bool = False
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens that must fit into the model's context: the last one is only predicted, never read."""
        return len(self.prompt) + len(self.continuation) + self.ends + self.max_new_tokens - 1

    def wanted(self, ending: int) -> list[int]:
        """The tokens that are to be scored, ``ending`` being the one that ends a turn."""
        return [*self.continuation, *([ending] if self.ends else [])]

    def fed(self, ending: int) -> list[int]:
        """What the model reads: all but the last token that it shall predict."""
        return [*self.prompt, *self.wanted(ending)[:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a study keeps about an engine: its program, version and arguments, and its start in wall seconds."""

    engine: str
    version: str
    seconds: float
    arguments: Mapping[str, Any]


class Engine(Protocol):
    """A live model. The same requests object gives the same batches every time, so they are prepared once."""

    facts: Facts
    forward_seconds: float
    """Wall seconds spent so far in answering."""

    @property
    def context(self) -> int:
        """Tokens that fit into it; see :attr:`Request.length`."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the same requests give the same bits every time."""
        ...

    def swap(self, recipe: Recipe) -> str:
        """Make the weights this merge; returns its digest, see :func:`workers.merger.merge_digest`.

        Raises: MergeError where it cannot be merged, and nothing has changed; EngineDied where it broke on the way;
            CheckpointError where a file of a checkpoint has changed since it was opened.
        """
        ...

    def loglikelihood(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood]:
        """Answers in the requests' order; raises EngineError where a logit is not finite."""
        ...

    def generate(self, requests: tuple[Request, ...]) -> Sequence[Generated]:
        """Greedy continuations in the requests' order; raises EngineError where a logit is not finite."""
        ...
