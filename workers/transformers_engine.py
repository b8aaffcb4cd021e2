"""The transformers engine: any causal or vision-language model of the library, asked with text, on CPU and CUDA."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from search_spaces.recipe import Recipe
from workers.endings import Endings
from workers.engine import Facts, Request
from workers.errors import EngineError
from workers.family import Family
from workers.layouts import as_stored
from workers.model_classes import auto_class
from workers.placement import placed
from workers.questions import Generated, LogLikelihood

_BATCH_TOKENS: Final = {"cpu": 4096, "cuda": 32768}
_LEAST_BATCH_TOKENS: Final = 64
_BATCH_ROWS: Final = 256
_log = logging.getLogger(__name__)
_Requests = tuple[Request, ...]
_Answers = TypeVar("_Answers")
_LOOK: Final = 4
"""Steps between two looks for stop strings: a look costs a decoding on the host."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests of similar length, padded on the left so that all of them end in the last column.

    ``rows`` says which requests these are; without padding ``mask`` and ``positions`` are None, which lets the model
    take its fastest attention. Where requests differ in nothing but their last token, as letters of choices do, the
    model reads what they share once, and ``sources`` says in which row each request finds its answer.
    """

    rows: tuple[int, ...]
    tokens: Tensor
    mask: Tensor | None
    positions: Tensor | None
    sources: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Targets:
    """The continuations of a batch, right-aligned: token ids, and which of the (rows, width) places count."""

    tokens: Tensor
    counts: Tensor
    ends: Tensor


class TransformersEngine:
    """One model in memory for the engine's whole life.

    Args:
        path: directory of the base model. dtype: type of the live weights. device: ``cpu`` or ``cuda[:n]``.
        tokenizer: the base's; its end-of-sequence tokens and those of the generation config end a turn.
        trust_remote_code: whether Python files in the directory may run.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str,
        device: str,
        trust_remote_code: bool = False,
    ) -> None:
        self._model = _load(path, dtype, trust_remote_code).to(device)
        self._model.eval().requires_grad_(False)
        self._past = _past_name(self._model)
        self._device = torch.device(device)
        self._endings = Endings.of(self._model.generation_config, tokenizer)
        self._end = torch.tensor(sorted(self._endings.tokens), device=device)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._endings.first
        # Keyed by identity: the tuple itself is kept beside its batches, so that its id stays taken.
        self._prepared: dict[int, tuple[tuple[Request, ...], list[Any]]] = {}
        self._batch_tokens = _BATCH_TOKENS[self._device.type]
        self.forward_seconds = 0.0
        """Wall seconds spent so far in forward passes and in reading their logits."""

    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and persistent buffers by their names on disk; of tied ones the first name."""
        return _untied(self._model)

    @property
    def context(self) -> int:
        """Tokens that the model can attend to."""
        return context_of(self._model.config)

    @property
    def exact(self) -> bool:
        """On a CPU the same batches give the same bits."""
        return self._device.type == "cpu"

    def loglikelihood(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood]:
        """One prefill for each batch of similar length."""
        return self._within_memory(self._loglikelihood, requests)

    def generate(self, requests: tuple[Request, ...]) -> Sequence[Generated]:
        """Greedy decoding with a key-value cache; a batch stops when each of its rows has ended."""
        return self._within_memory(self._generate, requests)

    def _within_memory(self, answer: Callable[[_Requests], _Answers], requests: _Requests) -> _Answers:
        """The answers; where memory runs out, with half as many tokens a batch from then on."""
        while True:
            try:
                return answer(requests)
            except (RuntimeError, MemoryError) as e:
                if not _is_out_of_memory(e) or self._batch_tokens <= _LEAST_BATCH_TOKENS:
                    raise
                self._batch_tokens //= 2
                _log.warning("memory ran out: batches have at most %d tokens from now on", self._batch_tokens)
            self._prepared.clear()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _loglikelihood(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood]:
        answers: list[LogLikelihood | None] = [None] * len(requests)
        spread = _Spread()
        for batch, targets in self._batches(requests):
            with self._timed():
                logits = self._forward(batch, logits_to_keep=targets.tokens.shape[1]).logits
                logits = logits if batch.sources is None else logits[batch.sources]
                totals, greedy = _against(logits, targets, self._end, spread)
            for row, total, right, count in zip(
                batch.rows, totals, greedy, targets.counts.sum(1).tolist(), strict=True
            ):
                answers[row] = LogLikelihood(total=total, tokens=count, greedy=right)
        spread.require(requests)
        return [a for a in answers if a is not None]

    @torch.inference_mode()
    def _generate(self, requests: tuple[Request, ...]) -> Sequence[Generated]:
        answers: list[Generated | None] = [None] * len(requests)
        spread = _Spread()
        for batch, _ in self._batches(requests):
            asked = [requests[row] for row in batch.rows]
            with self._timed():
                written, likely = self._decode(batch, asked, spread)
            for row, tokens, logs, request in zip(batch.rows, written, likely, asked, strict=True):
                most = request.max_new_tokens
                answers[row] = self._endings.generated(tokens[:most], logs[:most], request.stop)
        spread.require(requests)
        return [a for a in answers if a is not None]

    def _decode(
        self, batch: _Batch, asked: Sequence[Request], spread: "_Spread"
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The tokens of each row, and the log-probability that each of them was given."""
        steps, stopping = max(r.max_new_tokens for r in asked), any(r.stop for r in asked)
        output = self._forward(batch, logits_to_keep=1, use_cache=True)
        mask, positions = batch.mask, batch.positions
        columns: list[Tensor] = []
        likely: list[Tensor] = []
        done = torch.zeros(len(batch.rows), dtype=torch.bool, device=self._device)
        for step in range(steps):
            logits = output.logits[:, -1].float()
            top, normaliser = logits.max(-1), logits.logsumexp(-1)
            columns.append(top.indices)
            likely.append(top.values - normaliser)
            if step == 0:
                spread.see(normaliser)
            done |= torch.isin(top.indices, self._end)
            if stopping and (step + 1) % _LOOK == 0:
                done |= self._stopped(torch.stack(columns, 1).tolist(), asked, done.tolist())
            if step + 1 == steps or bool(done.all()):
                break
            if mask is not None and positions is not None:
                mask = torch.cat([mask, mask.new_ones(len(batch.rows), 1)], 1)
                positions = positions[:, -1:] + 1
            ahead = _Batch(batch.rows, top.indices[:, None], mask, positions)
            past = {self._past: output[self._past]}
            output = self._forward(ahead, logits_to_keep=1, use_cache=True, **past)
        logs = torch.stack(likely, 1)
        _require_finite(logs)
        return torch.stack(columns, 1).tolist(), logs.tolist()

    def _stopped(self, written: Sequence[list[int]], asked: Sequence[Request], done: Sequence[bool]) -> Tensor:
        """Which rows have written a stop string, of those that are not done."""
        found = [
            not over and self._has_stop(tokens, request.stop)
            for tokens, request, over in zip(written, asked, done, strict=True)
        ]
        return torch.tensor(found, device=self._device)

    def _has_stop(self, tokens: list[int], stop: Sequence[str]) -> bool:
        """Whether the text has a stop string. The last tokens alone may read otherwise than within the text, so the
        whole has the last word; four tokens a character are those of a tokenizer that falls back to bytes.
        """
        last = tokens[-(_LOOK + 4 * max(map(len, stop), default=0)) :]
        text = self._endings.text
        return any(s in text(last) for s in stop) and any(s in text(tokens) for s in stop)

    def _forward(self, batch: _Batch, **options: Any) -> Any:
        options.setdefault("use_cache", False)
        return self._model(input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, **options)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts what runs inside as forward time; it must end in values on the host, so that the device is done."""
        started = perf_counter()
        yield
        self.forward_seconds += perf_counter() - started

    def forget(self, requests: tuple[Request, ...]) -> None:
        """Let go of what was prepared for requests that will not come again."""
        self._prepared.pop(id(requests), None)

    def _batches(self, requests: tuple[Request, ...]) -> list[Any]:
        known = self._prepared.get(id(requests))
        if known is None:
            known = (requests, list(self._prepare(requests)))
            self._prepared[id(requests)] = known
        return known[1]

    def _prepare(self, requests: tuple[Request, ...]) -> Iterator[tuple[_Batch, _Targets | None]]:
        tokens = [r.fed(self._endings.first) for r in requests]
        order = sorted(range(len(requests)), key=lambda i: (len(tokens[i]), i))
        lengths = [max(len(t), r.length) for t, r in zip(tokens, requests, strict=True)]
        for rows in _in_batches(order, lengths, self._batch_tokens):
            chosen = [requests[row] for row in rows]
            if chosen[0].continuation:
                yield self._shared([tuple(tokens[row]) for row in rows], rows), self._targets(chosen)
            else:
                yield self._batch(rows, [tokens[row] for row in rows]), None

    def _shared(self, tokens: Sequence[tuple[int, ...]], rows: Sequence[int]) -> _Batch:
        """A batch in which nothing stands twice."""
        places = {fed: place for place, fed in enumerate(dict.fromkeys(tokens))}
        batch = self._batch(rows, list(places))
        if len(places) == len(rows):
            return batch
        return replace(batch, sources=torch.tensor([places[fed] for fed in tokens], device=self._device))

    def _batch(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> _Batch:
        width = max(map(len, tokens))
        padded = torch.tensor([[self._pad] * (width - len(t)) + list(t) for t in tokens], device=self._device)
        if all(len(t) == width for t in tokens):
            return _Batch(tuple(rows), padded, None, None)
        lengths = torch.tensor([len(t) for t in tokens], device=self._device)
        places = torch.arange(width, device=self._device)[None, :] - (width - lengths)[:, None]
        return _Batch(tuple(rows), padded, (places >= 0).long(), places.clamp(min=0))

    def _targets(self, requests: Sequence[Request]) -> _Targets:
        wanted = [r.wanted(self._endings.first) for r in requests]
        width = max(map(len, wanted))
        return _Targets(
            tokens=torch.tensor([[0] * (width - len(w)) + w for w in wanted], device=self._device),
            counts=torch.tensor([[False] * (width - len(w)) + [True] * len(w) for w in wanted], device=self._device),
            ends=torch.tensor([[False] * (width - 1) + [r.ends] for r in requests], device=self._device),
        )


class MergingEngine(TransformersEngine):
    """An engine whose weights are merges of a family, made in this process and written in place.

    Args:
        family: its base is the model that is loaded; every other argument is that of the engine.
    Raises: InputError where a checkpoint does not open.
    """

    def __init__(self, family: Family, tokenizer: PreTrainedTokenizerBase, *, dtype: str, device: str) -> None:
        started = perf_counter()
        checkpoints = family.opened()
        base = checkpoints[family.base]
        self._checkpoints = tuple(checkpoints.values())
        super().__init__(base.path, tokenizer, dtype=dtype, device=device, trust_remote_code=base.trust_remote_code)
        self._live = self.weights()
        sources = {name: c.tensors for name, c in checkpoints.items()}
        self._merger = family.merger(sources, near=placed(sources, self._live))
        arguments = {"dtype": dtype, "device": device}
        self.facts = Facts(
            engine="transformers",
            version=transformers_version,
            seconds=perf_counter() - started,
            arguments=arguments,
        )

    def swap(self, recipe: Recipe) -> str:
        """Write the merge into the live weights; see :class:`workers.engine.Engine`."""
        digest = self._merger.merge_into(recipe, self._live)
        for checkpoint in self._checkpoints:
            checkpoint.require_untouched()
        return digest


def context_of(config: Any) -> int:
    """Tokens that a model with this config can attend to."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def empty_weights(path: Path, dtype: str, *, trust_remote_code: bool = False) -> Mapping[str, Tensor]:
    """Names, shapes and types of the weights that an engine on this model has, without any memory for them."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code)
    return _untied(model)


def _untied(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return as_stored(found, model)


def _load(path: Path, dtype: str, trust_remote_code: bool) -> Any:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    return auto_class(config).from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )


def _past_name(model: Any) -> str:
    """What a model calls its key-value cache, as argument and in its output: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _is_out_of_memory(error: BaseException) -> bool:
    """On a CPU torch says so in words only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _in_batches(order: Sequence[int], lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Rows in the order given, so many at a time that rows x longest stays below ``limit`` tokens."""
    rows: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if rows and (longest * (len(rows) + 1) > limit or len(rows) == _BATCH_ROWS):
            yield rows
            rows, longest = [], lengths[row]
        rows.append(row)
    if rows:
        yield rows


