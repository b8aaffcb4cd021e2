"""Tasks of lm-evaluation-harness in a study file: settled when it is read, asked in the same queue as all items."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.cli import main
from optimizer.spec import from_document, load_spec
from search_spaces.errors import InputError
from search_spaces.recipe import only
from storage.records import Assignment, Measured
from workers import lm_eval_suites
from workers.worker import Worker

TASK = {
    "task": "tiny",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "documents.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
}
SAFETY = {
    "name": "safety",
    "suites": [
        {"path": "suites/safety.jsonl", "scorer": "refusal", "phrases": "suites/phrases.json", "max_new_tokens": 3}
    ],
}


@pytest.fixture
def study(study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A study whose second objective has the suites that are given."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [
        {"question": f"w{i} w{i * 7 % 40}", "choices": [f"w{i * 3 % 40}", f"w{(i * 5 + 1) % 40} w1"], "gold": i % 2}
        for i in range(40)
    ]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def write(*suites: dict[str, Any], **changes: Any) -> Path:
        return study_file(objectives=[SAFETY, {"name": "general", "suites": list(suites)} | changes])

    return write


def test_a_task_stands_beside_other_suites_of_an_objective(study: Callable[..., Path]) -> None:
    own = {"path": "suites/choice.jsonl", "scorer": "multiple_choice"}
    spec = load_spec(study(own, {"lm_eval": TASK, "lang": "aa"}))
    outcome = Worker(spec.setup(device="cpu")).run(Assignment(number=0, recipe=only("alpha"), split="search"))
    assert isinstance(outcome, Measured), outcome
    marks = outcome.marks["general/1:tiny"]
    assert set(marks.values) <= {0.0, 1.0}
    assert outcome.breakdown["general"]["suite:general/1:tiny"].n == len(marks.ids)
    assert {"lang:aa", "lang:bb"} <= set(outcome.breakdown["general"])


def test_the_splits_of_a_task_are_disjoint_and_hold_every_document(study: Callable[..., Path]) -> None:
    spec = load_spec(study({"lm_eval": TASK}))
    splits = next(plan for plan in spec.setup(device="cpu").objectives if plan.name == "general").load()
    ids = [item.id for objective in splits.values() for item in objective.suites[0].items]
    assert len(ids) == len(set(ids)) == 40


def test_what_a_task_leaves_open_is_written_into_the_study(study: Callable[..., Path], tmp_path: Path) -> None:
    """So that a later version's default changes nothing, and reading results does not need lm-eval."""
    spec = load_spec(study({"lm_eval": TASK | {"metric_list": [{"metric": "acc_norm"}, {"metric": "acc"}]}}))
    (suite,) = spec.document()["objectives"][1]["suites"]
    assert (suite["metric"], suite["filter"], suite["higher_is_better"]) == ("acc_norm", "none", True)
    assert suite["task"]["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "documents.jsonl")
    assert from_document(spec.document()) == spec
    assert from_document(json.loads(json.dumps(spec.document()))).digest == spec.digest


def test_a_perplexity_is_to_be_low_and_does_not_go_with_accuracies(study: Callable[..., Path]) -> None:
    rolling = TASK | {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_choice": None,
        "doc_to_target": "{{question}}",
    }
    assert not load_spec(study({"lm_eval": rolling}, at_most=9.0)).objectives[1].maximise
    with pytest.raises(InputError, match="must share direction and range"):
        load_spec(study({"lm_eval": rolling}, {"lm_eval": TASK}))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"lm_eval": "arc_eesy"}, r"study.yaml, line \d+: lm_eval must name a task .* no 'arc_eesy' \(near: arc_easy"),
        ({"lm_eval": "mmlu"}, "mmlu is a group of tasks"),
        ({"lm_eval": "arc_easy"}, "the lm-eval task arc_easy must load, but it does not: ConnectionError"),
        ({"lm_eval": TASK, "scorer": "refusal"}, "it names scorer"),
        ({"lm_eval": TASK, "report": "suites/choice.jsonl"}, "it names report"),
        ({"lm_eval": TASK | {"class": "x"}}, r"line \d+: .*must not run code"),
        ({"lm_eval": TASK, "shots": 3}, r"line \d+: .* takes task, metric, .* but got shots"),
        ({"lm_eval": TASK, "metric": "f1"}, r"line \d+: metric of tiny must be one .*\(acc, acc_norm\), but got f1"),
        ({"lm_eval": ["a", "b"]}, r"line \d+: .*task must be"),
        ({"scorer": "refusal"}, r"line \d+: .*must have a path"),
    ],
)
def test_a_task_that_does_not_fit_is_one_line_at_check(
    study: Callable[..., Path], suite: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(study(suite))]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    with pytest.raises(InputError, match=message):
        load_spec(study(suite))


def test_without_lm_eval_check_says_what_to_install(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return real(name, *arguments, **options)

    path = study({"lm_eval": TASK | {"task": "another"}})
    lm_eval_suites._manager.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"not installed .*: pip install 'mergefront\[lm-eval\]'"):
        load_spec(path)
