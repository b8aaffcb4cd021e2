"""What a trial costs beside merging and forward passes, and how much faster trials are than the naive loop.

    python benchmarks/trial_overhead.py [--family DIR] [--trials N] [--small]

The naive loop does what a script does that has no live engine: merge state dicts, ``save_pretrained``,
``from_pretrained``, ask the same items. Both run in this process, in turn, on one torch thread; figures are medians.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from random_llamas import write_random_llamas
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimizer.demo.family import make_family
from optimizer.spec import load_spec
from search_spaces.recipe import Recipe
from storage.checkpoints import Source
from storage.records import Assignment, Measured
from workers.prompts import load_tokenizer
from workers.setup import ObjectivePlan, Setup, SuitePlan
from workers.sheet import Sheet
from workers.suites import SuiteFiles
from workers.transformers_engine import TransformersEngine
from workers.worker import Worker

DTYPE = "float32"
"""Of the live model: without instructions of its own for bfloat16 a CPU takes ten times as long for a forward pass."""

CHECKPOINTS = ("a", "b", "c", "d")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", type=Path, default=Path("demo"), help="the demo's directory; trained where missing")
    parser.add_argument("--trials", type=int, default=7, help="counted trials of each kind")
    parser.add_argument("--small", action="store_true", help="10M instead of 0.4B parameters: to try the script")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("family", "items", "trial s", "merge s", "forward s", "neither", title="One trial, medians")
    study_file = make_family(options.family, progress=lambda *_: None)
    demo = load_spec(study_file).setup(device="cpu")
    overhead_row(table, "demo, 0.36M", demo, options.trials * 3)
    size = "10M" if options.small else "0.4B"
    with tempfile.TemporaryDirectory() as directory:
        setup = big_family(Path(directory), load_spec(study_file).base, size)
        overhead_row(table, f"{size}, random", setup, options.trials)
        Console().print(table)
        naive_table(size, setup, Path(directory), options.trials)


def recipes(setup: Setup, count: int) -> list[Recipe]:
    """Dense recipes with other weights each."""
    rng = random.Random(0)
    names = [s.name for s in setup.sources if s.name in CHECKPOINTS or s.name not in ("base", "mixed")]
    drawn = [[rng.random() for _ in names] for _ in range(count)]
    return [
        Recipe(method="linear", weights={n: (x / sum(xs),) for n, x in zip(names, xs, strict=True)}) for xs in drawn
    ]


def overhead_row(table: Table, name: str, setup: Setup, trials: int) -> None:
    """Run trials on one worker; the first one prepares what later ones reuse and is not counted."""
    worker = Worker(setup)
    measured = [measure(worker, recipe) for recipe in recipes(setup, trials + 1)][1:]
    share = [1 - (m.seconds["merge"] + m.seconds["forward"]) / m.seconds["total"] for m in measured]
    items = sum(len(m.ids) for m in measured[0].marks.values())
    stages = [f"{median(m.seconds[s] for m in measured):.3f}" for s in ("total", "merge", "forward")]
    table.add_row(name, str(items), *stages, f"{median(share):.1%}")


def naive_table(size: str, setup: Setup, directory: Path, trials: int) -> None:
    """Our trial against the naive one, in turn."""
    worker = Worker(setup)
    ours: list[float] = []
    naive: list[float] = []
    for recipe in recipes(setup, trials + 1):
        ours.append(seconds(lambda recipe=recipe: measure(worker, recipe)))  # type: ignore[misc]  # a default is no type
        naive.append(seconds(lambda recipe=recipe: naive_trial(setup, recipe, directory / "merged")))  # type: ignore[misc]  # as above
    ratio = median(n / o for n, o in zip(naive[1:], ours[1:], strict=True))
    table = Table("loop", "trials an hour", "ratio", title=f"{size}, 4 checkpoints, 100 short items, medians")
    table.add_row("merge in place", f"{3600 / median(ours[1:]):,.0f}", f"{ratio:.1f}")
    table.add_row("write, load, ask", f"{3600 / median(naive[1:]):,.0f}", "1.0")
    Console().print(table)


def measure(worker: Worker, recipe: Recipe) -> Measured:
    """One trial that must succeed."""
    outcome = worker.run(Assignment(number=0, recipe=recipe))
    assert isinstance(outcome, Measured), outcome
    return outcome


def naive_trial(setup: Setup, recipe: Recipe, directory: Path) -> None:
    """What a script does that has no live engine."""
    sources = {s.name: Path(s.model) for s in setup.sources}
    states = {name: load_file(sources[name] / "model.safetensors") for name in recipe.weights}
    merged = {
        tensor: sum(recipe.weights[name][0] * state[tensor].float() for name, state in states.items())
        for tensor in next(iter(states.values()))
    }
    model = AutoModelForCausalLM.from_pretrained(sources["base"], dtype=getattr(torch, DTYPE))
    model.load_state_dict(merged, strict=False)
    model.save_pretrained(directory)
    tokenizer = load_tokenizer(sources["base"])
    engine = TransformersEngine(directory, tokenizer, dtype=setup.dtype, device="cpu")
    Sheet([plan.load()["search"] for plan in setup.objectives], tokenizer, engine.context).ask(engine)


def big_family(directory: Path, tokenizer_from: str, size: str) -> Setup:
    """A base and four checkpoints of random weights in bfloat16, and 100 short items."""
    tokenizer = load_tokenizer(Path(tokenizer_from))
    write_random_llamas(directory, ("base", *CHECKPOINTS), size, tokenizer)
    suite = directory / "items.jsonl"
    suite.write_text("".join(json.dumps(short_item(i, sorted(tokenizer.get_vocab()))) + "\n" for i in range(200)))
    for split in ("validation", "report"):
        (directory / f"{split}.jsonl").write_text(json.dumps(short_item(0, ["x"]) | {"id": split}) + "\n")
    files = SuiteFiles(path=suite, validation=directory / "validation.jsonl", report=directory / "report.jsonl")
    plan = SuitePlan(key="short", files=files, scorer="gold_nll", items=100)
    sources = tuple(Source(name=name, model=str(directory / name)) for name in ("base", *CHECKPOINTS))
    objective = ObjectivePlan(name="nll", suites=(plan,))
    return Setup(sources=sources, base="base", objectives=(objective,), dtype=DTYPE, device="cpu")


def short_item(number: int, words: list[str]) -> dict[str, str]:
    """Four words and the one that follows."""
    rng = random.Random(number)
    return {"id": str(number), "prompt": " ".join(rng.choices(words, k=4)), "lang": "xx", "target": rng.choice(words)}


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
