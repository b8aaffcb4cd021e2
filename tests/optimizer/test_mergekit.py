"""mergekit, in an environment of its own, makes the same tensors of the configuration that an export holds."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from optimizer.mergekit import mergekit_yaml
from optimizer.spec import BASE, Spec, load_spec
from search_spaces.methods import CATALOGUE, METHODS
from search_spaces.recipe import Recipe
from storage.checkpoints import Checkpoint
from workers.merger import Merger
from workers.transformers_engine import empty_weights

PROGRAM = Path(__file__).parents[2] / ".venv-mergekit" / "bin" / "mergekit-yaml"
EXACT = ("linear", "task_arithmetic", "ties", "breadcrumbs", "wise_ft")
CLOSE = ("slerp", "model_stock")
DRAWN = ("dare_linear", "dare_ties", "della")  # the same where nothing is dropped: there, masks are other ones


def opened(spec: Spec) -> dict[str, Checkpoint]:
    return {source.name: Checkpoint(source) for source in spec.sources}


def recipe(spec: Spec, method: str, groups: str = "model") -> Recipe:
    names = [c.name for c in spec.checkpoints][: CATALOGUE[method].most]
    values = {1: (0.37,), 2: (0.3, 0.7), 3: (0.31, 0.267, 0.423)}[len(names)]
    all_kept = method in DRAWN
    wanted = {"density": 1.0 if all_kept else 0.5, "gamma": 0.05, "lambda": 0.9, "epsilon": 0.0 if all_kept else 0.1}
    return Recipe(
        method=method,
        groups=groups,
        weights={n: (v,) if groups == "model" else (v, 1.1 * v) for n, v in zip(names, values, strict=True)},
        parameters={name: wanted[name] for name in CATALOGUE[method].parameters},
    )


@pytest.mark.parametrize("method", [*METHODS, "model_stock"])
@pytest.mark.parametrize("groups", ["model", "depth:2"])
def test_every_recipe_has_a_configuration(method: str, groups: str, study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file())
    text = mergekit_yaml(spec, recipe(spec, method, groups), opened(spec))
    assert text.startswith("# ")
    body = yaml.safe_load(text)
    assert body["dtype"] == "float32"
    assert body["out_dtype"] == spec.workers.dtype


def test_depth_is_read_from_the_tensors_whatever_the_config_calls_it(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in ("base", "alpha", "beta", "gamma")}
    for path in paths.values():
        GPT2LMHeadModel(GPT2Config(vocab_size=49, n_embd=16, n_layer=3, n_head=2, n_positions=32)).save_pretrained(path)
    checkpoints = [{"name": n, "model": str(paths[n])} for n in ("alpha", "beta", "gamma")]
    spec = load_spec(study_file(base=str(paths["base"]), checkpoints=checkpoints))
    profile = Recipe(method="linear", groups="depth:2", weights=dict.fromkeys(("alpha", "beta", "gamma"), (0.2, 0.6)))
    models = yaml.safe_load(mergekit_yaml(spec, profile, opened(spec)))["models"]
    weights = {entry["filter"]: entry["value"] for entry in models[0]["parameters"]["weight"]}
    found = [weights[f"transformer.h.{i}.mlp.c_fc.weight"] for i in range(3)]
    assert found == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.mergekit
@pytest.mark.skipif(not PROGRAM.exists(), reason="needs .venv-mergekit, which benchmarks/merge_speed.py makes")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "groups"),
    [*((m, "model") for m in (*EXACT, *CLOSE, *DRAWN)), ("linear", "depth:2"), ("task_arithmetic", "depth:2")],
)
def test_mergekit_makes_the_same_tensors(
    method: str, groups: str, dtype: str, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    spec = load_spec(study_file(workers={"device": "cpu", "count": 1, "dtype": dtype}))
    checkpoints, made = opened(spec), recipe(spec, method, groups)
    (tmp_path / "mergekit.yaml").write_text(mergekit_yaml(spec, made, checkpoints), encoding="utf-8")
    command = [str(PROGRAM), str(tmp_path / "mergekit.yaml"), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    theirs = {n: t for p in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(p).items()}
    like = empty_weights(checkpoints[BASE].path, dtype)
    ours = dict(Merger({n: c.tensors for n, c in checkpoints.items()}, BASE).merged(made, like))
    assert set(theirs) >= set(ours)
    for name, tensor in ours.items():
        if method not in CLOSE:
            assert torch.equal(tensor, theirs[name]), name
        else:
            tolerance = 1e-5 if dtype == "float32" else 1e-2
            torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)
