"""Code that comes with a model runs only where the study file says so; then it is part of the study's inputs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers.dynamic_module_utils as dynamic
from transformers import AutoModelForCausalLM

from optimizer import loop
from optimizer.export import export_trial
from optimizer.preflight import check
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from storage.checkpoints import Checkpoint, Source
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

CONFIG = """from transformers import LlamaConfig
from pathlib import Path
Path({marker!r}).write_text("ran")
class StrangeConfig(LlamaConfig):
    model_type = "strange_llama"
"""
MODEL = """from transformers import LlamaForCausalLM
from .configuration_strange import StrangeConfig
class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def family(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, alpha and beta of a class whose code lies in their directories and leaves a mark when it runs."""
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("base", "alpha", "beta"):
        path = Path(shutil.copytree(models / name, tmp_path / "strange" / name))
        (path / "configuration_strange.py").write_text(CONFIG.format(marker=str(tmp_path / "ran")))
        (path / "modeling_strange.py").write_text(MODEL)
        config = json.loads((path / "config.json").read_text())
        config |= {
            "model_type": "strange_llama",
            "architectures": ["StrangeForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_strange.StrangeConfig",
                "AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM",
            },
        }
        (path / "config.json").write_text(json.dumps(config))
    return tmp_path / "strange"


def changes(family: Path, trusted: bool) -> dict[str, object]:
    return {
        "base": str(family / "base"),
        "checkpoints": [{"name": n, "model": str(family / n)} for n in ("alpha", "beta")],
        "workers": {"device": "cpu", "count": 1, "dtype": "float32", "trust_remote_code": trusted},
    }


def ran(spec: Spec, url: str) -> Store:
    store = Store.open(url, create=True)
    report = check(spec, timed=False, progress=lambda *_: None)
    assert report.problems == ()
    create_study(store, spec, trials=3, fingerprints=dict(report.fingerprints))
    loop.search(DriverStudy(store, spec.study), LocalPool(lambda: Worker(spec.setup(device="cpu"))), lambda _: None)
    return store


def test_without_the_flag_no_code_runs_and_the_way_out_is_named(
    family: Path, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    spec = load_spec(study_file(**changes(family, trusted=False)))
    report = check(spec, timed=False, progress=lambda *_: None)
    assert any("workers: {trust_remote_code: true}" in problem for problem in report.problems)
    with pytest.raises((ValueError, OSError)):
        Worker(spec.setup(device="cpu"))
    assert not (tmp_path / "ran").exists()


def test_with_the_flag_a_study_runs_and_its_export_says_so(
    family: Path, study_file: Callable[..., Path], storage: str, tmp_path: Path
) -> None:
    store = ran(load_spec(study_file(**changes(family, trusted=True))), storage)
    assert (tmp_path / "ran").read_text() == "ran"
    out = export_trial(store, "tiny", 1, tmp_path / "out")
    store.close()
    card = (out / "README.md").read_text()
    assert "**Loading it runs code from this directory** (`trust_remote_code=True`)" in card
    assert r"configuration\_strange.py, modeling\_strange.py" in card
    manifest = json.loads((out / "merge_recipe.json").read_text())
    assert manifest["trust_remote_code"] == ["configuration_strange.py", "modeling_strange.py"]
    assert (out / "modeling_strange.py").read_bytes() == (family / "base" / "modeling_strange.py").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(model).__name__ == "StrangeForCausalLM"


def test_every_other_card_says_that_no_code_runs(
    study_file: Callable[..., Path], storage: str, tmp_path: Path, models: Path
) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text("raise SystemExit")
    store = ran(load_spec(study_file(base=str(base))), storage)
    out = export_trial(store, "tiny", 1, tmp_path / "out")
    store.close()
    assert "Loading it runs no code from this directory" in (out / "README.md").read_text()
    assert "auto_map" not in (out / "config.json").read_text()
    assert not list(out.glob("*.py"))


def test_trusted_code_is_part_of_the_fingerprint(family: Path) -> None:
    def fingerprint(trusted: bool) -> str:
        return Checkpoint(Source(name="x", model=str(family / "base"), trust_remote_code=trusted)).fingerprint

    before, without = fingerprint(True), fingerprint(False)
    (family / "base" / "modeling_strange.py").write_text(MODEL + "# changed\n")
    assert fingerprint(True) != before != without
    assert fingerprint(False) == without


def test_only_the_bases_code_is_trusted(family: Path, study_file: Callable[..., Path]) -> None:
    sources = load_spec(study_file(**changes(family, trusted=True))).sources
    assert {s.name: s.trust_remote_code for s in sources} == {"base": True, "alpha": False, "beta": False}


def test_code_of_another_repository_is_refused(family: Path) -> None:
    path = family / "base" / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling.Evil"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="the code of a model must lie in its directory, but .*someone/else--modeling"):
        Checkpoint(Source(name="x", model=str(path.parent), trust_remote_code=True))


def test_code_that_is_a_link_out_of_the_directory_is_refused(family: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("x = 1")
    (family / "base" / "helper.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(InputError, match="must lie in its directory, but .*helper.py leads to"):
        Checkpoint(Source(name="x", model=str(family / "base"), trust_remote_code=True))
