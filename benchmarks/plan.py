"""What `mergefront check` predicts of a trial against what trials then take.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [--sizes 0.1B 0.4B] [--checkpoints 4 8] [--items 50 100] [--workers 1 2]

Families of random weights are made on the spot, in bfloat16. Half of the items are scored, half write eight tokens. A
prediction comes from bandwidths and from a share of the items; measured are trials of real workers on a local Ray, each
with weights of its own, the first of every worker not counted. Figures are medians. On a machine that has other work,
``--processor`` counts seconds of the processor in place of the clock's, of one worker in this process.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from time import process_time

import torch
import yaml
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optimizer import bandwidths
from optimizer.memory import memory_of
from optimizer.prediction import Prediction, predict
from optimizer.spec import Spec, load_spec
from search_spaces.recipe import Recipe
from storage.checkpoints import Checkpoint
from storage.records import Assignment, Measured
from workers import transformers_engine, worker
from workers.pool import LocalPool, Pool
from workers.ray_pool import RayPool
from workers.worker import Worker

SIZES = {"tiny": (64, 128, 2, 2), "0.1B": (768, 2048, 8, 12), "0.4B": (1024, 4096, 24, 16)}
WORDS = [f"w{i}" for i in range(2000)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["0.1B", "0.4B"])
    parser.add_argument("--checkpoints", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--items", nargs="+", type=int, default=[50, 100])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--processor", action="store_true", help="count seconds of the processor; one worker")
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
                make_models(directory, SIZES[size], max(options.checkpoints))
            for count, items, workers in product(
                options.checkpoints, options.items, [0] if options.processor else options.workers
            ):
                cells = row(study(directory, count, items, options), workers, options.trials)
                table.add_row(size, str(count), str(items), str(max(workers, 1)), *cells)
                print(size, count, items, workers, *cells, file=sys.stderr, flush=True)
    Console(width=110).print(table)


def row(spec: Spec, workers: int, count: int) -> list[str]:
    """Predicted and measured seconds of a swap and of the answers, and how far the sum is off; 0 workers: one here."""
    predicted, measured = prediction(spec, max(workers, 1)), trials(spec, workers, count)
    swap, total = (median(m.seconds[s] for m in measured) for s in ("merge", "total"))
    answers = predicted.seconds["answers"]
    cells = [predicted.total - answers, swap, answers, total - swap]
    return [*(f"{cell:.2f}" for cell in cells), f"{predicted.total / total - 1:+.0%}"]


def prediction(spec: Spec, workers: int) -> Prediction:
    """As `check` makes it."""
    checkpoints = {source.name: Checkpoint(source) for source in spec.sources}
    plan = memory_of(spec, checkpoints, device="cpu", workers=workers).plan
    assert plan is not None
    return predict(spec, checkpoints, plan, workers=workers, progress=lambda *_: None)


def trials(spec: Spec, workers: int, count: int) -> list[Measured]:
    """What real trials take, without the first of every worker."""
    setup = spec.setup(device="cpu")
    pool: Pool = RayPool(setup, count=workers) if workers else LocalPool(lambda: Worker(setup))
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


def make_models(directory: Path, size: tuple[int, int, int, int], count: int) -> None:
    """A base of random weights, and checkpoints that are each a little longer than it."""
    hidden, inner, layers, heads = size
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    for name in ("base", *(f"c{i}" for i in range(count))):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(1.01)


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
