from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optimizer import preflight
from optimizer.spec import Spec, load_spec


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


def test_live_models_that_do_not_fit_are_refused_with_the_sizes(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_available_memory", lambda: 1000)
    (problem,) = report(spec).problems
    assert problem.startswith("the live models must fit into memory, but they need")
    assert problem.endswith("1,000 bytes is free.")


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


def test_racing_is_said_to_be_missing_and_not_passed_over(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file(search={"trials": 20, "evaluation": {"racing": True}}))
    assert "racing is not available in this version: every trial answers all its items." in report(spec).warnings
