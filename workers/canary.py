"""A worker's canary: one merge and a few prompts, the same every time. Silent corruption is worse than a crash."""

from dataclasses import dataclass

from workers.engine import Engine, Request

_NOISE = 0.02
"""Relative difference of log-likelihoods that batches of another GPU kernel may give; on CPU there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """The digest of every tensor of the merge, and the natural-log probability of each prompt under it."""

    digest: str
    totals: tuple[float, ...]
    exact: bool

    def differs_from(self, other: "Canary") -> str | None:
        """In words what is not as in the other; None where all is."""
        if self.digest != other.digest:
            return f"the uniform merge has digest {self.digest[:12]}, not {other.digest[:12]}"
        for place, (mine, its) in enumerate(zip(self.totals, other.totals, strict=True)):
            allowed = 0.0 if self.exact and other.exact else _NOISE * abs(its)
            if not abs(mine - its) <= allowed:
                return f"prompt {place} of the uniform merge has log-likelihood {mine}, not {its}"
        return None


def canary_of(digest: str, engine: Engine, requests: tuple[Request, ...]) -> Canary:
    """What an engine whose weights have this digest answers."""
    totals = tuple(answer.total for answer in engine.loglikelihood(requests))
    return Canary(digest=digest, totals=totals, exact=engine.exact)
