"""Where what a model writes ends, and what of it is the answer: the same for every engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.questions import Generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """The tokens that end a turn, and the tokenizer that reads what stands before them."""

    tokens: frozenset[int]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, generation_config: Any, tokenizer: PreTrainedTokenizerBase) -> "Endings":
        """The end-of-sequence tokens of a model's generation config and of its tokenizer."""
        configured = generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        found = frozenset(t for t in [*ends, tokenizer.eos_token_id] if t is not None)
        return cls(tokens=found, tokenizer=tokenizer)

    @property
    def first(self) -> int:
        """The one that stands for all of them."""
        return min(self.tokens, default=0)

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens in words, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def generated(self, tokens: Sequence[int], logs: Sequence[float], stop: Sequence[str]) -> Generated:
        """The answer in what was written, given the natural-log probability of each of its tokens."""
        end = next((i for i, token in enumerate(tokens) if token in self.tokens), None)
        text = self.text(tokens[:end])
        stops = [place for place in map(text.find, stop) if place >= 0]
        written = logs if end is None else logs[: end + 1]
        return Generated(
            text=text[: min(stops, default=None)],
            truncated=end is None and not stops,
            confidence=None if stops else exp(fmean(written)),
        )
