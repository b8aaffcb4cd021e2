import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from optimizer.spec import load_spec
from search_spaces.recipe import Recipe, only
from storage.checkpoints import Checkpoint, Source
from storage.errors import CheckpointError
from storage.records import Assignment, Failed, Measured
from workers.setup import ObjectivePlan, Setup, SuitePlan
from workers.suites import SuiteFiles
from workers.worker import Worker

BLEND = Recipe(method="linear", weights={"alpha": (0.5,), "beta": (0.25,), "gamma": (0.25,)})


@pytest.fixture
def setup(study_file) -> Setup:  # type: ignore[no-untyped-def]
    return load_spec(study_file()).setup(device="cpu")


def measured(worker: Worker, recipe: Recipe, split: str = "search") -> Measured:
    outcome = worker.run(Assignment(number=0, recipe=recipe, split=split))
    assert isinstance(outcome, Measured), outcome
    return outcome


def test_a_corner_scores_as_its_checkpoint_does_alone(setup: Setup) -> None:
    """Merged in place after another merge, against a worker that has just loaded that model as its base."""
    worker = Worker(setup)
    measured(worker, BLEND)
    corner = measured(worker, only("beta"))
    beta = next(s for s in setup.sources if s.name == "beta")
    alone = Setup(
        sources=(Source(name="base", model=beta.model),),
        base="base",
        objectives=setup.objectives,
        dtype="float32",
        device="cpu",
    )
    fresh = measured(Worker(alone), only("base"))
    assert corner.marks == fresh.marks
    assert corner.digest == fresh.digest


def test_a_worker_refuses_a_fetched_checkpoint_that_is_not_the_driver_s(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEFRONT_CACHE", str(tmp_path / "cache"))
    local = setup.sources[-1]
    fetched = replace(local, model=Path(local.model).resolve().as_uri())
    other = Checkpoint(setup.sources[0]).fingerprint
    changed = replace(setup, sources=(*setup.sources[:-1], fetched))
    Worker(replace(changed, fingerprints={local.name: Checkpoint(local).fingerprint}))
    with pytest.raises(CheckpointError, match=f"what it was when the study began, but {local.name} has changed"):
        Worker(replace(changed, fingerprints={local.name: other}))


def test_a_worker_that_starts_later_refuses_a_file_that_was_replaced(
    setup: Setup, models: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(models / "gamma", tmp_path / "gamma"))
    source = replace(setup.sources[-1], model=str(own))
    began = Checkpoint(source)
    told = replace(
        setup,
        sources=(*setup.sources[:-1], source),
        fingerprints={source.name: began.fingerprint},
        files={source.name: began.records},
    )
    Worker(told)
    shutil.copy(models / "beta" / "model.safetensors", own / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{source.name} has changed: {own / 'model.safetensors'}"):
        Worker(told)


def test_a_trial_whose_checkpoint_changes_is_no_result(setup: Setup, models: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(models / "gamma", tmp_path / "gamma"))
    source = replace(setup.sources[-1], model=str(own))
    files = {source.name: Checkpoint(source).records}
    worker = Worker(replace(setup, sources=(*setup.sources[:-1], source), files=files))
    first = measured(worker, BLEND)
    (own / "model.safetensors").touch()
    assert measured(worker, BLEND).digest == first.digest
    with (own / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointError, match=f"{source.name} has changed: {own / 'model.safetensors'}"):
        worker.run(Assignment(number=1, recipe=BLEND))


def test_there_and_back_gives_the_same_bits(setup: Setup) -> None:
    worker = Worker(setup)
    first = measured(worker, BLEND)
    measured(worker, only("gamma"))
    again = measured(worker, BLEND)
    assert (again.digest, again.scores, again.marks) == (first.digest, first.scores, first.marks)


def test_a_trial_builds_no_model_and_writes_no_file(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(setup)
    measured(worker, BLEND)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a trial must not build a model")

    monkeypatch.setattr(PreTrainedModel, "__init__", refuse)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    measured(worker, only("alpha"))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_splits_have_items_of_their_own(setup: Setup) -> None:
    worker = Worker(setup)
    ids = [
        set(measured(worker, BLEND, split).marks["general/0:choice.jsonl"].ids)
        for split in ("search", "validation", "report")
    ]
    assert all(ids)
    assert not (ids[0] & ids[1])
    assert not (ids[0] & ids[2])
    assert not (ids[1] & ids[2])


def test_a_watched_objective_is_not_asked_in_the_search(study_file) -> None:  # type: ignore[no-untyped-def]
    spec = load_spec(study_file())
    watched = spec.objectives[1].model_copy(update={"role": "watch"})
    worker = Worker(spec.model_copy(update={"objectives": [spec.objectives[0], watched]}).setup(device="cpu"))
    assert set(measured(worker, BLEND).scores) == {"safety"}
    assert set(measured(worker, BLEND, "report").scores) == {"safety", "general"}


def test_a_merge_that_gives_nan_fails_with_that_reason_and_the_next_is_well(setup: Setup, tmp_path: Path) -> None:
    """Weights that are finite themselves, and overflow in what they compute."""
    broken = Path(shutil.copytree(next(s.model for s in setup.sources if s.name == "alpha"), tmp_path / "broken"))
    tensors = {name: tensor.clone() for name, tensor in load_file(broken / "model.safetensors").items()}
    tensors["model.norm.weight"].fill_(3.3e38)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    sources = tuple(Source(name=s.name, model=str(broken)) if s.name == "alpha" else s for s in setup.sources)
    worker = Worker(Setup(sources=sources, base="base", objectives=setup.objectives, dtype="float32", device="cpu"))
    before = measured(worker, only("beta"))
    heavy = Recipe(method="linear", weights={"alpha": (0.9,), "beta": (0.1,)})
    outcome = worker.run(Assignment(number=1, recipe=heavy))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "logits must be finite, but the merge gives NaN or infinity."
    assert outcome.traceback == ""
    assert measured(worker, only("beta")).marks == before.marks


def test_an_unknown_checkpoint_fails_the_trial(setup: Setup) -> None:
    outcome = Worker(setup).run(Assignment(number=1, recipe=only("delta")))
    assert isinstance(outcome, Failed)
    assert "must name opened checkpoints" in outcome.reason


def test_an_item_too_long_for_the_model_is_unscored_and_never_cut(setup: Setup, tmp_path: Path) -> None:
    words = " ".join(["w1"] * 100)
    lines = [
        f'{{"id": "{i}", "prompt": "{words if i == 5 else f"w{i // 40} w{i % 40}"}", "lang": "aa", "target": "w3"}}'
        for i in range(60)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    plan = SuitePlan(key="x", files=SuiteFiles(path=tmp_path / "long.jsonl"), scorer="gold_nll")
    objective = ObjectivePlan(name="nll", suites=(plan,))
    worker = Worker(Setup(sources=setup.sources, base="base", objectives=(objective,), dtype="float32", device="cpu"))
    splits = [measured(worker, BLEND, split) for split in ("search", "validation", "report")]
    assert sum(m.scores["nll"].n for m in splits) == 59
    assert sum(m.scores["nll"].unscored for m in splits) == 1
    (marks,) = [m.marks["x"] for m in splits if "5" in m.marks["x"].ids]
    assert marks.verdicts[marks.ids.index("5")] == "too_long"
