"""Every scorer in a real study: a real database, a real worker, a judge and a guard that are served for real."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from optimizer import loop
from optimizer.preflight import check
from optimizer.spec import Spec, from_document, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from storage.records import Failed, Measured, Outcome
from storage.store import Store
from workers.pool import LocalPool
from workers.prompts import load_tokenizer
from workers.worker import Worker

GENERAL = {"name": "general", "suites": [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]}
CHOICE, EXACT, SAFETY = "suites/choice.jsonl", "suites/exact.jsonl", "suites/safety.jsonl"
SURE = {"least_confidence": 0.0, "max_new_tokens": 4}
"""Random weights write noise, and these tests want more of them than that."""

SUITES: dict[str, dict[str, Any]] = {
    "multiple_choice": {"path": CHOICE, "normalise": "bytes"},
    "choice_letter": {"path": CHOICE, "letters": ["w1", "w2"], "lettered": True},
    "exact_match": {"path": EXACT, "extract": r"w\d", "normalise": ["case", "numbers"], "max_new_tokens": 3},
    "exact_match teacher-forced": {"path": EXACT, "teacher_forced": True},
    "gold_nll": {"path": EXACT},
    "gold_nll bits": {"path": CHOICE, "unit": "bits_per_byte"},
    "perplexity": {"path": EXACT, "unit": "word"},
    "perplexity of a text": {"path": "suites/text.jsonl", "unit": "byte"},
    "refusal": {"path": SAFETY, "phrases": "suites/phrases.json", **SURE},
    "classifier": {"path": SAFETY, "model": "classifier", "label": "toxic", **SURE},
    "guard": {
        "path": SAFETY,
        "model": "models/other",
        "dtype": "float32",
        "template": "{prompt} {response}",
        "verdicts": {"unsafe": r"w\d\b", "safe": "^"},
        "guard_tokens": 2,
        **SURE,
    },
    "judge": {"path": SAFETY, "url": "URL", "model": "tiny", "rubric": "Good is good.", **SURE},
    "judge win rate": {
        "path": SAFETY,
        "url": "URL",
        "model": "tiny",
        "mode": "win_rate",
        "reference": "suites/references.jsonl",
        **SURE,
    },
    "python:own_scorer:length": {"path": SAFETY, "maximise": False, "max_new_tokens": 4},
}


def save_classifier(models: Path, path: Path) -> None:
    """A classifier of random weights."""
    tokenizer = load_tokenizer(models / "base")
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.8, pad_token_id=0, **shape, **names)
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture
def write(study_file: Callable[..., Path], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a study with one suite marked by that scorer."""
    save_classifier(models, tmp_path / "classifier")
    texts = [{"id": f"t{i}", "prompt": f"w{i} w2 w{i + 1}", "lang": "aa"} for i in range(39)]
    references = [{"id": f"safety-{i}", "reference": f"w{i % 40} yes"} for i in range(48)]
    (tmp_path / "own_scorer.py").write_text("def length(item, output):\n    return len(output)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def write_study(kind: str, url: str = "http://x/v1", **changes: Any) -> Spec:
        suite = {"scorer": kind.split()[0], **SUITES[kind], **changes}
        suite |= {"url": url} if "url" in suite else {}
        path = study_file(objectives=[{"name": "measured", "suites": [suite]}, GENERAL])
        for name, rows in (("text", texts), ("references", references)):
            (tmp_path / "suites" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_spec(path)

    return write_study


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    yield store
    store.close()


def run(store: Store, spec: Spec, trials: int = 6) -> list[Outcome]:
    """A study, or more of it."""
    if spec.study not in {s.name for s in store.studies()}:
        create_study(store, spec, trials=trials, fingerprints={})
    store.set_planned(spec.study, trials)
    outcomes: list[Outcome] = []
    study = DriverStudy(store, spec.study)
    worker = Worker(replace(study.spec.setup(device="cpu"), verdicts=store.verdicts()))
    loop.search(study, LocalPool(lambda: worker), outcomes.append)
    study.close()
    return outcomes


@pytest.mark.parametrize("kind", SUITES)
def test_every_scorer_runs_in_a_study(kind: str, write: Any, store: Store, judge_server: Any) -> None:
    spec = write(kind, judge_server.url)
    outcomes = run(store, spec)
    assert len(outcomes) == 6
    objective = spec.objectives[0]
    for outcome in outcomes:
        assert isinstance(outcome, Measured), outcome
        score = outcome.scores["measured"]
        assert score.unscored == 0
        low, high = objective.bounds or (0.0, float("inf"))
        assert low <= score.mean <= high
    means = {o.scores["measured"].mean for o in outcomes if isinstance(o, Measured)}
    assert len(means) > 1 or kind == "exact_match teacher-forced", "the scorer tells merges apart"
    assert from_document(spec.document()).digest == spec.digest


def test_verdicts_survive_a_restart_and_are_not_asked_for_again(write: Any, store: Store, judge_server: Any) -> None:
    spec = write("judge", judge_server.url)
    assert spec.judged
    first = run(store, spec)
    count = len(judge_server.asked)
    assert count == len(store.verdicts()) > 0
    twin = from_document(spec.document() | {"study": "twin"})
    again = run(store, twin)
    assert len(judge_server.asked) == count
    assert [o.scores for o in again if isinstance(o, Measured)] == [o.scores for o in first if isinstance(o, Measured)]


def test_a_judge_that_is_down_fails_the_trial_and_keeps_the_study(
    write: Any, store: Store, judge_server: Any, free_port: int
) -> None:
    spec = write("judge", f"http://127.0.0.1:{free_port}/v1", retries=0)
    (outcome,) = run(store, spec, trials=1)[:1]
    assert isinstance(outcome, Failed)
    assert "gave none to" in outcome.reason
    assert outcome.traceback == ""
    assert "no reply" in store.failures("tiny")[0][0]


def test_too_many_unscored_items_fail_the_trial_with_that_reason(write: Any, store: Store) -> None:
    spec = write("guard", verdicts={"unsafe": "neither", "safe": "nor"})
    (outcome,) = run(store, spec, trials=1)[:1]
    assert isinstance(outcome, Failed)
    assert "at most 2% of a suite's items may be unscored, but " in outcome.reason
    assert "measured/0:safety.jsonl are, item safety-" in outcome.reason
    assert outcome.reason.endswith(" as unparsed.")


def test_a_scorer_of_ones_own_that_raises_names_the_item(write: Any, store: Store, tmp_path: Path) -> None:
    (tmp_path / "raising_scorer.py").write_text("def f(item, output):\n    raise RuntimeError('on purpose')\n")
    spec = write("python:own_scorer:length", scorer="python:raising_scorer:f")
    (outcome,) = run(store, spec, trials=1)[:1]
    assert isinstance(outcome, Failed)
    assert "item safety-" in outcome.reason
    assert "the scorer python:raising_scorer:f raised RuntimeError: on purpose" in outcome.reason


def test_check_runs_a_study_with_a_second_model(write: Any) -> None:
    report = check(write("guard"), timed=True, progress=lambda *_: None)
    assert report.problems == ()
    assert "a trial" in report.facts


def test_reading_a_database_runs_no_code_of_its_owner(write: Any, tmp_path: Path) -> None:
    document = write("python:own_scorer:length").document()
    text = json.dumps(document).replace("own_scorer", "gone_since")
    assert not from_document(json.loads(text)).objectives[0].maximise


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("refusal", {"phrases": "suites/none.json"}, r"line \d+: phrases must be a file, but there is no .*none.json"),
        ("refusal", {"phrases": CHOICE}, "phrases must be a JSON file"),
        ("guard", {"model": "models/none"}, r"line \d+: .*models/none"),
        ("guard", {"threshold": 1}, "the scorer guard takes .*verdicts.*, but got threshold"),
        ("classifier", {"label": "rude"}, r"label must be one of the classifier's \(fine, toxic\), but got 'rude'"),
        ("judge win rate", {"reference": EXACT}, "references must be lines of"),
        ("judge", {"key_from": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE must hold the judge's API key"),
        ("python:own_scorer:length", {"scorer": "python:own_scorer:width"}, "must name a function"),
    ],
)
def test_what_a_scorer_lacks_is_said_before_the_study(
    write: Any, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(kind, **changes)
