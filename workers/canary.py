"""A worker's canary: one merge and a few prompts, the same every time. Silent corruption is worse than a crash."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from workers.engine import Engine, Request
from workers.prompts import to_request
from workers.questions import Generation
from workers.sheet import Suite

_ITEMS = 4
"""Prompts of each suite that are asked."""

_LONGEST = 1024
"""Tokens of a prompt made of all of them: long enough for whatever an engine keeps of prompts it has read."""

_NOISE = 0.02
"""Difference of log-likelihoods, absolute and relative, that batches of another GPU kernel may give; on CPU none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """The digest of every tensor of the merge, and the natural-log probability of each prompt under it."""

    digest: str
    totals: tuple[float, ...]
    exact: bool

    def wrong(self, other: "Canary") -> list[tuple[float, float]]:
        """The answers that are not the other's, each beside the other's; one that is no number is always wrong."""
        exact = self.exact and other.exact
        pairs = zip(self.totals, other.totals, strict=True)
        return [(a, b) for a, b in pairs if not abs(a - b) <= (0.0 if exact else _NOISE * (1 + abs(b)))]

    def differs_from(self, other: "Canary") -> str | None:
        """In words what is not as in the other; None where all is."""
        if self.digest != other.digest:
            return f"the uniform merge has digest {self.digest[:12]}, not {other.digest[:12]}"
        for mine, its in self.wrong(other):
            return f"an answer of the uniform merge has log-likelihood {mine}, not {its}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a live engine that was swapped makes of a merge, against an engine that was started on it.

    Attributes:
        merge: the fresh engine's canary. swapped: largest difference, in natural-log probability, of the live engine's
            answers. back: the same of its answers after a swap back to the base, against those before. answers: how
            many were compared. problem: why the engine must not be used, in words; empty where it may.
    """

    merge: Canary
    swapped: float
    back: float
    answers: int
    problem: str


def song_of(suites: Iterable[Suite], tokenizer: PreTrainedTokenizerBase, context: int) -> tuple[Request, ...]:
    """What a canary is asked: how likely a few prompts of every suite are given their first token, and their last."""
    items = [item for suite in suites for item in suite.items[:_ITEMS]]
    prompts = [to_request(tokenizer, Generation(prompt=i.prompt, max_new_tokens=1)).prompt for i in items]
    long = tuple(chain.from_iterable(prompts))[: min(context, _LONGEST)]
    return tuple(r for p in [*prompts, long] if 1 < len(p) <= context for r in _verses(p))


def _verses(prompt: tuple[int, ...]) -> Iterator[Request]:
    yield Request(prompt=prompt[:1], continuation=prompt[1:])
    yield Request(prompt=prompt[:-1], continuation=prompt[-1:])


def canary_of(digest: str, engine: Engine, requests: tuple[Request, ...]) -> Canary:
    """What an engine whose weights have this digest answers."""
    totals = tuple(answer.total for answer in engine.loglikelihood(requests))
    return Canary(digest=digest, totals=totals, exact=engine.exact)
