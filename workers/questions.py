"""What a scorer asks an engine, and what comes back."""

from dataclasses import dataclass

from workers.suites import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How likely is this text after the prompt? With ``ends``, followed by the end of the turn."""

    prompt: Prompt
    text: str
    ends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What does the model write (greedily) after the prompt?"""

    prompt: Prompt
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLikelihood:
    """Answer to a continuation: natural-log probability in total, how many tokens, and whether greedy decoding
    would have written exactly it.
    """

    total: float
    tokens: int
    greedy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Answer to a generation; ``truncated`` where the end of the turn did not come in time."""

    text: str
    truncated: bool


Question = Continuation | Generation
Answer = LogLikelihood | Generated
