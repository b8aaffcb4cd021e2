"""What every engine is: one live model whose weights are swapped in place and that answers two kinds of requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

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


class Engine(Protocol):
    """A live model. The same requests object gives the same batches every time, so they are prepared once."""

    def weights(self) -> Mapping[str, Tensor]:
        """The live weights by their name in a checkpoint; writing into them swaps the model."""
        ...

    def loglikelihood(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood]:
        """Answers in the requests' order; raises EngineError where a logit is not finite."""
        ...

    def generate(self, requests: tuple[Request, ...]) -> Sequence[Generated]:
        """Greedy continuations in the requests' order; raises EngineError where a logit is not finite."""
        ...
