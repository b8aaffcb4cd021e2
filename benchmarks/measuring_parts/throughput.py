"""Items a second of the transformers engine against lm-evaluation-harness's HFLM: one model, one thread, same batches.

Both are asked the same instances through lm-evaluation-harness's own interface, so both tokenise in the time that
counts; the answers are compared first. The last rows show the engine as a trial uses it, its requests prepared once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from workers import transformers_engine
from workers.lm_eval_model import EngineLM, question_of
from workers.prompts import load_tokenizer, prompt_text, to_requests
from workers.suites import Item, read_items
from workers.transformers_engine import TransformersEngine

_BATCH = 64
_WRITTEN = 16
"""Tokens that a generation may have at most."""


def table(family: Path, times: int = 7) -> list[dict[str, Any]]:
    """One row a kind of question: medians of alternating runs, so that a machine that is busy slows both.

    Args:
        family: a directory that `mergefront demo` made; its base answers the search items of all suites.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    base = family / "models" / "base"
    tokenizer = load_tokenizer(base)
    with _rows(_BATCH):
        engine = TransformersEngine(base, tokenizer, dtype="float32", device="cpu")
        ours = EngineLM(engine, tokenizer, engine.context)
        theirs = HFLM(pretrained=str(base), dtype="float32", device="cpu", batch_size=_BATCH)
        items = [item for path in sorted((family / "suites").glob("*.search.jsonl")) for item in read_items(path)]
        asked = {
            "loglikelihood": [_scored(item, prompt_text(tokenizer, item.prompt)[0]) for item in items if _gold(item)],
            "generate_until": [_written(item, prompt_text(tokenizer, item.prompt)[0]) for item in items],
        }
        found = []
        for kind, instances in asked.items():
            _require_same(getattr(ours, kind)(instances), getattr(theirs, kind)(instances, disable_tqdm=True))
            prepared = tuple(r for i in instances for r in to_requests(tokenizer, question_of(i), engine.context))
            answer: Callable[[Any], object] = engine.generate if kind == "generate_until" else engine.loglikelihood
            runs = {
                "ours": lambda k=kind, i=instances: getattr(ours, k)(i),
                "HFLM": lambda k=kind, i=instances: getattr(theirs, k)(i, disable_tqdm=True),
                "ours, prepared": lambda a=answer, r=prepared: a(r),
            }
            found.append(_row(kind, len(instances), _alternating(runs, times)))
    return found


def _row(kind: str, items: int, seconds: dict[str, float]) -> dict[str, Any]:
    rates = {f"{name}, items a second": round(items / s) for name, s in seconds.items()}
    return {
        "question": kind,
        "items": items,
        "batch": _BATCH,
        **rates,
        "ours / HFLM": seconds["HFLM"] / seconds["ours"],
    }


def _alternating(runs: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
    """Median seconds of each, run in turn after one run that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(times + 1):
        for name, run in runs.items():
            started = perf_counter()
            run()
            if turn:
                seconds[name].append(perf_counter() - started)
    return {name: median(taken) for name, taken in seconds.items()}


def _scored(item: Item, prompt: str) -> Instance:
    return Instance(request_type="loglikelihood", doc={}, arguments=(prompt, f" {_gold(item)}"), idx=0)


def _written(item: Item, prompt: str) -> Instance:
    options = {"until": ["\n\n"], "max_gen_toks": _WRITTEN}
    return Instance(request_type="generate_until", doc={}, arguments=(prompt, options), idx=0)


def _gold(item: Item) -> str | None:
    return item.choices[item.gold] if item.target is None and item.gold is not None else item.target


def _require_same(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Speeds of different work are not compared: generations are the same texts, likelihoods agree to 0.001 nats."""
    for a, b in zip(ours, theirs, strict=True):
        if a != b and (isinstance(a, str) or abs(a[0] - b[0]) > 1e-3):
            raise SystemExit(f"both must answer alike, but got {a!r} and {b!r}.")


@contextmanager
def _rows(most: int) -> Iterator[None]:
    """The engine's batches with that many rows at most, whatever their tokens."""
    kept = transformers_engine._BATCH_ROWS, transformers_engine._BATCH_TOKENS
    transformers_engine._BATCH_ROWS, transformers_engine._BATCH_TOKENS = most, {"cpu": 1 << 30, "cuda": 1 << 30}
    try:
        yield
    finally:
        transformers_engine._BATCH_ROWS, transformers_engine._BATCH_TOKENS = kept
