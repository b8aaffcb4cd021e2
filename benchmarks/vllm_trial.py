"""What a trial costs on a live vLLM engine, against starting vLLM on a written merge and against transformers.

    python benchmarks/vllm_trial.py [--trials N] [--dtype float32|bfloat16] [--swaps]

Needs vLLM: `make test-vllm` leaves an environment with it in .venv-vllm. A model of 34 million random weights, four
checkpoints, 200 short items: half are scored, half generate eight tokens. Every way runs in a process of its own; the
trials of all ways take turns, so that a machine that is busy slows all of them. Figures are medians; the first trial of
each way is not counted. All ways must give the same digest of the merge and the same scores.

``--swaps`` times swaps alone, in seconds of the processor: one process, and two that share the model (tensor parallel),
each merging its rows of every tensor, or, to compare, everything.
"""

import argparse
import gc
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from optimizer.demo.training import make_tokenizer
from optimizer.export import write_model
from search_spaces.recipe import Recipe, digest_of, only
from storage.checkpoints import Source
from storage.records import Assignment, Measured
from workers.engines import load
from workers.prompts import load_tokenizer
from workers.setup import ObjectivePlan, Setup, SuitePlan
from workers.shares import WHOLE
from workers.suites import SuiteFiles
from workers.transformers_engine import empty_weights
from workers.worker import Worker

CHECKPOINTS = ("a", "b", "c", "d")
ITEMS = 100