class _Spread:
    """Whether logits depend on what is asked. Of each place only the normaliser is looked at, which no two places of
    a model that reads its prompt share to the last bit.
    """

    def __init__(self) -> None:
        self._low, self._high = inf, -inf

    def see(self, normalisers: Tensor) -> None:
        """Take in the normalisers of some places, any shape; raises EngineError where one is not finite."""
        _require_finite(normalisers)
        low, high = torch.stack(torch.aminmax(normalisers)).tolist()
        self._low, self._high = min(self._low, low), max(self._high, high)

    def require(self, requests: _Requests) -> None:
        """Raises EngineError where different prompts have all got the same logits."""
        if self._low == self._high and len({r.prompt for r in requests}) > 1:
            raise EngineError("logits must depend on the prompt, but the merge gives the same ones to every prompt.")


def _against(logits: Tensor, targets: _Targets, end: Tensor, spread: _Spread) -> tuple[list[float], list[bool]]:
    """Log-probability in total and whether every choice was greedy, for (rows, width, vocabulary) logits."""
    logits = logits.float()
    picked = logits.gather(-1, targets.tokens[..., None])[..., 0]
    normaliser = logits.logsumexp(-1)
    spread.see(normaliser[targets.counts])
    best = logits.argmax(-1)
    right = torch.where(targets.ends, torch.isin(best, end), best == targets.tokens)
    totals = ((picked - normaliser) * targets.counts).sum(1)
    return totals.tolist(), (right | ~targets.counts).all(1).tolist()


def _require_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise EngineError("logits must be finite, but the merge gives NaN or infinity.")
