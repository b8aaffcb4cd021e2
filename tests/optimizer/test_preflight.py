from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optimizer import memory, preflight
from optimizer.planner import size_of
from optimizer.spec import Spec, load_spec
from storage.checkpoints import Checkpoint


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file())


def report(spec: Spec, *, timed: bool = False) -> preflight.Report:
    return preflight.check(spec, timed=timed, progress=lambda *_: None)


def flat(path: str) -> torch.Tensor:
    return torch.cat([t.double().flatten() for _, t in sorted(load_file(Path(path) / "model.safetensors").items())])


def test_norms_and_cosines_are_those_of_the_whole_task_vectors(spec: Spec) -> None:
    vectors = report(spec).vectors
    assert vectors is not None
    base = flat(spec.base)
    task = torch.stack([flat(c.model) - base for c in spec.checkpoints])
    assert vectors.names == ("alpha", "beta", "gamma")
    assert vectors.relative_norm == pytest.approx((task.norm(dim=1) / base.norm()).tolist(), rel=1e-4)
    expected = torch.nn.functional.cosine_similarity(task[:, None], task[None], dim=-1)
    assert torch.tensor(vectors.cosine) == pytest.approx(expected, abs=1e-4)


def test_rounding_is_told_against_the_way_from_the_base(spec: Spec) -> None:
    exact = report(spec).vectors
    coarse = report(spec.model_copy(update={"workers": spec.workers.model_copy(update={"dtype": "bfloat16"})})).vectors
    assert exact is not None
    assert coarse is not None
    assert exact.rounding == 0.0
    base = flat(spec.base)
    uniform = torch.stack([flat(c.model) for c in spec.checkpoints]).mean(0)
    rounded = uniform.float().bfloat16().double()
    assert coarse.rounding == pytest.approx(float((rounded - uniform).norm() / (uniform - base).norm()), rel=1e-2)


def test_a_trial_and_the_study_are_timed_by_running_one(spec: Spec) -> None:
    facts = report(spec, timed=True).facts
    assert "items" in facts["a trial"]
    assert "8 trials on 1 workers" in facts["the study"]
    assert {"architecture", "stored as", "memory"} <= set(facts)
    assert facts["a trial moves"].startswith(
        f"{size_of(bytes_of(spec, 3))} read and {size_of(bytes_of(spec, 1))} written"
    )


def test_languages_can_be_weighed_where_every_item_is_asked(study_file: Callable[..., Path]) -> None:
    suite = {"path": "suites/choice.jsonl", "scorer": "multiple_choice"}
    objective = {"name": "general", "suites": [suite], "across_languages": {"aa": 1.0, "bb": 0.0}}
    assert report(load_spec(study_file(objectives=[objective], search={"trials": 8}))).problems == ()


def test_live_models_that_do_not_fit_are_refused_with_the_sizes(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available_memory", lambda: 1000)
    (problem,) = report(spec).problems
    assert problem.startswith("the live models must fit into memory, but they need")
    assert "1,000 bytes is free" in problem


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., memory.Memory]:
    """The arithmetic for a GPU with so many bytes free, on a host with so many."""

    def look(spec: Spec, gpu: int, host: int = 1 << 40) -> memory.Memory:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(memory, "_free_on_gpu", lambda: gpu)
        monkeypatch.setattr(memory, "_available_memory", lambda: host)
        checkpoints = {source.name: Checkpoint(source) for source in spec.sources}
        return memory.memory_of(spec, checkpoints, device="cuda", workers=2)

    return look


def bytes_of(spec: Spec, count: int) -> int:
    """Of so many of the study's models, which are float32."""
    return count * 4 * flat(spec.base).numel()


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Spec, int], memory.Memory]:
    """The arithmetic for a vLLM engine on GPUs with so many bytes each, and buffers of 1,000."""

    def look(spec: Spec, gpu: int) -> memory.Memory:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (gpu, gpu))
        for module in ("placement", "vllm_plan"):
            monkeypatch.setattr(f"workers.{module}.BUFFER", 500)
        checkpoints = {source.name: Checkpoint(source) for source in spec.sources}
        return memory.memory_of(spec, checkpoints, device="cuda", workers=1)

    return look


def on_two_gpus(study_file: Callable[..., Path], **search_space: Any) -> Spec:
    workers = {"engine": "vllm", "device": "cuda", "tensor_parallel": 2, "dtype": "float32"}
    return load_spec(study_file(workers=workers, search_space={"method": "linear"} | search_space))


