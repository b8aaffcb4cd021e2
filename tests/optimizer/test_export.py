import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimizer import api, loop
from optimizer.export import ExportError, export_trial
from optimizer.preflight import check
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from search_spaces.recipe import only
from storage.checkpoints import Source
from storage.records import Assignment, Measured
from storage.store import Store
from workers.pool import LocalPool
from workers.setup import Setup
from workers.worker import Worker


def ran(spec: Spec, url: str, trials: int = 9) -> Store:
    """A study that has been run in this process."""
    store = Store.open(url, create=True)
    report = check(spec, timed=False, progress=lambda *_: None)
    assert report.problems == ()
    create_study(store, spec, trials=trials, fingerprints=dict(report.fingerprints))
    loop.search(DriverStudy(store, spec.study), LocalPool(lambda: Worker(spec.setup(device="cpu"))), lambda _: None)
    return store


@pytest.fixture(params=["float32", "bfloat16"])
def spec(request: pytest.FixtureRequest, study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file(workers={"device": "cpu", "count": 1, "dtype": request.param}))


@pytest.fixture
def store(spec: Spec, storage: str) -> Iterator[Store]:
    store = ran(spec, storage)
    yield store
    store.close()


def test_an_export_scores_every_item_as_stored(store: Store, spec: Spec, tmp_path: Path) -> None:
    out = export_trial(store, "tiny", 7, tmp_path / "out")
    stored = store.with_marks("tiny", 7)
    setup = spec.setup(device="cpu")
    alone = Setup(
        sources=(Source(name="base", model=str(out)),),
        base="base",
        objectives=setup.objectives,
        dtype=setup.dtype,
        device="cpu",
    )
    again = Worker(alone).run(Assignment(number=0, recipe=only("base")))
    assert isinstance(again, Measured)
    assert again.marks == stored.marks
    assert again.scores == stored.scores
    assert again.digest == stored.digest


def test_an_export_is_an_ordinary_model_directory(store: Store, spec: Spec, tmp_path: Path) -> None:
    out = export_trial(store, "tiny", 7, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    base = AutoTokenizer.from_pretrained(spec.base)
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "w1 w2"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == base.apply_chat_template(chat, tokenize=False)
    assert str(model.dtype) == f"torch.{spec.workers.dtype}"
    assert model.generation_config.eos_token_id == 2
    assert json.loads((out / "config.json").read_text())["dtype"] == spec.workers.dtype
    assert {p.name for p in out.iterdir()} >= {"README.md", "merge_recipe.json", "mergekit.yaml", "chat_template.jinja"}
    assert all(p.stat().st_mode & 0o044 for p in out.iterdir())


def test_the_manifest_names_inputs_and_every_tensor(store: Store, spec: Spec, tmp_path: Path) -> None:
    out = export_trial(store, "tiny", 7, tmp_path / "out")
    manifest = json.loads((out / "merge_recipe.json").read_text())
    assert manifest["recipe"] == store.with_marks("tiny", 7).recipe.to_json()
    assert set(manifest["tensors"]) == set(load_file(out / "model.safetensors"))
    assert manifest["inputs"]["base"] == store.study("tiny").fingerprints["base"]
    assert manifest["merge_digest"] == store.with_marks("tiny", 7).digest


def test_a_corner_exports_that_checkpoint_bit_for_bit(store: Store, spec: Spec, tmp_path: Path) -> None:
    (corner,) = (r.trial for r in api.front("tiny").rows if r.baseline == "beta")
    written = load_file(export_trial(store, "tiny", corner, tmp_path / "out") / "model.safetensors")
    source = load_file(Path(spec.base).parent / "beta" / "model.safetensors")
    dtype = getattr(torch, spec.workers.dtype)
    assert all(torch.equal(tensor, source[name].to(dtype)) for name, tensor in written.items())


def test_many_shards_load_as_one(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = export_trial(store, "tiny", 7, tmp_path / "one")
    monkeypatch.setattr("optimizer.export._SHARD_BYTES", 3000)
    many = export_trial(store, "tiny", 7, tmp_path / "many")
    assert len(list(many.glob("*.safetensors"))) > 2
    left, right = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (one, many))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_directory_that_exists_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="the directory to write must not exist"):
        export_trial(store, "tiny", 7, tmp_path / "out")


def test_a_merge_that_is_not_the_scored_one_is_not_exported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    original = Store.with_marks
    monkeypatch.setattr(Store, "with_marks", lambda *a: replace(original(*a), digest="0" * 64))
    with pytest.raises(ExportError, match="an export must be bit for bit what was scored"):
        export_trial(store, "tiny", 7, tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_checkpoint_that_has_changed_is_not_exported(
    study_file: Callable[..., Path], tmp_path: Path, models: Path
) -> None:
    import shutil

    shutil.copytree(models / "alpha", tmp_path / "mine")
    checkpoints = [{"name": "alpha", "model": str(tmp_path / "mine")}, {"name": "beta", "model": "models/beta"}]
    store = ran(load_spec(study_file(checkpoints=checkpoints)), f"sqlite:///{tmp_path}/x.db", trials=3)
    tensors = {k: v.clone() for k, v in load_file(tmp_path / "mine" / "model.safetensors").items()}
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "mine" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="a checkpoint must be what it was when the study began, but alpha"):
        export_trial(store, "tiny", 1, tmp_path / "out")
    store.close()


def test_the_front_is_exported_one_directory_a_trial(store: Store, tmp_path: Path) -> None:
    written = api.export("tiny", tmp_path / "front", whole_front=True)
    assert {p.name for p in written} == {f"trial-{r.trial}" for r in api.front("tiny").merges if r.on_front}
    assert all((p / "model.safetensors").is_file() for p in written)


def test_a_pick_is_exported(store: Store, tmp_path: Path) -> None:
    (out,) = api.export("tiny", tmp_path / "out", pick="max general")
    manifest = json.loads((out / "merge_recipe.json").read_text())
    rows = {r.trial: r.posterior["general"][0] for r in api.front("tiny").merges}
    assert rows[manifest["trial"]] == max(rows.values())


@pytest.mark.parametrize("choice", [{}, {"trial": 1, "pick": "max general"}])
def test_an_export_takes_one_choice(store: Store, tmp_path: Path, choice: dict[str, object]) -> None:
    with pytest.raises(InputError, match="one of --trial, --pick and --front"):
        api.export("tiny", tmp_path / "out", **choice)  # type: ignore[arg-type]


def test_an_unmeasured_trial_is_not_exported(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the trial must be a measured one \(0, 1, .*\), but got 99"):
        api.export("tiny", tmp_path / "out", trial=99)
