"""What a scorer asks an engine, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.suites import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How likely is this text after the prompt? With ``ends``, followed by the end of the turn.

    ``joined`` where prompt and text are two parts of one text: nothing goes between them, white space at the prompt's
    end counts to the text, and an empty prompt is allowed (as lm-evaluation-harness asks).
    """

    prompt: Prompt
    text: str
    ends: bool = False
    joined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeText:
    """How likely is this text from its first token on? One longer than the model's context is read in windows."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What does the model write (greedily) after the prompt, up to the first of the ``stop`` strings?"""

    prompt: Prompt
    max_new_tokens: int
    stop: tuple[str, ...] = ()


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
    """Answer to a generation, without its stop string; ``truncated`` where neither a stop string nor the end of the
    turn came in time. ``confidence`` is the geometric mean of the probabilities that the model gave to the tokens it
    wrote, the end of the turn included; None where the engine does not say, or a stop string cut the text.
    """

    text: str
    truncated: bool
    confidence: float | None = field(default=None, compare=False)  # last bits depend on the batch


Question = Continuation | WholeText | Generation
Answer = LogLikelihood | Generated


def joined(answers: Sequence[Answer]) -> Answer:
    """One answer to a question that took several requests: the windows of a text add up."""
    if len(answers) == 1:
        return answers[0]
    parts = [a for a in answers if isinstance(a, LogLikelihood)]
    return LogLikelihood(
        total=sum(a.total for a in parts), tokens=sum(a.tokens for a in parts), greedy=all(a.greedy for a in parts)
    )
