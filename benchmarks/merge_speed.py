"""How fast a merge is: this engine, a copy of the same bytes (the limit), mergekit in memory and mergekit-yaml.

    python benchmarks/merge_speed.py                            everything, 0.4 billion parameters, 2 threads and 1
    python benchmarks/merge_speed.py --small                    every row of a tiny family in a minute, no mergekit
    python benchmarks/merge_speed.py --device cuda --hidden 4096 --inner 14336 --vocabulary 128256 --layers 2 \\
        --cases linear:4 --mergekit                             tensors of an 8B model on a GPU

It writes a family of random weights in bfloat16 (17 checkpoints, 14 GB) to --family DIR, or takes the one that is
there; without DIR the family is removed at the end. Times are medians of calls that alternate with the copy, so that a
machine that is busy for a while slows both; the plain loop is run once. On a GPU sources are resident, and linear is
also streamed from the host. mergekit runs in .venv-mergekit, which is made when it is missing.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe
from storage.checkpoints import tensor_digest
from storage.tensor_files import open_tensors, write_tensors
from workers.kernels import Loop
from workers.merger import Merger, is_finite, merge_digest
from workers.placement import Streamed

ROOT = Path(__file__).parents[1]
MERGEKIT = ROOT / ".venv-mergekit"
SMALL = {"hidden": 256, "inner": 512, "vocabulary": 4096, "layers": 2, "threads": [1], "times": 2, "mergekit": []}
CASES = [("linear", k) for k in (2, 4, 8, 16)] + [("task_arithmetic", 4), ("ties", 4), ("slerp", 2), ("multislerp", 4)]
IN_MEMORY = """
import sys, json, time, torch
from statistics import median
from safetensors import safe_open
from mergekit.merge_methods.api import merge_state_dicts
call = json.loads(sys.argv[1])
torch.set_num_threads(call["threads"])
def opened(path):
    with safe_open(path, framework="pt") as f:
        return {n: f.get_tensor(n) for n in f.keys()}
models = {n: opened(p) for n, p in call["models"].items()}
times = []
with torch.no_grad():
    for _ in range(call["times"]):
        start = time.perf_counter()
        merge_state_dicts(models, call["method"], parameters=call["parameters"], base=call["base"],
                          dtype=torch.float32, out_dtype=torch.bfloat16)
        times.append(time.perf_counter() - start)
