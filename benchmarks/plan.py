"""What `mergefront check` predicts of a trial against what trials then take.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [--sizes 0.1B 0.4B] [--checkpoints 4 8] [--items 50 100] [--workers 1 2]

Families of random weights are made on the spot, in bfloat16. Half of the items are scored, half write eight tokens. A
prediction comes from bandwidths and from a share of the items; measured are trials of real workers on a local Ray, each
with weights of its own, the first of every worker not counted. Figures are medians.

``--cold`` is a family that is larger than memory: before each trial the system forgets every page of the checkpoints,
which is what it does by itself where memory ends, so that a trial reads all of them from the disk. One worker, in this
process. On a machine that has other work, ``--processor`` counts seconds of the processor in place of the clock's, of
one worker in this process.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from time import process_time

import torch
import yaml
from random_llamas import SIZES, write_random_llamas
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from optimizer import bandwidths
from optimizer.memory import memory_of
from optimizer.prediction import Prediction, predict
from optimizer.spec import Spec, load_spec
from search_spaces.recipe import Recipe
from storage.checkpoints import Checkpoint
from storage.records import Assignment, Measured, Outcome
from workers import transformers_engine, worker
from workers.pool import LocalPool, Pool
from workers.ray_pool import RayPool
from workers.worker import Worker

WORDS = [f"w{i}" for i in range(2000)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["0.1B", "0.4B"])
    parser.add_argument("--checkpoints", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--items", nargs="+", type=int, default=[50, 100])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--cold", action="store_true", help="no checkpoint is in memory when a trial begins; one worker")
    kind.add_argument("--processor", action="store_true", help="count seconds of the processor; one worker")
    parser.add_argument("--dtype", default="float32", help="of the live model")
    parser.add_argument("--family", type=Path, help="where the models are kept; default: nowhere")
    parser.add_argument("--method", default="linear")
    parser.add_argument("--trials", type=int, default=3, help="counted trials of each worker")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.processor:
        for module in (bandwidths, transformers_engine, worker):
            vars(module)["perf_counter"] = process_time
    titles = ("swap predicted", "measured", "answers predicted", "measured", "trial off by")
    table = Table("family", "checkpoints", "items", "workers", *titles, title=f"{options.method}, {options.dtype}")
    with tempfile.TemporaryDirectory() as made:
        for size in options.sizes:
            directory = Path(options.family or made) / size
            if not directory.exists():
                names = ["base", *(f"c{i}" for i in range(max(options.checkpoints)))]
                write_random_llamas(directory, names, size, word_tokenizer())
            for count, items, workers in product(
                options.checkpoints, options.items, [0] if options.cold or options.processor else options.workers
            ):
                cells = row(study(directory, count, items, options), workers, options)
                table.add_row(size, str(count), str(items), str(max(workers, 1)), *cells)
                print(size, count, items, workers, *cells, file=sys.stderr, flush=True)
    Console(width=110).print(table)


class ColdWorker(Worker):
    """Finds no checkpoint in memory."""

    def run(self, assignment: Assignment) -> Outcome:
        """One trial."""
        for checkpoint in self._engine._checkpoints:  # type: ignore[attr-defined]  # of the engine of transformers
            bandwidths.page_out(checkpoint.tensors.values())
        return super().run(assignment)


def row(spec: Spec, workers: int, options: argparse.Namespace) -> list[str]:
    """Predicted and measured seconds of a swap and of the answers, and how far the sum is off; 0 workers: one here."""
    predicted = prediction(spec, max(workers, 1), cold=options.cold)
    measured = trials(spec, workers, options.trials, ColdWorker if options.cold else Worker)
    swap, total = (median(m.seconds[s] for m in measured) for s in ("merge", "total"))
    answers = predicted.seconds["answers"]
    cells = [predicted.total - answers, swap, answers, total - swap]
    return [*(f"{cell:.2f}" for cell in cells), f"{predicted.total / total - 1:+.0%}"]


def prediction(spec: Spec, workers: int, *, cold: bool) -> Prediction:
    """As `check` makes it; ``cold`` is as where memory does not hold the family."""
    checkpoints = {source.name: Checkpoint(source) for source in spec.sources}
    plan = memory_of(spec, checkpoints, device="cpu", workers=workers).plan
    assert plan is not None
    plan = replace(plan, from_disk=plan.from_disk or cold)
    return predict(spec, checkpoints, plan, workers=workers, progress=lambda *_: None)


def trials(spec: Spec, workers: int, count: int, kind: type[Worker]) -> list[Measured]:
    """What real trials take, without the first of every worker."""
    setup = spec.setup(device="cpu")
    pool: Pool = RayPool(setup, count=workers) if workers else LocalPool(lambda: kind(setup))
    workers = max(workers, 1)
    rng, left, done = random.Random(0), workers * (count + 1), list[Measured]()
    names = [c.name for c in spec.checkpoints]
    try:
        while len(done) < workers * (count + 1):
            while pool.room and left:
                drawn = [0.1 + rng.random() for _ in names]
                weights = {n: (x / sum(drawn),) for n, x in zip(names, drawn, strict=True)}
                pool.submit(
                    Assignment(number=left, recipe=Recipe(method=spec.search_space.methods[0], weights=weights))
                )
                left -= 1
            for outcome in pool.finished():
                assert isinstance(outcome, Measured), outcome
                done.append(outcome)
    finally:
        pool.close()
    return done[workers:]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def study(directory: Path, count: int, items: int, options: argparse.Namespace) -> Spec:
    """A study of so many checkpoints that asks so many items."""
    rng = random.Random(0)
    suites = []
    for key, scorer in (("scored", "gold_nll"), ("written", "exact_match")):
        lines = [
            {"id": f"{key}-{i}", "lang": "xx", "target": rng.choice(WORDS)}
            | {"prompt": " ".join(rng.choices(WORDS, k=rng.randint(8, 40)))}
            for i in range(items * 4)
        ]
        (directory / f"{key}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        more = {"max_new_tokens": 8} if scorer == "exact_match" else {}
        suites.append({"path": f"{key}.jsonl", "scorer": scorer} | more)
    document = {
        "study": "plan",
        "base": "base",
        "checkpoints": [{"name": f"c{i}", "model": f"c{i}"} for i in range(count)],
        "search_space": {"method": options.method},
        "objectives": [{"name": s["scorer"], "suites": [s]} for s in suites],
        "search": {"evaluation": {"items": items // 2}},
        "workers": {"device": "cpu", "dtype": options.dtype},
    }
    (directory / "study.yaml").write_text(yaml.safe_dump(document))
    return load_spec(directory / "study.yaml")


if __name__ == "__main__":
    main()