def test_the_gpus_of_a_vllm_engine_share_its_checkpoints_where_these_fit(
    study_file: Callable[..., Path], on_gpus: Callable[[Spec, int], memory.Memory]
) -> None:
    spec = on_two_gpus(study_file)
    found, sources = on_gpus(spec, 80 << 30), bytes_of(spec, 4)
    assert (found.problem, found.warnings) == (None, ())
    assert found.plan is not None
    assert found.fact.endswith(f"shared out among 2 GPUs, checkpoints {size_of(sources)} resident")
    assert (found.plan.on_gpu, found.plan.pinned, found.plan.mapped) == (bytes_of(spec, 1) + sources, 0, 0)
    assert found.plan.streamed == 0


def test_a_part_of_the_checkpoints_is_resident_and_the_rest_streamed(
    study_file: Callable[..., Path], on_gpus: Callable[[Spec, int], memory.Memory]
) -> None:
    spec = on_two_gpus(study_file)
    sources = bytes_of(spec, 4)
    least = bisect_left(range(10**8), 1, key=lambda free: _resident(on_gpus(spec, free)))
    found = on_gpus(spec, least + 38_000)
    assert found.plan is not None
    resident = _resident(found)
    assert 0 < resident < sources
    assert f"{size_of(resident)} of them resident and the others streamed from the host through 2.0 KiB" in found.fact
    assert found.plan.mapped == sources - resident
    assert found.plan.streamed == pytest.approx(found.plan.read * (1 - resident / sources), abs=1)
    (hint,) = found.warnings
    assert hint.startswith(f"up to {size_of(found.plan.streamed)} of checkpoints are streamed a trial; base and 2 ")


def _resident(found: memory.Memory) -> int:
    return found.plan.on_gpu - found.plan.model if found.plan else 0


def test_a_vllm_engine_that_its_gpus_do_not_hold_is_refused(
    study_file: Callable[..., Path], on_gpus: Callable[[Spec, int], memory.Memory]
) -> None:
    found = on_gpus(on_two_gpus(study_file), 30_000)
    assert found.problem is not None
    assert found.problem.startswith("a vLLM engine must fit into its GPU's memory, but it needs 0.0 GiB")
    assert found.plan is None


def test_thresholds_of_a_model_that_several_gpus_share_are_selected_on_the_host(
    study_file: Callable[..., Path], on_gpus: Callable[[Spec, int], memory.Memory]
) -> None:
    found = on_gpus(on_two_gpus(study_file, method="ties", density=[0.3, 1.0]), 80 << 30)
    assert found.warnings == (
        "no GPU holds the checkpoints, so ties with a searched density selects its thresholds on the host in every "
        "trial: a fixed density does so once.",
    )


def test_a_family_that_fits_on_the_gpu_is_resident(spec: Spec, on_gpu: Callable[..., memory.Memory]) -> None:
    found = on_gpu(spec, 1 << 30)
    assert found.problem is None
    assert found.warnings == ()
    assert f"live model {size_of(bytes_of(spec, 1))}" in found.fact
    assert f"checkpoints {size_of(bytes_of(spec, 4))} resident" in found.fact


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_driver_without_a_gpu_leaves_the_question_to_its_workers(spec: Spec) -> None:
    checkpoints = {source.name: Checkpoint(source) for source in spec.sources}
    found = memory.memory_of(spec, checkpoints, device="cuda", workers=2)
    assert found.problem is None
    assert found.fact.endswith("there is no GPU here to measure: each worker finds out whether they fit on its own")


@pytest.mark.parametrize(("method", "read"), [("linear", 3), ("ties", 4)])
def test_a_family_that_does_not_fit_is_streamed_and_what_moves_is_said(
    method: str, read: int, study_file: Callable[..., Path], on_gpu: Callable[..., memory.Memory]
) -> None:
    spec = load_spec(study_file(search_space={"method": method}))
    tight = int((bytes_of(spec, 5)) / 0.9) - 100  # the live model and four sources, and a tenth to run in
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.placement.BUFFER", 1000)
        found = on_gpu(spec, tight)
        assert f"checkpoints {size_of(bytes_of(spec, 4))} resident" in on_gpu(spec, tight + 200).fact
    assert found.problem is None
    assert found.plan is not None
    assert found.plan.mapped == pytest.approx(2000 + 90, abs=1)  # what the buffers take, and a tenth less of the 100
    moved = read * found.plan.mapped // 4
    assert f"through 2.0 KiB of pinned memory, up to {size_of(moved)} a trial" in found.fact
    (hint,) = found.warnings
    assert hint.endswith("of checkpoints are streamed a trial; base and 2 checkpoints would be resident as a whole.")


