import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimizer import api, loop
from optimizer.cli import main
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


def test_a_slider_is_exported_in_order_with_a_list(store: Store, tmp_path: Path) -> None:
    front = api.front("tiny").slider
    if len(front) < 2:
        pytest.fail("the study must have a front to slide along")
    written = api.export("tiny", tmp_path / "slider", slider=2)
    assert [p.name for p in written] == [f"trial-{front[0].trial}", f"trial-{front[-1].trial}"]
    listed = json.loads((tmp_path / "slider" / "front.json").read_text())["merges"]
    assert [m["directory"] for m in listed] == [p.name for p in written]
    first = [m["posterior"]["safety"]["mean"] for m in listed]
    assert first == sorted(first, reverse=True)
    with pytest.raises(InputError, match=f"as many as the front has merges \\({len(front)}\\), but got 99"):
        api.export("tiny", tmp_path / "long", slider=99)
    with pytest.raises(InputError, match="from 2 points"):
        api.export("tiny", tmp_path / "short", slider=1)


def test_the_knee_of_the_front_is_the_one_that_is_picked(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", "tiny", "--knee", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    found = api.front("tiny")
    assert row["on_front"]
    assert row["trial"] == api.choose(store, "tiny", found, "knee")
    assert main(["front", "tiny", "--knee"]) == 0
    assert "Knee of the front of tiny" in capsys.readouterr().out


def test_a_pick_is_exported(store: Store, tmp_path: Path) -> None:
    (out,) = api.export("tiny", tmp_path / "out", pick="max general")
    manifest = json.loads((out / "merge_recipe.json").read_text())
    rows = {r.trial: r.posterior["general"][0] for r in api.front("tiny").merges}
    assert rows[manifest["trial"]] == max(rows.values())


@pytest.mark.parametrize("choice", [{}, {"trial": 1, "pick": "max general"}])
def test_an_export_takes_one_choice(store: Store, tmp_path: Path, choice: dict[str, object]) -> None:
    with pytest.raises(InputError, match="one of --trial, --pick, --front and --slider"):
        api.export("tiny", tmp_path / "out", **choice)  # type: ignore[arg-type]


def test_an_unmeasured_trial_is_not_exported(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the trial must be a measured one \(0, 1, .*\), but got 99"):
        api.export("tiny", tmp_path / "out", trial=99)


once = pytest.mark.parametrize("spec", ["float32"], indirect=True)
"""For what has nothing to do with the type of the weights."""


def leftovers(directory: Path) -> list[str]:
    return [p.name for p in directory.iterdir() if "out" in p.name]


@once
def test_an_earlier_export_is_replaced_only_when_asked(store: Store, tmp_path: Path) -> None:
    out = export_trial(store, "tiny", 7, tmp_path / "out")
    (out / "note").write_text("of the first")
    with pytest.raises(InputError, match="must not exist, but .*out does; it is an earlier export, which --overwrite"):
        export_trial(store, "tiny", 6, out)
    assert (out / "note").exists()
    export_trial(store, "tiny", 6, out, overwrite=True)
    assert not (out / "note").exists()
    assert json.loads((out / "merge_recipe.json").read_text())["trial"] == 6
    assert leftovers(tmp_path) == ["out"]


@once
def test_what_is_no_export_of_ours_is_never_replaced(store: Store, tmp_path: Path) -> None:
    export = export_trial(store, "tiny", 7, tmp_path / "true")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("ten years")
    (tmp_path / "out-file").write_text("x")
    (tmp_path / "out-link").symlink_to(export)
    (tmp_path / "out-broken").symlink_to(tmp_path / "nowhere")
    for name in ("out", "out-file", "out-link", "out-broken"):
        with pytest.raises(InputError, match=f"--overwrite replaces earlier exports alone, but .*{name} holds no"):
            export_trial(store, "tiny", 7, tmp_path / name, overwrite=True)
    assert (tmp_path / "out" / "thesis").read_text() == "ten years"


@once
def test_the_command_replaces_when_told_to(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from optimizer import cli

    one = ["export", "tiny", "--trial", "7", "--out", str(tmp_path / "out")]
    front = ["export", "tiny", "--front", "--out", str(tmp_path / "all")]
    for command in (one, front):
        assert cli.main(command) == 0
        written = capsys.readouterr().out
        assert cli.main(command) == 2
        assert "the directory to write must not exist" in capsys.readouterr().err
        assert cli.main([*command, "--overwrite"]) == 0
        assert capsys.readouterr().out == written


@once
def test_a_failed_replacement_leaves_the_earlier_export(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    out = export_trial(store, "tiny", 7, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    original = Store.with_marks
    monkeypatch.setattr(Store, "with_marks", lambda *a: replace(original(*a), digest="0" * 64))
    with pytest.raises(ExportError, match="bit for bit"):
        export_trial(store, "tiny", 6, out, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert leftovers(tmp_path) == ["out"]


@once
def test_a_disk_without_room_is_refused_before_anything_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1_234_567)
    monkeypatch.setattr("storage.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"must have room for .*out, but it takes [\d,]+ bytes and 1,234,567 are free"):
        export_trial(store, "tiny", 7, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The kernel refuses to write further in any file of this process, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@once
@pytest.mark.parametrize("size", [100, 3000, 8000])
def test_a_disk_that_runs_full_leaves_nothing_behind(store: Store, tmp_path: Path, size: int) -> None:
    out = tmp_path / "out"
    message = f"the disk must have room for {out}, but it ran full while it was written"
    with files_end_at(size), pytest.raises(ExportError, match=message):
        export_trial(store, "tiny", 7, out)
    assert leftovers(tmp_path) == []
    export_trial(store, "tiny", 6, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with files_end_at(size), pytest.raises(ExportError, match=message):
        export_trial(store, "tiny", 7, out, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert leftovers(tmp_path) == ["out"]


@once
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which root alone may: run it as root")
def test_a_real_file_system_that_runs_full_leaves_nothing_behind(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounts a file system, which this container may not: run it where mount works")
    try:
        with pytest.raises(InputError, match=r"but it takes [\d,]+ bytes and 16,384 are free"):
            export_trial(store, "tiny", 7, disk / "out")
        monkeypatch.setattr("optimizer.export.require_room", lambda *_: None)
        with pytest.raises(ExportError, match=r"ran full while it was written \(No space left on device\)"):
            export_trial(store, "tiny", 7, disk / "out")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@once
def test_a_merge_that_is_not_finite_is_not_exported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.merger import Merger

    def broken(*given: object, **options: object) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in Merger.merged(*given, **options):  # type: ignore[arg-type]
            yield name, tensor.fill_(float("inf"))

    monkeypatch.setattr("optimizer.export.Merger", type("M", (Merger,), {"merged": broken}))
    with pytest.raises(ExportError, match="every tensor must be finite, but .* of the merge is not"):
        export_trial(store, "tiny", 7, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_the_card_shows_names_as_they_are() -> None:
    from optimizer.card import escaped

    hostile = "<img src=x onerror=alert(1)> [a](http://evil) | `b` **c** \n# d"
    assert escaped(hostile) == (r"&lt;img src=x onerror=alert\(1\)&gt; \[a\]\(http://evil\) \| \`b\` \*\*c\*\* \# d")
