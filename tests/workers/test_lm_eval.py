"""lm-evaluation-harness: a suite's figures are those of its own evaluator, and its own model's."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from search_spaces.errors import InputError
from workers.errors import TrialError
from workers.lm_eval_model import EngineLM, question_of
from workers.lm_eval_suites import LmEval
from workers.options import build
from workers.prompts import load_tokenizer, to_requests
from workers.sheet import Objective, Result, Sheet, Suite
from workers.transformers_engine import TransformersEngine

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def engine(models: Path) -> TransformersEngine:
    return TransformersEngine(models / "alpha", load_tokenizer(models / "alpha"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def their_model(models: Path) -> HFLM:
    return HFLM(pretrained=str(models / "alpha"), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """An inline task over a local file; ``kind`` is one of lm-evaluation-harness's output types."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "documents.jsonl"
    lines = [
        {
            "question": f"w{i} w{i * 7 % 40}",
            "choices": [f"w{i * 3 % 40}", f"w{(i * 5 + 1) % 40} w1"],
            "gold": i % 2,
            "answer": f"w{i * 9 % 40}",
            "problem": i // 2,
        }
        for i in range(36)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    kinds: dict[str, dict[str, Any]] = {
        "multiple_choice": {
            "doc_to_text": "w1 {{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            "num_fewshot": 2,
        },
        "generate_until": {
            "doc_to_text": "{{question}} w1",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["w3", "w2"], "max_gen_toks": 6},
            "filter_list": [
                {
                    "name": "first",
                    "filter": [{"function": "regex", "regex_pattern": "(w[0-9]+)"}, {"function": "take_first"}],
                }
            ],
            "metric_list": [{"metric": "exact_match"}],
        },
        "loglikelihood": {
            "doc_to_text": "{{question}}",
            "doc_to_target": " {{answer}}",
            "metric_list": [{"metric": "acc"}],
        },
        "loglikelihood_rolling": {
            "doc_to_text": "",
            "doc_to_target": "{{ ((question ~ ' ' ~ answer ~ ' ') * 30) | trim }}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }

    def make(kind: str, **changes: Any) -> dict[str, Any]:
        common = {
            "task": f"tiny_{kind}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "output_type": kind,
        }
        return common | kinds[kind] | changes

    return make


def asked(engine: TransformersEngine, suite: LmEval) -> Result:
    """Every document of a task, asked and marked as a trial does."""
    objective = Objective(name="o", suites=(Suite(key="s", scorer=suite, items=tuple(suite.items())),))
    return Sheet([objective], engine._endings.tokenizer, engine.context).ask(engine)


def suite_of(task: str | Mapping[str, Any], **options: Any) -> LmEval:
    made = build(LmEval, "lm_eval", {"task": task} | options)
    return build(LmEval, "lm_eval", {"task": task} | options | made.settled())


def evaluated(model: Any, task: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Figures and samples of lm-evaluation-harness's own evaluator."""
    loaded = TaskManager(include_defaults=False).load([dict(task)])
    for built in loaded["tasks"].values():
        built.set_fewshot_seed(1234)
    found: dict[str, Any] = lm_eval.evaluate(model, loaded, bootstrap_iters=0, **options)
    return found


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("multiple_choice", "acc,none"), ("generate_until", "exact_match,first"), ("loglikelihood", "acc,none")],
)
def test_a_suite_gives_exactly_the_figures_of_their_evaluator_on_our_model(
    engine: TransformersEngine, task: Make, kind: str, metric: str
) -> None:
    ours = asked(engine, suite_of(task(kind))).scores["o"]
    model = EngineLM(engine, engine._endings.tokenizer, engine.context)
    theirs = evaluated(model, task(kind))["results"][f"tiny_{kind}"]
    assert (ours.mean, ours.n, ours.unscored) == (theirs[metric], 36, 0)


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"])
def test_our_model_answers_as_theirs(engine: TransformersEngine, their_model: HFLM, task: Make, kind: str) -> None:
    """Likelihoods up to the last bits, generations letter for letter; the rolling texts need three windows."""
    model = EngineLM(engine, engine._endings.tokenizer, engine.context)
    ours, theirs = (evaluated(m, task(kind))["samples"][f"tiny_{kind}"] for m in (model, their_model))
    for a, b in zip(ours, theirs, strict=True):
        assert a["doc_id"] == b["doc_id"]
        for x, y in zip(a["resps"], b["resps"], strict=True):
            assert x == [pytest.approx(y[0], abs=1e-4)] if kind != "generate_until" else x == y


def test_chats_are_asked_as_their_evaluator_asks_them(engine: TransformersEngine, task: Make) -> None:
    ours = asked(engine, suite_of(task("multiple_choice"), chat=True))
    model = EngineLM(engine, engine._endings.tokenizer, engine.context)
    theirs = evaluated(model, task("multiple_choice"), apply_chat_template=True, fewshot_as_multiturn=True)
    assert ours.scores["o"].mean == theirs["results"]["tiny_multiple_choice"]["acc,none"]


def test_a_text_counts_as_one_item_in_bits_per_byte(engine: TransformersEngine, task: Make) -> None:
    suite = suite_of(task("loglikelihood_rolling"))
    assert (suite.metric, suite.maximise, suite.bounds) == ("bits_per_byte", False, None)
    model = EngineLM(engine, engine._endings.tokenizer, engine.context)
    samples = evaluated(model, task("loglikelihood_rolling"))["samples"]["tiny_loglikelihood_rolling"]
    expected = [-total / count / 0.6931471805599453 for total, count in (s["bits_per_byte"] for s in samples)]
    assert asked(engine, suite).marks["s"].values == pytest.approx(expected)


def test_asking_again_builds_nothing_and_gives_the_same(engine: TransformersEngine, task: Make) -> None:
    first, second = suite_of(task("multiple_choice")), suite_of(task("multiple_choice"))
    assert first.items() is second.items()
    assert asked(engine, first) == asked(engine, second)


def test_items_keep_their_names_when_documents_move(task: Make, tmp_path: Path) -> None:
    """An id is of the content, so that a file in another order gives the same splits."""
    before = {i.id: i.group for i in suite_of(task("loglikelihood")).items()}
    turned = tmp_path / "turned.jsonl"
    lines = (tmp_path / "documents.jsonl").read_text().splitlines()
    turned.write_text("\n".join([*reversed(lines), lines[0]]) + "\n")
    after = suite_of(task("loglikelihood", dataset_kwargs={"data_files": {"test": str(turned)}})).items()
    assert {i.id: i.group for i in after[:-1]} == before
    assert after[-1].id not in before
    assert after[-1].group in before.values()


def test_translations_are_grouped_by_the_key_that_is_named(task: Make) -> None:
    items = suite_of(task("loglikelihood"), group="problem", lang="sw").items()
    assert {i.lang for i in items} == {"sw"}
    assert len({i.group for i in items}) == 18
    with pytest.raises(InputError, match="group of tiny_loglikelihood must be a key of its documents"):
        suite_of(task("loglikelihood"), group="nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "os.path"}, "must not run code, but tiny_loglikelihood has class"),
        ({"doc_to_choice": {"a": "w1", "b": "w2"}}, "must be a list or a text, but tiny_loglikelihood has keys"),
        ({"unsafe_code": True}, "must not run code, but tiny_loglikelihood has unsafe_code"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "has hf_evaluate"),
        ({"metric_list": [{"metric": "someones/metric"}]}, "a metric must be one of .*, but .* has 'someones/metric'"),
        ({"doc_to_text": "{{ ''.__class__.__mro__ }}"}, "does not: SecurityError"),
        ({"doc_to_text": "{{ nothing }}"}, "does not: UndefinedError: 'nothing' is undefined"),
        ({"test_split": "none"}, "does not: KeyError"),
        ({"dataset_kwargs": {"data_files": {"test": "/nowhere.jsonl"}}}, "Unable to find '/nowhere.jsonl'"),
        ({"dataset_path": "nobody/nothing"}, "must load, but it does not: ConnectionError"),
        (
            {"output_type": "generate_until", "generation_kwargs": {"do_sample": True, "temperature": 0.5}},
            "temperature 0.5",
        ),
        ({"output_type": "generate_until", "generation_kwargs": {"num_beams": 4}}, "greedily, but .* num_beams"),
        ({"metric_list": [{"metric": "perplexity"}]}, r"value by \(none has\), but got perplexity"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_in_one_line(task: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        suite_of(task("loglikelihood", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "bleu"}, r"a document has a value by \(acc\), but got bleu"),
        ({"filter": "second"}, "filter of tiny_loglikelihood must be one of none, but got second"),
        ({"fewshots": 2}, "lm_eval takes task, metric, .*, but got fewshots"),
        ({"num_fewshot": -1}, "num_fewshot must be greater"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(task: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        suite_of(task("loglikelihood"), **options)


def test_a_metric_that_fails_on_a_document_names_it(
    engine: TransformersEngine, task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(task("loglikelihood"))
    name = suite.items()[0].id

    def broken(document: object, results: object) -> dict[str, float]:
        raise ZeroDivisionError("no words")

    monkeypatch.setattr(suite._loaded.built, "process_results", broken)
    with pytest.raises(
        TrialError, match=f"item {name} of tiny_loglikelihood: ZeroDivisionError in the task's code: no words"
    ):
        asked(engine, suite)


def test_a_document_beyond_the_context_is_unscored_in_a_suite_and_refused_to_their_evaluator(
    engine: TransformersEngine, task: Make
) -> None:
    long = task("loglikelihood", doc_to_text="{{ (question ~ ' ') * (40 if problem == 3 else 1) }}")
    assert asked(engine, suite_of(long)).scores["o"].unscored == 2
    with pytest.raises(InputError, match="must fit into the model's context of 64 tokens, but one has 80"):
        evaluated(EngineLM(engine, engine._endings.tokenizer, engine.context), long)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tokens cross spaces, and that puts <s> before a text by itself."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the answer is four", " the the  answer\n\n answers"] * 8, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def merging(models: Path) -> HFLM:
    return HFLM(pretrained=str(models / "alpha"), tokenizer=merging_tokenizer(), dtype="float32", device="cpu")


@given(context=st.text("theansw \n:", max_size=16), continuation=st.text("theansw \n:", min_size=1, max_size=12))
@settings(deadline=None)
def test_requests_are_cut_token_for_token_as_theirs(merging: HFLM, context: str, continuation: str) -> None:
    asked: list[Any] = []

    def caught(requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        asked.extend(requests)
        return [(0.0, False)] * len(requests)

    assume(context.strip() or not context)  # of a blank context theirs leaves nothing but the beginning of the text
    instance = Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_loglikelihood_tokens", caught)
        merging.loglikelihood([instance], disable_tqdm=True)
    _, prompt, wanted = asked[0]
    assume(wanted)  # where the answer merges with the prompt's last token theirs has nothing to score, and fails
    (request,) = to_requests(merging.tokenizer, question_of(instance), 1000)
    assert (list(request.prompt), list(request.continuation)) == (prompt, wanted)
