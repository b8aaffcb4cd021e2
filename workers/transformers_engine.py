"""The transformers engine: any causal language model of the library, on CPU and CUDA."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from workers.engine import Request
from workers.errors import EngineError
from workers.layouts import as_stored
from workers.questions import Generated, LogLikelihood

_BATCH_TOKENS: Final = {"cpu": 4096, "cuda": 32768}
_BATCH_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests of similar length, padded on the left so that all of them end in the last column.

    ``rows`` says which requests these are; without padding ``mask`` and ``positions`` are None, which lets the model
    take its fastest attention.
    """

    rows: tuple[int, ...]
    tokens: Tensor
    mask: Tensor | None
    positions: Tensor | None


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
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: str, device: str) -> None:
        self._model = _load(path, dtype).to(device)
        self._model.eval().requires_grad_(False)
        self._device = torch.device(device)
        self._tokenizer = tokenizer
        self._ends = _end_tokens(self._model, tokenizer)
        self._end = torch.tensor(sorted(self._ends), device=device)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._ends, default=0)
        # Keyed by identity: the tuple itself is kept beside its batches, so that its id stays taken.
        self._prepared: dict[int, tuple[tuple[Request, ...], list[Any]]] = {}
        self.forward_seconds = 0.0
        """Wall seconds spent so far in forward passes and in reading their logits."""

    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and persistent buffers by their names on disk; of tied ones the first name."""
        return _untied(self._model)

    @property
    def context(self) -> int:
        """Tokens that the model can attend to."""
        return int(getattr(self._model.config, "max_position_embeddings", None) or 1 << 30)

    @torch.inference_mode()
    def loglikelihood(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood]:
        """One prefill for each batch of similar length."""
        answers: list[LogLikelihood | None] = [None] * len(requests)
        for batch, targets in self._batches(requests):
            with self._timed():
                logits = self._forward(batch, logits_to_keep=targets.tokens.shape[1]).logits
                totals, greedy = _against(logits, targets, self._end)
            for row, total, right, count in zip(
                batch.rows, totals, greedy, targets.counts.sum(1).tolist(), strict=True
            ):
                answers[row] = LogLikelihood(total=total, tokens=count, greedy=right)
        return [a for a in answers if a is not None]

    @torch.inference_mode()
    def generate(self, requests: tuple[Request, ...]) -> Sequence[Generated]:
        """Greedy decoding with a key-value cache; a batch stops when each of its rows has ended."""
        answers: list[Generated | None] = [None] * len(requests)
        for batch, _ in self._batches(requests):
            limits = [requests[row].max_new_tokens for row in batch.rows]
            with self._timed():
                written = self._decode(batch, max(limits))
            for row, tokens, limit in zip(batch.rows, written, limits, strict=True):
                answers[row] = self._generated(tokens[:limit])
        return [a for a in answers if a is not None]

    def _decode(self, batch: _Batch, steps: int) -> list[list[int]]:
        output = self._forward(batch, logits_to_keep=1, use_cache=True)
        mask, positions = batch.mask, batch.positions
        columns: list[Tensor] = []
        highest: list[Tensor] = []
        done = torch.zeros(len(batch.rows), dtype=torch.bool, device=self._device)
        for step in range(steps):
            top = output.logits[:, -1].max(-1)
            columns.append(top.indices)
            highest.append(top.values)
            done |= torch.isin(top.indices, self._end)
            if step + 1 == steps or bool(done.all()):
                break
            if mask is not None and positions is not None:
                mask = torch.cat([mask, mask.new_ones(len(batch.rows), 1)], 1)
                positions = positions[:, -1:] + 1
            ahead = _Batch(batch.rows, top.indices[:, None], mask, positions)
            output = self._forward(ahead, logits_to_keep=1, use_cache=True, past_key_values=output.past_key_values)
        _require_finite(torch.stack(highest))
        written: list[list[int]] = torch.stack(columns, 1).tolist()
        return written

    def _generated(self, tokens: list[int]) -> Generated:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Generated(text=str(text), truncated=end is None)

    def _forward(self, batch: _Batch, **options: Any) -> Any:
        options.setdefault("use_cache", False)
        return self._model(input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, **options)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts what runs inside as forward time; it must end in values on the host, so that the device is done."""
        started = perf_counter()
        yield
        self.forward_seconds += perf_counter() - started

    def _batches(self, requests: tuple[Request, ...]) -> list[Any]:
        known = self._prepared.get(id(requests))
        if known is None:
            known = (requests, list(self._prepare(requests)))
            self._prepared[id(requests)] = known
        return known[1]

    def _prepare(self, requests: tuple[Request, ...]) -> Iterator[tuple[_Batch, _Targets | None]]:
        tokens = [_fed(r, min(self._ends, default=0)) for r in requests]
        limit = _BATCH_TOKENS[self._device.type]
        order = sorted(range(len(requests)), key=lambda i: (len(tokens[i]), i))
        for rows in _in_batches(order, [max(len(t), r.length) for t, r in zip(tokens, requests, strict=True)], limit):
            batch = self._batch(rows, [tokens[row] for row in rows])
            chosen = [requests[row] for row in rows]
            yield batch, self._targets(chosen) if chosen[0].continuation else None

    def _batch(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> _Batch:
        width = max(map(len, tokens))
        padded = torch.tensor([[self._pad] * (width - len(t)) + list(t) for t in tokens], device=self._device)
        if all(len(t) == width for t in tokens):
            return _Batch(tuple(rows), padded, None, None)
        lengths = torch.tensor([len(t) for t in tokens], device=self._device)
        places = torch.arange(width, device=self._device)[None, :] - (width - lengths)[:, None]
        return _Batch(tuple(rows), padded, (places >= 0).long(), places.clamp(min=0))

    def _targets(self, requests: Sequence[Request]) -> _Targets:
        ending = min(self._ends, default=0)
        wanted = [[*r.continuation, ending] if r.ends else list(r.continuation) for r in requests]
        width = max(map(len, wanted))
        return _Targets(
            tokens=torch.tensor([[0] * (width - len(w)) + w for w in wanted], device=self._device),
            counts=torch.tensor([[False] * (width - len(w)) + [True] * len(w) for w in wanted], device=self._device),
            ends=torch.tensor([[False] * (width - 1) + [r.ends] for r in requests], device=self._device),
        )


def empty_weights(path: Path, dtype: str) -> Mapping[str, Tensor]:
    """Names, shapes and types of the weights that an engine on this model has, without any memory for them."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    return _untied(model)


def _untied(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return as_stored(found, model.config.model_type)


def _load(path: Path, dtype: str) -> Any:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
    )


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(t for t in [*ends, tokenizer.eos_token_id] if t is not None)


def _fed(request: Request, ending: int) -> list[int]:
    """What the model reads: all but the last token that it shall predict."""
    if not request.continuation:
        return list(request.prompt)
    whole = [*request.prompt, *request.continuation]
    return [*whole, ending][:-1] if request.ends else whole[:-1]


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


def _against(logits: Tensor, targets: _Targets, end: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability in total and whether every choice was greedy, for (rows, width, vocabulary) logits."""
    logits = logits.float()
    picked = logits.gather(-1, targets.tokens[..., None])[..., 0]
    normaliser = logits.logsumexp(-1)
    _require_finite(normaliser)
    best = logits.argmax(-1)
    right = torch.where(targets.ends, torch.isin(best, end), best == targets.tokens)
    totals = ((picked - normaliser) * targets.counts).sum(1)
    return totals.tolist(), (right | ~targets.counts).all(1).tolist()


def _require_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise EngineError("logits must be finite, but the merge gives NaN or infinity.")
