"""Real vLLM on a CPU, against fresh engines of its own and against the transformers engine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from optimizer.spec import load_spec
from optimizer.verify import canaries, compared, verify_swap
from search_spaces.errors import InputError
from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe, only
from storage.checkpoints import Source
from storage.records import Assignment, Measured
from tests.conftest import save, tiny_llama
from workers.canary import canary_of
from workers.engine import Engine, Request
from workers.engines import load
from workers.errors import EngineDied, EngineError, MergeError
from workers.prompts import load_tokenizer
from workers.setup import Setup
from workers.vllm_plan import is_installed
from workers.worker import Worker

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_installed(), reason="vLLM is missing: `make test-vllm` runs this"),
    pytest.mark.filterwarnings("default"),  # vLLM's own code warns when it is imported
]

NAMES = ("base", "alpha", "beta", "gamma")
BLEND = Recipe(method="linear", weights={"alpha": (0.5,), "beta": (0.25,), "gamma": (0.25,)})
CONTEXT = 256
"""More than the 128 tokens of a block: only whole blocks are found again in the prefix cache."""
LONG = tuple(6 + i % 40 for i in range(CONTEXT - 20))
SCORED = tuple(
    Request(prompt=prompt, continuation=continuation, ends=ends)
    for prompt in [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), LONG]
    for continuation in [(7,), (8, 9), (20,)]
    for ends in (False, True)
)
WRITTEN = tuple(
    Request(prompt=prompt, max_new_tokens=5 + i, stop=stop)
    for i, prompt in enumerate([(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), LONG])
    for stop in ((), ("w3", "w2"))
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As for all other tests, but with heads of 64: vLLM's attention on a CPU has none below 32."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        save(tiny_llama(seed, hidden_size=64, max_position_embeddings=CONTEXT), root / name)
    return root


def family(root: Path, base: str = "base", **changes: Any) -> Setup:
    names = [base, *(n for n in NAMES if n != base and (root / n).exists())]
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "engine": "vllm", "objectives": ()} | changes
    return Setup(sources=tuple(Source(name=n, model=str(root / n)) for n in names), base=base, **options)


def opened(setup: Setup) -> Any:
    engine = load(setup, load_tokenizer(Path(setup.family.root.model)), device="cpu")
    # vLLM's process groups are the process's: an engine that is collected takes them away from all others here.
    _ALIVE.append(engine)
    return engine


_ALIVE: list[Engine] = []


@pytest.fixture(scope="module")
def engine(models: Path) -> Engine:
    return opened(family(models))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def other(models: Path) -> Engine:
    return opened(family(models, engine="transformers"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def fresh(models: Path) -> Engine:
    """Started on alpha, and never swapped."""
    return opened(family(models, base="alpha"))  # type: ignore[no-any-return]


def totals(engine: Engine, requests: tuple[Request, ...] = SCORED) -> list[float]:
    return [answer.total for answer in engine.loglikelihood(requests)]


@pytest.mark.parametrize("recipe", [BLEND, only("beta"), only("base")], ids=["blend", "beta", "base"])
def test_a_merge_answers_and_weighs_as_with_transformers(engine: Engine, other: Engine, recipe: Recipe) -> None:
    assert engine.swap(recipe) == other.swap(recipe)
    for mine, its in zip(engine.loglikelihood(SCORED), other.loglikelihood(SCORED), strict=True):
        assert mine.total == pytest.approx(its.total, abs=2e-3)
        assert (mine.tokens, mine.greedy) == (its.tokens, its.greedy)
    for said, wanted in zip(engine.generate(WRITTEN), other.generate(WRITTEN), strict=True):
        assert said == wanted
        assert (said.confidence or 0.0) == pytest.approx(wanted.confidence or 0.0, rel=1e-3)


def test_a_request_of_the_whole_context_is_answered(engine: Engine, other: Engine) -> None:
    assert engine.context == other.context == CONTEXT
    full = tuple(6 + i % 30 for i in range(CONTEXT))
    scored = Request(prompt=full[:-1], continuation=(7, 8))
    written = Request(prompt=full[:-4], max_new_tokens=5)
    assert scored.length == written.length == CONTEXT
    for each in (engine, other):
        each.swap(BLEND)
    assert totals(engine, (scored, SCORED[0])) == pytest.approx(totals(other, (scored, SCORED[0])), abs=2e-3)
    assert engine.generate((written, WRITTEN[0])) == other.generate((written, WRITTEN[0]))


def test_answers_are_those_of_a_fresh_engine_bit_for_bit(engine: Engine, fresh: Engine) -> None:
    """Long prompts that were read with another merge stay in the prefix cache unless that is reset; and what is tied
    to the embeddings stays the old head unless it is packed anew.
    """
    engine.swap(BLEND)
    old = totals(engine)
    engine.swap(only("alpha"))
    assert totals(engine) == totals(fresh) != old
    assert engine.generate(WRITTEN) == fresh.generate(WRITTEN)


def test_without_its_reset_the_prefix_cache_answers_out_of_the_old_model(
    engine: Any, fresh: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.swap(BLEND)
    totals(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        engine.swap(only("alpha"))
        assert totals(engine) != totals(fresh)
    engine.swap(only("alpha"))
    assert totals(engine) == totals(fresh)


def test_a_swap_without_the_reset_is_an_error(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
        with pytest.raises(EngineDied, match="must drop its prefix cache"):
            engine.swap(BLEND)
    engine.swap(BLEND)


def test_a_merge_that_gives_nan_leaves_nothing_behind(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models"
    shutil.copytree(models, broken)
    tensors = {n: t.clone() for n, t in load_file(broken / "alpha" / "model.safetensors").items()}
    tensors["model.norm.weight"].fill_(3.3e38)
    tensors["model.layers.0.input_layernorm.weight"].fill_(3.3e38)
    save_file(tensors, broken / "alpha" / "model.safetensors", metadata={"format": "pt"})
    engine = opened(family(broken))
    engine.swap(only("beta"))
    before, said = totals(engine), engine.generate(WRITTEN)
    for ask in (lambda: totals(engine), lambda: engine.generate(WRITTEN)):
        engine.swap(only("alpha"))
        with pytest.raises(EngineError, match="logits must be finite, but the merge gives NaN or infinity"):
            ask()
        engine.swap(only("beta"))
        assert totals(engine) == before
        assert engine.generate(WRITTEN) == said


def test_a_merge_that_does_not_hear_its_prompt_fails(models: Path, tmp_path: Path) -> None:
    deaf = tmp_path / "models"
    shutil.copytree(models, deaf)
    tensors = {n: torch.zeros_like(t) for n, t in load_file(deaf / "alpha" / "model.safetensors").items()}
    save_file(tensors, deaf / "alpha" / "model.safetensors", metadata={"format": "pt"})
    engine = opened(family(deaf))
    engine.swap(only("alpha"))
    for ask, requests in ((engine.loglikelihood, SCORED), (engine.generate, WRITTEN)):
        with pytest.raises(EngineError, match="logits must depend on the prompt"):
            ask(requests)


def test_every_tensor_is_streamed_whatever_the_recipe_changes(engine: Any, models: Path) -> None:
    """vLLM fuses tensors: of a fused one that is given in part, the rest is not what it was."""
    seen: list[str] = []
    worker = engine._llm.llm_engine.model_executor.driver_worker.worker
    reload = worker.reload_weights

    def spy(weights_iterator: Iterator[tuple[str, Any]]) -> None:
        def noted() -> Iterator[tuple[str, Any]]:
            for name, tensor in weights_iterator:
                seen.append(name)
                yield name, tensor

        reload(weights_iterator=noted())

    worker.reload_weights = spy
    try:
        engine.swap(only("base"))
        engine.swap(only("base"))
    finally:
        del worker.reload_weights
    assert sorted(seen) == sorted(2 * list(load_file(models / "base" / "model.safetensors")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), "must have the tensor, but alpha has not"),
        (
            lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}),
            r"shapes must be the base's, but it is \(3, 3\) in alpha",
        ),
    ],
    ids=["a tensor lacks", "a tensor has another shape"],
)
def test_a_recipe_that_cannot_be_merged_fails_before_anything_is_written(
    models: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    wrong = tmp_path / "models"
    shutil.copytree(models, wrong)
    tensors = load_file(wrong / "alpha" / "model.safetensors")
    change(tensors)
    save_file(tensors, wrong / "alpha" / "model.safetensors", metadata={"format": "pt"})
    engine = opened(family(wrong))
    engine.swap(only("beta"))
    before = totals(engine)
    with pytest.raises(MergeError, match=message):
        engine.swap(BLEND)
    with pytest.raises(MergeError, match="must name opened checkpoints"):
        engine.swap(only("delta"))
    assert totals(engine) == before


def test_what_breaks_a_swap_on_its_way_ends_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failed trial: a worker that went on would measure half of one merge and half of another."""
    for seed, name in enumerate(NAMES):  # of a shape of their own: vLLM's models share parts, and these will be broken
        save(tiny_llama(seed, hidden_size=64, max_position_embeddings=64), tmp_path / name)
    engine = opened(family(tmp_path))
    from workers import vllm_swap

    calls: list[int] = []
    digest = vllm_swap.tensor_digest

    def breaks(tensor: Any) -> str:
        calls.append(1)
        if len(calls) == 7:
            raise MergeError("a source went away")
        return digest(tensor)

    monkeypatch.setattr(vllm_swap, "tensor_digest", breaks)
    with pytest.raises(EngineDied, match="vLLM broke: a source went away"):
        engine.swap(BLEND)


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
DENSE: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama tied": lambda: tf.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=32),
    "mistral": lambda: tf.MistralConfig(**SMALL),
    "gemma3": lambda: tf.Gemma3TextConfig(**SMALL, head_dim=32, sliding_window=64),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "olmo2": lambda: tf.Olmo2Config(**SMALL),
}