print(median(times))
"""


def main() -> None:
    options = _options()
    logging.getLogger("workers.kernels").setLevel(logging.INFO)
    folder = Path(options.family or tempfile.mkdtemp(prefix="merge_speed."))
    try:
        models = write_family(folder, options, max(k for _, k in options.cases))
        mapped = {name: open_tensors(path / "model.safetensors") for name, path in models.items()}
        sources = {n: {t: x.to(options.device) for t, x in tensors.items()} for n, tensors in mapped.items()}
        bytes_ = sum(t.nbytes for t in sources["base"].values())
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores"
        print(f"{bytes_ / 2e6:,.1f} million parameters in bfloat16, torch {torch.__version__}, {where}\n")
        if options.mergekit:
            make_mergekit()
        for threads in options.threads:
            torch.set_num_threads(threads)
            print(f"{threads} thread{'s' * (threads > 1)}:\n")
            print(
                "| method | k | merge | of the copy's rate | plain loop | digest | first call | anonymous memory | ",
                end="",
            )
            print("mergekit in memory | mergekit-yaml |\n|---|---|---|---|---|---|---|---|---|---|")
            for method, k in options.cases:
                print(row(method, k, sources, models, folder, threads, options), flush=True)
            print()
        print(export_row(mapped, folder, max(k for _, k in options.cases)))
        if options.device == "cuda":
            print(streamed_row(mapped, max(k for _, k in options.cases), options.times))
    finally:
        if options.family is None:
            shutil.rmtree(folder)


def row(
    method: str,
    k: int,
    sources: Mapping[str, Mapping[str, Tensor]],
    models: Mapping[str, Path],
    folder: Path,
    threads: int,
    options: argparse.Namespace,
) -> str:
    """One line of the table."""
    names = [f"c{i}" for i in range(k)]
    recipe = recipe_of(method, names)
    used = {name: sources[name] for name in ["base", *names]}
    targets = {name: torch.zeros_like(t) for name, t in sources["base"].items()}
    spare = {name: torch.zeros_like(t) for name, t in sources["base"].items()}
    for tensors in used.values():
        copy(tensors, spare)  # reads the files
    merger = Merger(used, "base", compiled=True)
    first = timed(lambda: merger.write(recipe, targets))
    with peak_memory() as peak:
        merger.write(recipe, targets)
    ours, copies = alternate(lambda: merger.write(recipe, targets), lambda: copy(sources["c0"], spare), options.times)
    digest = timed(lambda: merge_digest(targets))
    merger._runner = Streamed(Loop())
    looped, copies_too = alternate(lambda: merger.write(recipe, spare), lambda: copy(sources["c0"], targets), 1)
    size = sum(t.nbytes for t in targets.values())
    reads = k + (CATALOGUE[method].drawn == "scale")
    of_copy = (reads + 1) * size / ours / (2 * size / copies)
    of_copy_looped = (reads + 1) * size / looped / (2 * size / copies_too)
    cells = [
        method,
        str(k),
        f"{ours * 1e3:.0f} ms ({(reads + 1) * size / ours / 1e9:.1f} GB/s)",
        f"{of_copy:.0%} of {2 * size / copies / 1e9:.1f} GB/s",
        f"{looped * 1e3:.0f} ms ({of_copy_looped:.0%})",
        f"{digest * 1e3:.0f} ms",
        f"{first:.1f} s",
        f"{peak[0] / 2**20:.0f} MiB",
    ]
    if f"{method}:{k}" not in options.mergekit or threads != max(options.threads):
        return f"| {' | '.join([*cells, '-', '-'])} |"
    memory = mergekit_in_memory(recipe, models, names, threads)
    yaml = mergekit_yaml(recipe, models, names, folder, threads)
    cells += [f"{memory:.2f} s ({memory / ours:.0f} x)", f"{yaml:.1f} s ({yaml / ours:.0f} x)"]
    return f"| {' | '.join(cells)} |"


def recipe_of(method: str, names: list[str]) -> Recipe:
    """Uneven weights, each of its own; simplex methods get those that sum to 1."""
    raw = [1.0 + 0.37 * i for i in range(len(names))]
    weights = {name: (w / sum(raw),) for name, w in zip(names, raw, strict=True)}
    wanted = {"density": 0.5, "lambda": 1.0}
    return Recipe(method=method, weights=weights, parameters={n: wanted[n] for n in CATALOGUE[method].parameters})


def write_family(folder: Path, options: argparse.Namespace, count: int) -> dict[str, Path]:
    """A base and ``count`` checkpoints near it, with the configuration of a Llama."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.inner,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": options.vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    g = torch.Generator().manual_seed(0)
    noise = 0.002 * torch.randn(1 << 22, generator=g)
    if (folder / f"c{count - 1}" / "model.safetensors").exists():
        return {name: folder / name for name in ["base", *(f"c{i}" for i in range(count))]}
    base = {name: 0.02 * torch.randn(shape, generator=g) for name, shape in shapes(options)}
    paths = {}
    for i, name in enumerate(["base", *(f"c{i}" for i in range(count))]):
        paths[name] = folder / name
        if paths[name].exists():
            continue
        paths[name].mkdir(parents=True)
        (paths[name] / "config.json").write_text(json.dumps(config))
        tensors = {}
        for j, (tensor_name, tensor) in enumerate(base.items()):
            moved = noise.roll(104729 * i + 7919 * j).repeat(-(-tensor.numel() // noise.numel()))[: tensor.numel()]
            tensors[tensor_name] = (tensor + moved.view(tensor.shape) * (i > 0)).bfloat16()
        save_file(tensors, paths[name] / "model.safetensors", metadata={"format": "pt"})
    return paths


def shapes(options: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama's tensors."""
    hidden, inner, vocabulary = options.hidden, options.inner, options.vocabulary
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(options.layers):
        for part in ("q", "k", "v", "o"):
            yield f"model.layers.{i}.self_attn.{part}_proj.weight", (hidden, hidden)
        yield f"model.layers.{i}.mlp.gate_proj.weight", (inner, hidden)
        yield f"model.layers.{i}.mlp.up_proj.weight", (inner, hidden)
        yield f"model.layers.{i}.mlp.down_proj.weight", (hidden, inner)
        yield f"model.layers.{i}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def copy(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """The limit: every byte read once and written once."""
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call, with what it has queued on a GPU."""
    start = perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter() - start


def processor(call: Callable[[], Any]) -> float:
    """Processor seconds of one call, over all threads: what other jobs on the machine change least."""
    start = process_time()
    call()
    return process_time() - start


def alternate(left: Callable[[], Any], right: Callable[[], Any], times: int) -> tuple[float, float]:
    """Medians of two calls that take turns."""
    pairs = [(timed(left), timed(right)) for _ in range(times)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """How far the anonymous memory of this process grows inside the block, in bytes, sampled every millisecond."""
    found, done = [0], threading.Event()
    before = _anonymous()

    def watch() -> None:
        while not done.is_set():
            found[0] = max(found[0], _anonymous() - before)
            sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def make_mergekit() -> None:
    """mergekit in an environment of its own: it is LGPL, and no part of this program."""
    if (MERGEKIT / "bin" / "mergekit-yaml").exists():
        return
    pip = [str(MERGEKIT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", str(MERGEKIT)], check=True)
    subprocess.run([*pip, f"torch=={torch.__version__.partition('+')[0]}"], check=True)
    subprocess.run([*pip, "mergekit==0.1.5", "transformers>=5,<6"], check=True)


def mergekit_in_memory(recipe: Recipe, models: Mapping[str, Path], names: list[str], threads: int) -> float:
    """Median seconds of mergekit's in-memory call (of three, of slow methods one), its imports left out."""
    with_base = recipe.method in ("task_arithmetic", "ties")
    parameters: dict[str, Any] = {"weight": {n: recipe.weights[n][0] for n in names}}
    if recipe.method in ("task_arithmetic", "ties"):
        parameters["normalize"] = False
    if recipe.method == "ties":
        parameters["density"] = recipe.parameters["density"]
    if recipe.method == "slerp":
        parameters = {"t": recipe.weights[names[1]][0]}
    call = {
        "models": {n: str(models[n] / "model.safetensors") for n in (["base"] * with_base + names)},
        "base": "base" if with_base else names[0] if recipe.method == "slerp" else None,
        "method": recipe.method,
        "parameters": parameters,
        "threads": threads,
        "times": 3 if recipe.method in ("linear", "task_arithmetic") else 1,
    }
    return float(_run([str(MERGEKIT / "bin" / "python"), "-c", IN_MEMORY, json.dumps(call)], threads))


def mergekit_yaml(recipe: Recipe, models: Mapping[str, Path], names: list[str], folder: Path, threads: int) -> float:
    """Seconds of one mergekit-yaml, its start included: that is what a trial with it costs."""
    entries = [{"model": str(models[n]), "parameters": {"weight": recipe.weights[n][0]}} for n in names]
    body: dict[str, Any] = {"merge_method": recipe.method, "models": entries, "dtype": "bfloat16"}
    if recipe.method in ("task_arithmetic", "ties"):
        body |= {"base_model": str(models["base"]), "parameters": {"normalize": False, **recipe.parameters}}
    if recipe.method == "slerp":
        body |= {"base_model": str(models[names[0]]), "models": entries[1:], "parameters": {"t": 0.5}}
    (folder / "merge.yaml").write_text(json.dumps(body))
    out = folder / "merged"
    seconds = timed(
        lambda: _run([str(MERGEKIT / "bin" / "mergekit-yaml"), str(folder / "merge.yaml"), str(out)], threads)
    )
    shutil.rmtree(out)
    return seconds


def _run(command: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout.strip().split("\n")[-1]


def export_row(sources: Mapping[str, Mapping[str, Tensor]], folder: Path, k: int) -> str:
    """Merging, looking for what is not finite, hashing, writing and reading back, as an export does, against writing
    as many bytes; both end in the disk.
    """
    names = [f"c{i}" for i in range(min(k, 4))]
    merger = Merger({n: sources[n] for n in ["base", *names]}, "base")
    recipe, file = recipe_of("linear", names), folder / "merged.safetensors"

    def digested(digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in merger.merged(recipe, sources["base"], reuse=True):
            assert is_finite(tensor)
            digests[name] = tensor_digest(tensor)
            yield name, tensor

    def export() -> None:
        digests: dict[str, str] = {}
        write_tensors(file, sources["base"], digested(digests))
        assert {name: tensor_digest(tensor) for name, tensor in open_tensors(file).items()} == digests
        _synced(file)

    def plain() -> None:
        with (folder / "plain").open("wb") as out:
            for tensor in sources["c0"].values():
                out.write(tensor.view(-1).view(torch.uint8).numpy().data)
        _synced(folder / "plain")

    timed(export)
    ours, written = alternate(export, plain, 5)
    busy, busy_plain = median(processor(export) for _ in range(3)), median(processor(plain) for _ in range(3))
    size = sum(t.nbytes for t in sources["base"].values())
    return (
        f"export of linear, k = {len(names)}: {ours:.2f} s ({size / ours / 1e9:.2f} GB/s), {busy:.2f} s of processors; "
        f"a plain write of as many bytes {written:.2f} s ({written / ours:.0%}), {busy_plain:.2f} s of processors"
    )


def streamed_row(mapped: Mapping[str, Mapping[str, Tensor]], k: int, times: int) -> str:
    """linear into a GPU of sources that stay on the host, against moving as many bytes there from pinned memory."""
    names = [f"c{i}" for i in range(k)]
    merger = Merger({n: mapped[n] for n in ["base", *names]}, "base", compiled=True)
    targets = {name: torch.zeros_like(t, device="cuda") for name, t in mapped["base"].items()}
    size = k * sum(t.nbytes for t in targets.values())
    pinned = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    there = pinned.to("cuda")

    def move() -> None:
        for _ in range(size // pinned.numel()):
            there.copy_(pinned, non_blocking=True)

    timed(lambda: merger.write(recipe_of("linear", names), targets))
    ours, moved = alternate(lambda: merger.write(recipe_of("linear", names), targets), move, times)
    return (
        f"linear, k = {k}, streamed: {ours:.2f} s ({size / ours / 1e9:.1f} GB/s, {moved / ours:.0%} of pinned copies)"
    )


def _synced(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", help="where the family is written, or is already")
    for name, size in (("hidden", 1024), ("inner", 4096), ("vocabulary", 32768), ("layers", 20)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    every = [f"{method}:{k}" for method, k in CASES]
    parser.add_argument("--cases", nargs="+", choices=every, default=every, help="rows of the table (default: all)")
    parser.add_argument(
        "--mergekit", nargs="*", choices=every, default=every, help="run mergekit on these (default: all)"
    )
    parser.add_argument("--small", action="store_true", help="a tiny family, few calls, no mergekit")
    options = parser.parse_args()
    if options.small:
        vars(options).update(SMALL)
    options.cases = [(method, int(k)) for method, _, k in (case.partition(":") for case in options.cases)]
    return options


if __name__ == "__main__":
    main()