Said = tuple[str, dict[str, float]]
"""The digest of the merge and the mean of each objective."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=5, help="counted trials of each way")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--swaps", action="store_true", help="swaps alone, of one process and of two")
    options = parser.parse_args()
    drawn = recipes(options.trials + 1)
    with tempfile.TemporaryDirectory() as directory:
        if options.swaps:
            print_swaps(family(Path(directory), options.dtype, heads=14), drawn)
            return
        setup = family(Path(directory), options.dtype)
        seconds = measured(setup, Path(directory), drawn)
    table = Table(
        "way", "a trial s", "trials an hour", "live engine is faster", title=f"34M, 200 items, {options.dtype}"
    )
    for way, found in seconds.items():
        ratio = median(other / ours for other, ours in zip(found, seconds["live vLLM engine"], strict=True))
        table.add_row(way, f"{median(found):.2f}", f"{3600 / median(found):,.0f}", f"{ratio:.1f} times")
    Console().print(table)


def measured(setup: Setup, directory: Path, drawn: Sequence[Recipe]) -> dict[str, list[float]]:
    """Wall seconds of each way's counted trials."""
    live = replace(setup, engine="vllm")
    with _process() as ours, _process() as theirs, _process() as restarting:
        ways: dict[str, Callable[[Recipe], Said]] = {
            "live vLLM engine": lambda r: ours.submit(trial, live, r).result(),
            "transformers engine": lambda r: theirs.submit(trial, setup, r).result(),
            "write, start vLLM in the same process": lambda r: restarting.submit(restart, live, r, directory).result(),
            "write, start a process with vLLM": lambda r: _once(restart, live, r, directory),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for recipe in drawn:
            said = []
            for way, run in ways.items():
                started = time.perf_counter()
                said.append(run(recipe))
                seconds[way].append(time.perf_counter() - started)
            _require_same(said)
    return {way: found[1:] for way, found in seconds.items()}


def print_swaps(setup: Setup, drawn: Sequence[Recipe]) -> None:
    """Medians of the counted swaps, the ways taking turns."""
    engines = {way: _engine(setup, processes) for way, processes in (("one", 1), ("whole", 2), ("share", 2))}
    engines["whole"]._llm.collective_rpc(_merge_everything)
    spent: dict[str, list[list[float]]] = {way: [] for way in engines}
    for recipe in drawn:
        digests = set()
        for way, engine in engines.items():
            before = _processor(engine)
            digests.add(engine.swap(recipe))
            spent[way].append([now - then for then, now in zip(before, _processor(engine), strict=True)])
        if len(digests) > 1:
            raise SystemExit(f"every way must make the same merge, but got {digests}.")
    table = Table("processes", "each merges", "all s", "the busiest s", title=f"34M, a swap, {setup.dtype}")
    for way, (processes, merges) in {"one": ("1", "all"), "whole": ("2", "all"), "share": ("2", "its rows")}.items():
        found = spent[way][1:]
        table.add_row(processes, merges, f"{median(map(sum, found)):.2f}", f"{median(map(max, found)):.2f}")
    Console().print(table)


def _engine(setup: Setup, processes: int) -> Any:
    setup = replace(setup, engine="vllm", tensor_parallel=processes)
    return load(setup, load_tokenizer(Path(setup.family.root.model)), device="cpu")


def _merge_everything(worker: Any) -> None:
    """Runs in each process of an engine."""
    worker.worker._mergefront_share = worker.worker._mergefront_merger._share = WHOLE


def _processor(engine: Any) -> list[float]:
    """Seconds of the processor that each process of an engine has taken."""
    workers = getattr(engine._llm.llm_engine.model_executor, "workers", None)
    pids = [w.proc.pid for w in workers] if workers else [os.getpid()]
    return [sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids]


def trial(setup: Setup, recipe: Recipe) -> Said:
    """One trial of a worker that lives as long as its process."""
    if setup.engine not in _WORKERS:
        _WORKERS[setup.engine] = Worker(setup)
    return _said(_WORKERS[setup.engine], recipe)


_WORKERS: dict[str, Worker] = {}


def restart(setup: Setup, recipe: Recipe, directory: Path) -> Said:
    """Write the merge, start an engine on it, ask, and end the engine."""
    checkpoints = setup.family.opened()
    base = checkpoints[setup.base]
    merger = setup.family.merger({name: c.tensors for name, c in checkpoints.items()})
    with tempfile.TemporaryDirectory(dir=directory) as name:
        like = empty_weights(base.path, setup.dtype)
        digest = digest_of(write_model(merger, recipe, like, base, Path(name)))
        worker = Worker(replace(setup, sources=(Source(name=setup.base, model=name),)))
        said = _said(worker, only(setup.base))
    del worker
    gc.collect()
    if said[0] != digest:
        raise SystemExit("what is measured must be what was written, but its digest is another.")
    return said


def family(directory: Path, dtype: str, heads: int = 7) -> Setup:
    """A base and four checkpoints of random weights, and the items."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=448,
        intermediate_size=1216,
        num_hidden_layers=8,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    for seed, name in enumerate(("base", *CHECKPOINTS)):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    words = sorted(word for word in tokenizer.get_vocab() if not word.startswith("<"))
    plans = [("nll", "gold_nll", {}), ("match", "exact_match", {"max_new_tokens": 8})]
    return Setup(
        sources=tuple(Source(name=name, model=str(directory / name)) for name in ("base", *CHECKPOINTS)),
        base="base",
        objectives=tuple(_objective(directory, words, *plan) for plan in plans),
        dtype=dtype,
        device="cpu",
    )


def recipes(count: int) -> list[Recipe]:
    """Dense linear recipes with other weights each."""
    rng = random.Random(0)
    drawn = [[rng.random() for _ in CHECKPOINTS] for _ in range(count)]
    return [
        Recipe(method="linear", weights={n: (x / sum(xs),) for n, x in zip(CHECKPOINTS, xs, strict=True)})
        for xs in drawn
    ]


def _objective(directory: Path, words: list[str], name: str, scorer: str, options: dict[str, Any]) -> ObjectivePlan:
    paths = {split: directory / f"{name}.{split}.jsonl" for split in ("search", "validation", "report")}
    for split, path in paths.items():
        count = ITEMS if split == "search" else 1
        path.write_text("".join(json.dumps(_item(f"{name}-{split}-{i}", words)) + "\n" for i in range(count)))
    files = SuiteFiles(path=paths["search"], validation=paths["validation"], report=paths["report"])
    plan = SuitePlan(key=name, files=files, scorer=scorer, options=options)
    return ObjectivePlan(name=name, suites=(plan,))


def _item(name: str, words: list[str]) -> dict[str, str]:
    """Eight words and the one that follows."""
    rng = random.Random(name)
    return {"id": name, "prompt": " ".join(rng.choices(words, k=8)), "lang": "xx", "target": rng.choice(words)}


def _said(worker: Worker, recipe: Recipe) -> Said:
    outcome = worker.run(Assignment(number=0, recipe=recipe))
    if not isinstance(outcome, Measured):
        raise SystemExit(f"every trial must be measurable, but one failed: {outcome.reason}")
    return outcome.digest, {name: score.mean for name, score in outcome.scores.items()}


def _require_same(said: Sequence[Said]) -> None:
    (digest, means), *others = said
    for other, found in others:
        if other != digest or any(abs(found[name] - mean) > 0.01 * (1 + abs(mean)) for name, mean in means.items()):
            raise SystemExit(f"every way must measure the same merge alike, but got {said}.")


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _once(run: Callable[..., Said], *args: object) -> Said:
    with _process() as process:
        return process.submit(run, *args).result()


if __name__ == "__main__":
    main()