def two_of(kind: str, dtype: str, directory: Path) -> Setup:
    """A base and one checkpoint."""
    for seed, name in enumerate(NAMES[:2]):
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(DENSE[kind](), dtype=getattr(torch, dtype))
        for parameter in model.parameters():  # biases and norms too
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        save(model, directory / name)
    return family(directory, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind != "olmo2"])
def test_a_dense_architecture_passes_verify_swap(kind: str, dtype: str, tmp_path: Path) -> None:
    live = canaries(opened(two_of(kind, dtype, tmp_path)), "base", only("alpha"), SCORED)
    alone = canary_of(live[1].digest, opened(family(tmp_path, base="alpha", dtype=dtype)), SCORED)
    proof = compared(live, alone)
    assert (proof.swapped, proof.back, proof.problem) == (0.0, 0.0, "")
    assert live[0].totals != live[1].totals


@pytest.mark.parametrize("processes", [1, 2])
def test_olmo2_passes_verify_swap(tmp_path: Path, study_file: Callable[..., Path], processes: int) -> None:
    """In processes of their own, as the command does it: there vLLM has changed no class of transformers yet."""
    setup = two_of("olmo2", "bfloat16", tmp_path / "olmo2")
    objectives = load_spec(study_file()).setup(device="cpu").objectives
    proof = verify_swap(replace(setup, objectives=objectives, tensor_parallel=processes), only("alpha"))
    assert (proof.swapped, proof.back, proof.problem) == (0.0, 0.0, "")
    assert proof.answers > 10


