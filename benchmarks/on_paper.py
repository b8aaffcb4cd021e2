"""Two big studies on paper: the planner's own arithmetic with bandwidths that are given instead of measured.

    python benchmarks/on_paper.py [--euros 3] [--host-gib 2048] [--memory 430] [--bus 50] [--disk 40] ...

The machine is one of eight H100 with 80 GB as vendors describe it. What of a published peak can be had is an
assumption, and an option. Each process of a tensor-parallel engine reads its share of every checkpoint, as much of it
as fits from its GPU's memory, and the processes exchange what they have merged.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from optimizer.planner import Plan, Rates, size_of
from search_spaces.errors import InputError
from search_spaces.groups import layer_of
from workers.placement import buffers
from workers.vllm_plan import Cache, Needs, plan_gpu, swap_room

GIB, GB = 1 << 30, 10**9
GPUS = 8
"""Of one machine."""

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
COMMAND_104B = LlamaConfig(  # the shape of Command R+, with the tensors of a Llama
    vocab_size=256000,
    hidden_size=12288,
    intermediate_size=33792,
    num_hidden_layers=64,
    num_attention_heads=96,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """So many checkpoints of a model, and how it is run."""

    name: str
    config: LlamaConfig
    checkpoints: int
    machines: int
    tensor_parallel: int
    trials: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    options = parser().parse_args(arguments)
    studies = [
        Family(name="104B", config=COMMAND_104B, checkpoints=16, machines=8, tensor_parallel=8, trials=200),
        Family(name="8B", config=LLAMA_8B, checkpoints=8, machines=8, tensor_parallel=1, trials=1000),
    ]
    table = Table(title=f"64 GPUs, {options.items} items a trial, {options.euros:g} euros a GPU hour")
    for title in ("family", "GPU: live", "resident", "streamed", "from", "on a host", "moved", "exchanged"):
        table.add_column(title, justify="right")
    for title in ("merge s", "exchange s", "digest s", "answers s", "trial s", "trials", "hours", "euros"):
        table.add_column(title, justify="right")
    for family in studies:
        table.add_row(*row(family, options))
    Console(width=180).print(table)
    limits = Table("family", "what", "holds", title="What breaks first, everything else as above")
    for family in studies:
        for name, where in broken(family, options):
            limits.add_row(family.name, name, where)
    Console(width=150).print(limits)


def parser() -> argparse.ArgumentParser:
    """Bandwidths are of one machine in GB/s; sources and assumptions stand in docs/scale.md."""
    found = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    found.add_argument("--gpu-gib", type=float, default=79.0, help="free on each GPU")
    found.add_argument("--host-gib", type=float, default=2048.0)
    found.add_argument("--hbm", type=float, default=2500.0, help="of one GPU")
    found.add_argument("--bus", type=float, default=50.0, help="of one GPU")
    found.add_argument("--link", type=float, default=300.0, help="into one GPU from the others of its machine")
    found.add_argument("--memory", type=float, default=430.0, help="of the host, all sockets")
    found.add_argument("--disk", type=float, default=40.0)
    found.add_argument("--hash", type=float, default=5.0, help="digest of one process, copying to the host included")
    found.add_argument("--flops", type=float, default=400.0, help="of one GPU, in 10^12 a second")
    found.add_argument("--items", type=int, default=400)
    found.add_argument("--prompt", type=int, default=150, help="tokens of an item's prompt")
    found.add_argument("--answer", type=int, default=64, help="tokens written; by half of the items")
    found.add_argument("--euros", type=float, default=3.0)
    found.add_argument("--start", type=float, default=300.0, help="seconds until an engine runs")
    return found


def row(family: Family, options: argparse.Namespace) -> list[str]:
    """One line of the table."""
    plan, _ = planned(family, options)
    workers = family.machines * GPUS // family.tensor_parallel
    seconds = spent(family, options)
    trial = sum(seconds.values())
    hours = (family.trials * trial / workers + options.start) / 3600
    merge = seconds["merge"] + seconds.get("disk", 0.0)
    return [
        family.name,
        size_of(plan.model / family.tensor_parallel),
        size_of((plan.on_gpu - plan.model) / family.tensor_parallel),
        size_of(plan.streamed / family.tensor_parallel),
        "disk" if plan.from_disk else "memory",
        size_of(plan.mapped),
        size_of(plan.moved * GPUS / family.tensor_parallel),
        size_of(exchanged(family)),
        *(f"{s:.1f}" for s in (merge, seconds["exchange"], seconds["digest"], seconds["answers"], trial)),
        f"{family.trials:,}",
        f"{hours:.2f}",
        f"{hours * options.euros * family.machines * GPUS:,.0f}",
    ]


def planned(family: Family, options: argparse.Namespace) -> tuple[Plan, Rates]:
    """One worker's bytes and what it gets of its machine. Raises InputError where it does not fit."""
    processes, free = family.tensor_parallel, int(options.gpu_gib * GIB)
    model = 2 * weights(family.config)
    sources, read = model * (family.checkpoints + 1), model * family.checkpoints
    keys = Cache.of(family.config, dtype="bfloat16", processes=processes, longest=4096)
    swap = swap_room(two_layers(family.config))
    needs = Needs(model=model // processes, cache=keys, swap=swap, sources=sources // processes)
    resident = plan_gpu(needs, total=free, free=free).resident * processes
    mapped = sources - resident
    plan = Plan(
        model=model,
        read=read,
        streamed=read * mapped // sources,
        on_gpu=model + resident,
        pinned=buffers(mapped) * processes,
        mapped=mapped,
        from_disk=mapped > options.host_gib * GIB,
    )
    # Out of mapped files into pinned memory and from there to a GPU: the host's memory sees each byte three times, and
    # all processes of a machine share it, as they share its disks.
    share, hbm = processes / GPUS, options.hbm * GB * processes
    host = min(options.memory * GB / 3 * share, options.bus * GB * processes)
    moving = plan.streamed / host + (plan.moved - plan.streamed) / hbm
    disk = options.disk * GB * share if plan.from_disk else None
    return plan, Rates(merge=plan.moved / moving, digest=options.hash * GB * processes, disk=disk)


def spent(family: Family, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one trial, by what they are spent on, one after another."""
    plan, rates = planned(family, options)
    exchange = exchanged(family) / (options.link * GB)
    return plan.seconds(rates) | {"exchange": exchange, "answers": answers(family, options)}


def exchanged(family: Family) -> float:
    """Bytes that each GPU of an engine gets from the others in a trial: all of the merge but its own share."""
    return 2 * weights(family.config) * (1 - 1 / family.tensor_parallel)


def answers(family: Family, options: argparse.Namespace) -> float:
    """Seconds for all items: prefill bound by arithmetic, decoding by reading the weights once a token."""
    count, processes = weights(family.config), family.tensor_parallel
    prefill = 2 * count * options.items * options.prompt / (options.flops * 10**12 * processes)
    return prefill + options.answer * 2 * count / (options.hbm * GB * processes)


def weights(config: LlamaConfig) -> int:
    """Parameters of a model."""
    sizes = Counter({0: 0, 1: 0})
    for name, tensor in two_layers(config).items():
        sizes[layer_of(name) is not None] += tensor.numel()
    return sizes[False] + sizes[True] // 2 * config.num_hidden_layers


def two_layers(config: LlamaConfig) -> dict[str, Tensor]:
    """The weights of a model of that width, tied ones once, without memory for them."""
    return _made(LlamaConfig(**config.to_dict() | {"num_hidden_layers": 2}).to_json_string())


@cache
def _made(config: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**json.loads(config))).bfloat16()
    return dict(model.named_parameters())


def broken(family: Family, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What gives way as the number of checkpoints, of workers, or of the model's parameters, grows."""
    plans = {k: planned(replace(family, checkpoints=k), options)[0] for k in range(1, 512)}
    for what, holds in (("GPUs", lambda plan: not plan.mapped), ("GPUs and host", lambda plan: not plan.from_disk)):
        fitting = [k for k, plan in plans.items() if holds(plan)]
        yield f"checkpoints stay in the memory of {what}", f"up to {max(fitting)}" if fitting else "never"
    rate = family.machines * GPUS / family.tensor_parallel / sum(spent(family, options).values())
    yield "one driver", f"is asked for {rate:.2f} trials a second"
    yield "an engine on one machine's GPUs", f"up to {largest(family, options) / 10**9:,.0f} billion parameters"


def largest(family: Family, options: argparse.Namespace) -> int:
    """Parameters of the deepest model of this width that all GPUs of one machine hold."""
    fitting = 0
    for layers in range(family.config.num_hidden_layers, 10_000, 8):
        config = LlamaConfig(**family.config.to_dict() | {"num_hidden_layers": layers})
        try:
            planned(replace(family, config=config, tensor_parallel=GPUS), options)
        except InputError:
            break
        fitting = weights(config)
    return fitting


if __name__ == "__main__":
    main()
