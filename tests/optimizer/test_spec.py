import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.spec import from_document, load_spec
from search_spaces.errors import InputError

RAY = Path("examples/cluster/raycluster.yaml")
"""No study: the machines of the one beside it."""


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def test_relative_paths_are_relative_to_the_file(
    study_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study_file()
    monkeypatch.chdir("/")
    spec = load_spec(path)
    assert spec.base == str(path.parent / "models" / "base")
    assert spec.objectives[0].suites[0].path == str(path.parent / "suites" / "safety.jsonl")


def test_a_hub_id_stays_one_where_there_is_no_such_directory(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file(base="some-org/some-model@v1.0"))
    assert spec.base == "some-org/some-model@v1.0"


def test_a_spec_survives_the_database(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file())
    again = from_document(json.loads(json.dumps(spec.document())))
    assert again == spec
    assert again.digest == spec.digest


def test_directions_come_from_the_scorers(study_file: Callable[..., Path]) -> None:
    objectives = [{"name": "loss", "suites": [{"path": "suites/exact.jsonl", "scorer": "gold_nll"}]}]
    (loss,) = load_spec(study_file(objectives=objectives)).objectives
    assert not loss.maximise
    assert loss.bounds is None


def test_constraints_are_negative_where_they_hold(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file())
    objective = spec.objectives[0].model_copy(update={"at_least": 0.9, "at_most": 0.95})
    assert list(objective.violations(0.8).values()) == [pytest.approx(0.1), pytest.approx(-0.15)]


@pytest.mark.parametrize(
    ("given", "across"), [("cvar", "cvar"), ({"cvar": 0.5}, "cvar:0.5"), ({"aa": 1.0}, {"aa": 1.0})]
)
def test_how_languages_count_reaches_the_worker(study_file: Callable[..., Path], given: object, across: object) -> None:
    spec = load_spec(study_file(objectives=[OBJECTIVE | {"across_languages": given}]))
    assert spec.setup(device="cpu").objectives[0].across == across


SUITE: dict[str, Any] = {"path": "suites/choice.jsonl", "scorer": "multiple_choice"}
OBJECTIVE: dict[str, Any] = {"name": "general", "suites": [SUITE]}
ALPHA = {"name": "alpha", "model": "models/alpha"}
BETA = {"name": "beta", "model": "models/beta"}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"serach": {}}, r"line \d+: keys must be known, but serach is not \(keys here: study, base, checkpoints"),
    ({"objectives": [OBJECTIVE | {"across_languages": {"cvar": 1.5}}]}, r"across_languages must be \{cvar: SHARE\} with one share in \(0, 1\], but got"),
    ({"objectives": [OBJECTIVE | {"across_languages": {"cvar": 0.5, "aa": 1.0}}]}, r"across_languages must be \{cvar: SHARE\}"),
    ({"search": {"trails": 5}}, r"keys must be known, but search.trails is not \(keys here: trials, sampler"),
    ({"checkpoints": [ALPHA, BETA, ALPHA]}, "a checkpoint's or reference's name must stand once .* but 'alpha' stands twice"),
    ({"checkpoints": [ALPHA, BETA], "references": [BETA]}, "'beta' stands twice"),
    ({"checkpoints": [ALPHA, {"name": "uniform", "model": "x"}]}, "'uniform' stands twice"),
    ({"checkpoints": []}, "checkpoints must have at least 1 entries, but has 0"),
    ({"checkpoints": [ALPHA]}, "linear merges at least 2 checkpoints, but there is 1"),
    ({"checkpoints": [ALPHA, {"name": "../x", "model": "m"}]}, r"checkpoints\[1\].name must .*pattern.*, but got '../x'"),
    ({"checkpoints": [ALPHA, {"name": "b"}]}, r"checkpoints\[1\].model is required"),
    ({"objectives": []}, "objectives must have at least 1 entries, but has 0"),
    ({"objectives": [{"name": "x", "suites": []}]}, r"objectives\[0\].suites must have at least 1 entries"),
    ({"objectives": [OBJECTIVE, OBJECTIVE]}, "an objective's name must stand once .* 'general' stands twice"),
    ({"objectives": [OBJECTIVE | {"role": "watch"}]}, "at least one objective must have role: optimise"),
    ({"objectives": [OBJECTIVE | {"suites": [SUITE | {"path": "suites/none.jsonl"}]}]}, r"line \d+: path must be a file, but there is no .*none.jsonl"),
    ({"objectives": [OBJECTIVE | {"suites": [SUITE | {"scorer": "bleu"}]}]}, "a scorer must be one of .*, but got 'bleu'"),
    ({"objectives": [OBJECTIVE | {"suites": [SUITE | {"max_new_tokens": 4}]}]}, "multiple_choice takes normalise, but got max_new_tokens"),
    ({"objectives": [OBJECTIVE | {"suites": [SUITE, SUITE | {"scorer": "gold_nll"}]}]}, "must share direction and range, but got multiple_choice, gold_nll"),
    ({"objectives": [OBJECTIVE | {"at_least": 0.9, "at_most": 0.5}]}, "at_least must not exceed at_most, but got 0.9 and 0.5"),
    ({"search_space": {"method": "average"}}, "a merge method must be one of .*linear.*, but got 'average'"),
    ({"search_space": {"method": "slerp"}}, "slerp merges two, but there are 3"),
    ({"search_space": {"groups": "depth:1"}}, "groups must be model, depth:K"),
    ({"search": {"trials": 0}}, "search.trials must be greater than 0, but got 0"),
    ({"search": {"trials": "many"}}, "search.trials must be a valid integer, but got 'many'"),
    ({"search": {"start_from": [{"delta": 1.0}]}}, r"search.start_from\[0\] must name checkpoints .*, but names delta"),
    ({"search": {"start_from": [{"alpha": 0.0}]}}, r"search.start_from\[0\] must have a weight above zero"),
    ({"workers": {"dtype": "int8"}}, "workers.dtype must be 'bfloat16', 'float16' or 'float32', but got 'int8'"),
    ({"workers": {"engine": "sglang"}}, "workers.engine must be 'transformers' or 'vllm', but got 'sglang'"),
    ({"workers": {"tensor_parallel": 2}}, "tensor_parallel is for engine: vllm, but the engine is transformers"),
    ({"workers": {"engine": "vllm", "tensor_parallel": 0}}, "workers.tensor_parallel must be greater than 0, but got 0"),
    ({"workers": {"max_model_len": 9}}, "max_model_len is for engine: vllm, but the engine is transformers"),
    ({"workers": {"engine": "vllm", "quantization": "fp8"}}, "quantization must not be set, since merges are of whole weights, but it is 'fp8'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_a_wrong_study_file_says_the_rule_and_the_values(
    study_file: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_spec(study_file(**changes))


def test_the_line_is_that_of_the_wrong_key(study_file: Callable[..., Path]) -> None:
    path = study_file()
    text = changed(path.read_text(), "trials: 8", "trials: 0")
    path.write_text(text)
    line = text[: text.index("trials: 0")].count("\n") + 1
    with pytest.raises(InputError, match=f"study.yaml, line {line}: search.trials"):
        load_spec(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("study: tiny", "study: tiny\nstudy: other", "line 2: a key must stand once, but study stands twice"),
        ("study: tiny", "study: !!python/object/apply:os.system ['true']", "must be plain YAML"),
        ("study: tiny", "study: &a tiny\nx: *a", r"line 2: a study file takes no aliases, but there is \*a"),
        ("study: tiny", "study: [tiny", "must be plain YAML"),
    ],
)
def test_only_plain_yaml_is_read(study_file: Callable[..., Path], old: str, new: str, message: str) -> None:
    path = study_file()
    path.write_text(changed(path.read_text(), old, new))
    with pytest.raises(InputError, match=message):
        load_spec(path)


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a study file must be a text file that opens, but .*none.yaml"):
        load_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(set(Path("examples").rglob("*.yaml")) - {RAY}), ids=str)
def test_the_examples_are_study_files(path: Path) -> None:
    """Their models and suites are the reader's own, and may be missing; nothing else may be wrong."""
    try:
        load_spec(path)
    except InputError as e:
        assert "must be a file, but there is no" in str(e)