def test_a_lora_adapter_is_merged_into_full_weights_before_the_swap(models: Path, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    weight = load_file(models / "base" / "model.safetensors")[f"{module}.weight"]
    torch.manual_seed(0)
    sides = {"A": torch.randn(2, weight.shape[1]), "B": torch.randn(weight.shape[0], 2)}
    named = {f"base_model.model.{module}.lora_{side}.weight": tensor for side, tensor in sides.items()}
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file(named, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    )
    sources = (
        Source(name="base", model=str(models / "base")),
        Source(name="tuned", model=str(models / "base"), adapter=str(lora)),
    )
    options: dict[str, Any] = {"sources": sources, "base": "base", "objectives": (), "dtype": "float32"}
    live, other = (opened(Setup(engine=kind, device="cpu", **options)) for kind in ("vllm", "transformers"))
    untuned = totals(live)
    recipe = Recipe(method="linear", weights={"base": (0.5,), "tuned": (0.5,)})
    assert live.swap(recipe) == other.swap(recipe)
    assert totals(live) == pytest.approx(totals(other), abs=2e-3)
    assert totals(live) != pytest.approx(untuned, abs=1e-2)


@pytest.fixture
def shared() -> Iterator[Callable[[Setup], Any]]:
    """Engines of two processes each, which are ended with the test."""
    begun: list[Any] = []

    def start(setup: Setup) -> Any:
        begun.append(opened(replace(setup, tensor_parallel=2)))
        return begun[-1]

    yield start
    for engine in begun:
        engine._llm.llm_engine.model_executor.shutdown()


def in_each(engine: Any, call: Callable[[Any], Any]) -> list[Any]:
    """What a call of each process's worker gives there."""
    return engine._llm.collective_rpc(call)  # type: ignore[no-any-return]


def watch(worker: Any) -> None:
    """Count the elements that this process merges from now on."""
    merger = worker.worker._mergefront_merger
    run, worker.worker.merged = merger.run, {}

    def counted(name: str, todo: Any, out: Any) -> None:
        worker.worker.merged[name] = out.numel()
        run(name, todo, out)

    merger.run = counted


def merged_there(worker: Any) -> dict[str, int]:
    return worker.worker.merged  # type: ignore[no-any-return]


def test_two_processes_merge_their_rows_with_every_method_as_one_does(
    models: Path, engine: Engine, shared: Callable[[Setup], Any]
) -> None:
    """And answer alike. Of a matrix each merges its half, of 49 rows one of them more; of a norm all."""
    pair = shared(family(models))
    in_each(pair, watch)
    wanted = {"density": 0.6, "epsilon": 0.2, "gamma": 0.1, "lambda": 0.9}
    for name, method in CATALOGUE.items():
        weights = dict(zip(NAMES[1:][: method.most or 3], ((0.5,), (0.3,), (0.2,)), strict=False))
        recipe = Recipe(method=name, weights=weights, parameters={p: wanted[p] for p in method.parameters})
        assert (name, pair.swap(recipe)) == (name, engine.swap(recipe))
        assert totals(pair) == pytest.approx(totals(engine), abs=2e-3)
    first, second = in_each(pair, merged_there)
    for name, tensor in load_file(models / "base" / "model.safetensors").items():
        *rows, columns = tensor.shape
        more, less = (columns * -(-rows[0] // 2), columns * (rows[0] // 2)) if rows else (columns, columns)
        assert (first[name], second[name]) == (more, less)
    assert first["model.embed_tokens.weight"] > second["model.embed_tokens.weight"]


@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind != "olmo2"])
def test_two_processes_share_a_dense_architecture(kind: str, tmp_path: Path, shared: Callable[[Setup], Any]) -> None:
    setup = two_of(kind, "float32", tmp_path)
    pair, alone = shared(setup), opened(setup)
    recipe = Recipe(method="linear", weights={"base": (0.3,), "alpha": (0.7,)})
    assert pair.swap(recipe) == alone.swap(recipe)
    assert totals(pair) == pytest.approx(totals(alone), abs=2e-3)
    assert pair.generate(WRITTEN) == alone.generate(WRITTEN)


def raises(worker: Any) -> None:
    raise OSError("a source went away")


def is_killed(worker: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("breaks", [raises, is_killed])
def test_a_process_that_breaks_in_the_middle_of_a_swap_ends_the_engine(
    models: Path, shared: Callable[[Setup], Any], breaks: Callable[[Any], None]
) -> None:
    """The others wait for it in an exchange, and vLLM waits for the first of them."""
    pair = shared(family(models))
    pair.swap(BLEND)
    processes = [w.proc for w in pair._llm.llm_engine.model_executor.workers]

    def break_the_second(worker: Any) -> None:
        merger, rank = worker.worker._mergefront_merger, worker.worker.rank
        run, calls = merger.run, []

        def breaking(name: str, todo: Any, out: Any) -> None:
            calls.append(name)
            if rank == 1 and len(calls) == 7:
                breaks(worker)
            run(name, todo, out)

        merger.run = breaking

    in_each(pair, break_the_second)
    with pytest.raises(EngineDied, match="vLLM broke: "):
        pair.swap(BLEND)
    assert not any(process.is_alive() for process in processes)


def test_a_recipe_that_two_processes_cannot_merge_leaves_them_as_they_were(
    models: Path, tmp_path: Path, shared: Callable[[Setup], Any]
) -> None:
    """Whichever of them owns the tensor that the method refuses: nothing is exchanged before all have planned."""
    wrong = tmp_path / "models"
    shutil.copytree(models, wrong)
    tensors = load_file(wrong / "alpha" / "model.safetensors")
    zero = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight")
    save_file({n: t * (n not in zero) for n, t in tensors.items()}, wrong / "alpha" / "model.safetensors")
    pair = shared(family(wrong))
    pair.swap(only("beta"))
    before = totals(pair)
    with pytest.raises(MergeError, match="a direction must have a length, but the tensor is all zero in alpha"):
        pair.swap(Recipe(method="slerp", weights={"alpha": (0.5,), "beta": (0.5,)}))
    assert totals(pair) == before


SHARED = """
import json, sys, time
from pathlib import Path
from test_vllm_engine import BLEND, family, opened, totals
from workers.errors import EngineDied

def told(name, document):
    Path(sys.argv[2], name + ".partial").write_text(json.dumps(document))
    Path(sys.argv[2], name + ".partial").rename(Path(sys.argv[2], name))

if __name__ == "__main__":
    engine = opened(family(Path(sys.argv[1]), tensor_parallel=2))
    parallel = engine._llm.llm_engine.vllm_config.parallel_config
    backend = parallel.distributed_executor_backend
    told("found", {"digest": engine.swap(BLEND), "totals": totals(engine), "backend": backend})
    while not Path(sys.argv[2], "killed").exists():
        time.sleep(0.1)
    try:
        engine.swap(BLEND)
    except EngineDied as e:
        told("died", str(e))
    time.sleep(600)
"""


def awaited(path: Path, parent: "subprocess.Popen[bytes]") -> Any:
    """What the other process has told."""
    while not path.exists():
        assert parent.poll() is None
        time.sleep(0.1)
    return json.loads(path.read_text())


def test_two_processes_share_a_model_and_die_with_each_other_and_their_worker(
    models: Path, engine: Engine, tmp_path: Path
) -> None:
    """Tensor parallel. One that is killed ends the engine; and after kill -9 of the worker nothing is left."""
    digest = engine.swap(BLEND)
    (tmp_path / "script.py").write_text(SHARED)
    paths = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", models, tmp_path], env=os.environ | {"PYTHONPATH": paths}
    )
    try:
        found = awaited(tmp_path / "found", parent)
        children = psutil.Process(parent.pid).children(recursive=True)
        workers = [child for child in children if "VLLM" in child.name() or "Worker" in " ".join(child.cmdline())]
        workers[0].kill()
        (tmp_path / "killed").touch()
        died = awaited(tmp_path / "died", parent)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert found["backend"] == "mp"
    assert found["digest"] == digest
    assert found["totals"] == pytest.approx(totals(engine), abs=2e-3)
    assert died.startswith("vLLM broke: ")
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_fewer_gpus_than_an_engine_wants_are_counted(models: Path) -> None:
    setup = family(models, tensor_parallel=2)
    with pytest.raises(InputError, match="must not exceed the GPUs there are, but it is 2 and there are 0"):
        load(setup, load_tokenizer(models / "base"), device="cuda")


def test_a_model_that_vllm_does_not_know_is_named(models: Path, tmp_path: Path) -> None:
    strange = tmp_path / "models"
    shutil.copytree(models, strange)
    config = json.loads((strange / "base" / "config.json").read_text())
    (strange / "base" / "config.json").write_text(json.dumps(config | {"architectures": ["BioGptForCausalLM"]}))
    with pytest.raises(InputError, match=r"vLLM must know the model, but vLLM .* does not know BioGptForCausalLM"):
        opened(family(strange))


def test_an_engine_of_fewer_tokens_takes_no_more(models: Path) -> None:
    engine = opened(family(models, max_model_len=40))
    assert engine.context == 40
    assert engine.facts.arguments["max_model_len"] == 41
    assert engine.facts.engine == "vllm"
    assert engine.facts.seconds > 0


def test_a_worker_measures_what_it_measures_with_transformers(study_file: Callable[..., Path]) -> None:
    """Refusals and choices of the whole sheet, raced or not."""
    racing = {"evaluation": {"racing": True}}
    outcomes = {}
    for kind in ("vllm", "transformers"):
        spec = load_spec(study_file(workers={"engine": kind, "device": "cpu", "dtype": "float32"}, search=racing))
        worker = Worker(spec.setup(device="cpu"))
        whole = worker.run(Assignment(number=0, recipe=BLEND))
        raced = worker.run(Assignment(number=1, recipe=only("alpha"), rivals=()))
        assert isinstance(whole, Measured), whole
        assert isinstance(raced, Measured), raced
        outcomes[kind] = [(o.digest, o.scores, o.marks, o.stopped) for o in (whole, raced)]
    assert outcomes["vllm"] == outcomes["transformers"]


def test_a_guard_reads_what_a_merge_on_vllm_writes(study_file: Callable[..., Path], models: Path) -> None:
    """A second model, on transformers in the same process."""
    guard = {
        "path": "suites/safety.jsonl",
        "scorer": "guard",
        "model": "models/gamma",
        "template": "{prompt} {response}",
        "verdicts": {"unsafe": "w[0-9]*[13579]", "safe": "^"},
        "dtype": "float32",
        "any_script": True,
        "least_confidence": 0.0,
        "max_new_tokens": 3,
        "guard_tokens": 2,
    }
    marks = {}
    for kind in ("vllm", "transformers"):
        objectives = [{"name": "safe", "suites": [guard]}]
        workers = {"engine": kind, "device": "cpu", "dtype": "float32"}
        outcome = Worker(load_spec(study_file(objectives=objectives, workers=workers)).setup(device="cpu")).run(
            Assignment(number=0, recipe=BLEND)
        )
        assert isinstance(outcome, Measured), outcome
        (marks[kind],) = outcome.marks.values()
    assert marks["vllm"] == marks["transformers"]
    assert {"safe", "unsafe"} & set(marks["vllm"].verdicts)