def test_a_live_model_that_does_not_fit_on_the_gpu_is_refused(spec: Spec, on_gpu: Callable[..., memory.Memory]) -> None:
    problem = on_gpu(spec, 1000).problem
    assert problem is not None
    assert problem.startswith("the live models must fit into memory, but they need 512.0 MiB")
    assert problem.endswith("1,000 bytes is free."), "the buffers alone fit nowhere: there is no way out"


def test_a_refusal_tells_the_cheapest_ways_out(spec: Spec, on_gpu: Callable[..., memory.Memory]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.placement.BUFFER", 0)
        problem = on_gpu(spec, bytes_of(spec, 1)).problem
    assert problem is not None
    free = size_of(bytes_of(spec, 1))
    ways = problem.partition("; ways out: ")[2]
    assert ways.startswith(f"workers.dtype: bfloat16 ({size_of(bytes_of(spec, 1) * 0.6)} of {free}), ")
    assert f"workers: {{engine: vllm, tensor_parallel: 2}} ({size_of(bytes_of(spec, 1) * 0.6)} of {free})" in ways
    assert ways.count(" of ") == 3


def test_fewer_workers_are_the_way_out_of_a_host_that_is_too_small(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available_memory", lambda: bytes_of(spec, 2))
    checkpoints = {source.name: Checkpoint(source) for source in spec.sources}
    problem = memory.memory_of(spec, checkpoints, device="cpu", workers=3).problem
    assert problem is not None
    needed = f"{size_of(bytes_of(spec, 2))} of {size_of(bytes_of(spec, 2))}"
    assert f"; ways out: workers.count: 2 ({needed}), workers.dtype: bfloat16 (" in problem


def test_what_slows_streaming_down_is_said(
    study_file: Callable[..., Path], on_gpu: Callable[..., memory.Memory]
) -> None:
    searched = load_spec(study_file(search_space={"method": ["linear", "ties"], "density": [0.3, 1.0]}))
    gpu = int((bytes_of(searched, 1) + 1000) / 0.9)  # room for the buffers, none for the family
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.placement.BUFFER", 500)
        (selecting, disk) = on_gpu(searched, gpu, host=3000).warnings  # two workers' buffers take 2,000
        fixed = load_spec(study_file(search_space={"method": "ties", "density": 0.5}))
        assert on_gpu(fixed, gpu).warnings == ()
        della = load_spec(study_file(search_space={"method": "della", "density": 0.5}))
        assert "of ranks that della keeps" in on_gpu(della, gpu).fact
        problem = on_gpu(della, gpu, host=bytes_of(della, 4)).problem  # two workers keep six times the model, of three
        assert problem is not None
        of = size_of(bytes_of(della, 4))
        assert f"ways out: 2 checkpoints ({of} of {of}), another method than della (0 bytes of {of})." in problem
    assert selecting == (
        "no GPU holds the checkpoints, so ties with a searched density selects its thresholds on the host in every "
        "trial: a fixed density does so once."
    )
    assert disk.endswith("1,000 bytes of memory is free for them: every trial will wait for the disk.")


def test_another_tokenizer_and_another_template_are_told(
    study_file: Callable[..., Path], models: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    other = Path(shutil.copytree(models / "alpha", tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    checkpoints = [{"name": "alpha", "model": str(other)}, {"name": "beta", "model": "models/beta"}]
    found = report(load_spec(study_file(checkpoints=checkpoints)))
    assert found.problems == ()
    assert any(w.startswith("alpha tokenizes ") and "differently from the base" in w for w in found.warnings)
    assert "alpha has another chat template than the base; merges are asked with the base's." in found.warnings
    assert not any(w.startswith("beta tokenizes") for w in found.warnings)


def test_a_parameter_that_no_method_takes_is_said_to_change_nothing(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file(search_space={"method": "linear", "density": [0.3, 1.0]}))
    (warning,) = (w for w in report(spec).warnings if w.startswith("density"))
    assert warning.startswith("density changes nothing: it is a parameter of ties")
    assert warning.endswith("and the method is linear.")
