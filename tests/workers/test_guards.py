"""Second models: a sequence classifier and a generative guard, tiny and real."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from search_spaces.errors import InputError
from workers.classifiers import Classifier
from workers.errors import TrialError
from workers.guards import Guard, _Model
from workers.marks import open_all
from workers.prompts import load_tokenizer
from workers.questions import Generated
from workers.scorers import make_scorer
from workers.second_stage import SecondStage
from workers.suites import Item
from workers.validity import Valid


def asked(*texts: str, **changes: Any) -> list[tuple[Item, list[Generated]]]:
    return [
        (Item(id=f"i{i}", prompt=f"w{i} w30", lang="en", **changes), [Generated(text=text, truncated=False)])
        for i, text in enumerate(texts)
    ]


SAID = [f"w{i} w{(i * 7) % 40} w{(i * 3 + 1) % 40}" for i in range(12)]
GARBAGE = ["", "w1 w1 w1 w1 w1", "w2 w30", "дело"]


@pytest.fixture(scope="session")
def classifier(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with two labels."""
    path = tmp_path_factory.mktemp("classifier")
    tokenizer = load_tokenizer(models / "base")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.8,
        pad_token_id=0,
        id2label={0: "fine", 1: "Toxic"},
        label2id={"fine": 0, "Toxic": 1},
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def made_classifier(path: Path, **changes: Any) -> Classifier:
    made = make_scorer("classifier", {"model": str(path), "label": "toxic"} | changes)
    assert isinstance(made, Classifier)
    return made


def by_hand(path: Path, text: str) -> float:
    """Probability of the second label, one text at a time."""
    tokenizer = load_tokenizer(path)
    model = LlamaForSequenceClassification.from_pretrained(path)
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer.encode(text)])).logits
    return float(logits.softmax(-1)[0, 1])


def test_a_classifier_marks_in_batches_what_it_would_mark_alone(classifier: Path) -> None:
    expected = [by_hand(classifier, text) for text in SAID]
    threshold = sorted(expected)[6] - 1e-6
    scorer = made_classifier(classifier, threshold=threshold, batch=5)
    scorer.prepare()
    marks = scorer.mark_all(asked(*SAID), SecondStage())
    assert [m.value for m in marks] == [float(p < threshold) for p in expected]
    assert {m.verdict for m in marks} == {"safe", "unsafe"}


def test_the_probabilities_of_several_labels_add_up(classifier: Path) -> None:
    scorer = made_classifier(classifier, label=["fine", "toxic"], threshold=0.99)
    assert {m.value for m in scorer.mark_all(asked(*SAID), SecondStage())} == {0.0}


def test_a_classifier_may_read_the_prompt_too(classifier: Path) -> None:
    alone, exchange = made_classifier(classifier), made_classifier(classifier, reads="exchange")
    (item, _), *_ = asked(*SAID)
    assert alone._read(Valid(0, item, "x")) == ("x",)
    assert exchange._read(Valid(0, item, "x")) == ("w0 w30", "x")
    assert all(m.value is not None for m in exchange.mark_all(asked(*SAID), SecondStage()))


def test_what_is_too_long_for_the_classifier_is_unscored_and_never_cut(classifier: Path) -> None:
    long = " ".join(f"w{i}" for i in range(35))
    marks = made_classifier(classifier).mark_all(asked("w1 w2", long), SecondStage())
    assert marks[0].value is not None
    assert (marks[1].value, marks[1].verdict) == (None, "too_long_for_classifier")


def test_a_classifier_without_padding_marks_one_at_a_time(classifier: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(classifier, tmp_path / "unpadded"))
    tokenizer = load_tokenizer(path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(path)
    marks = [made_classifier(p).mark_all(asked(*SAID), SecondStage()) for p in (classifier, path)]
    assert [m.value for m in marks[0]] == [m.value for m in marks[1]]


@pytest.mark.parametrize(
    ("label", "message"),
    [("hate", r"label must be one of the classifier's \(fine, Toxic\), but got 'hate'"), (["toxic", "x"], "got 'x'")],
)
def test_a_label_that_the_classifier_lacks_is_named(classifier: Path, label: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made_classifier(classifier, label=label).prepare()


def test_a_missing_classifier_is_refused_before_the_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no directory"):
        made_classifier(tmp_path / "none").prepare()


def made_guard(models: Path, **changes: Any) -> Guard:
    options = {"model": str(models / "beta"), "dtype": "float32", "guard_tokens": 4}
    made = make_scorer("guard", options | changes)
    assert isinstance(made, Guard)
    return made


WORDS = {"unsafe": r"w[0-9]\b|w1\d", "safe": "^"}


def test_a_guard_is_known_by_what_it_writes(models: Path) -> None:
    stage = SecondStage()
    scorer = made_guard(models, verdicts=WORDS)
    scorer.prepare()
    marks = scorer.mark_all(asked(*SAID), stage)
    assert {m.verdict for m in marks} == {"safe", "unsafe"}
    assert all(m.value == float(m.verdict == "safe") for m in marks)
    assert [m.value for m in scorer.mark_all(asked(*SAID), stage)] == [m.value for m in marks]


def test_a_guard_is_loaded_once_and_keeps_no_requests(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, scorer = SecondStage(), made_guard(models, verdicts=WORDS)
    scorer.mark_all(asked(*SAID), stage)
    (model,) = stage._made.values()
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    scorer.mark_all(asked(*SAID), stage)
    assert model._engine._prepared == {}  # type: ignore[attr-defined]


def test_second_models_can_be_loaded_ahead_and_a_broken_one_waits_for_its_trial(
    models: Path, classifier: Path, tmp_path: Path
) -> None:
    stage = SecondStage()
    scorers: list[Any] = [made_guard(models), made_classifier(classifier), made_classifier(tmp_path / "none")]
    open_all([*scorers, make_scorer("gold_nll", {})], stage)
    assert len(stage._made) == 2
    with pytest.raises(TrialError, match="must be a sequence-classification model"):
        scorers[2].mark_all(asked(*SAID), stage)


def test_a_guard_reads_the_exchange_in_its_own_chat_template(models: Path) -> None:
    scorer = made_guard(models)
    (item, _), *_ = asked(*SAID)
    prompt = scorer._prompt(Valid(0, item, "w5"))
    assert prompt == ({"role": "user", "content": "w0 w30"}, {"role": "assistant", "content": "w5"})
    model = _Model(scorer.model, "float32", "cpu")
    tokens = model._tokens(prompt)
    assert model._tokenizer.decode(tokens).split() == ["<user>", "w0", "w30", "<assistant>", "w5", "<assistant>"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_guards_template_is_filled(models: Path, chat: bool) -> None:
    text = "q {prompt} a {response} in {lang} {other}"
    template = [{"role": "user", "content": text}] if chat else text
    scorer = made_guard(models, template=template)
    (item, _), *_ = asked(*SAID)
    prompt = scorer._prompt(Valid(0, item, "{prompt}"))
    filled = "q w0 w30 a {prompt} in en {other}"
    assert prompt == (({"role": "user", "content": filled},) if chat else filled)


def test_a_guard_that_cannot_be_understood_leaves_the_item_unscored(models: Path) -> None:
    marks = made_guard(models, verdicts={"safe": "yea", "unsafe": "nay"}).mark_all(asked(*SAID), SecondStage())
    assert {(m.value, m.verdict) for m in marks} == {(None, "unparsed")}


def test_what_is_too_long_for_the_guard_is_unscored(models: Path) -> None:
    long = " ".join(f"w{i % 40} w{i * i % 37}" for i in range(32))
    marks = made_guard(models, verdicts=WORDS).mark_all(asked(long, "w1 w2"), SecondStage())
    assert (marks[0].value, marks[0].verdict) == (None, "too_long_for_guard")
    assert marks[1].value is not None


def test_garbage_is_not_safe_whatever_a_second_model_would_say(models: Path, classifier: Path) -> None:
    lenient: list[Any] = [
        made_classifier(classifier, threshold=1.0),
        made_guard(models, verdicts={"unsafe": "never", "safe": "^"}),
    ]
    for scorer in lenient:
        stage = SecondStage()
        assert {m.value for m in scorer.mark_all(asked(*SAID), stage)} == {1.0}
        marks = scorer.mark_all([asked("x", "x", text)[2] for text in GARBAGE], stage)
        assert [(m.value, m.verdict, m.parts) for m in marks] == [(0.0, "invalid", {"invalid": 1.0})] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verdicts": {"safe": "a"}}, "verdicts must map unsafe and safe, but got safe"),
        ({"verdicts": {"safe": "(", "unsafe": "b"}}, "verdicts must be regular expressions"),
        ({"template": [{"role": "user"}]}, "template must be a text or a list of {role, content} messages"),
        ({"dtype": "int8"}, "dtype must be 'bfloat16', 'float16' or 'float32'"),
    ],
)
def test_wrong_options_of_a_guard_are_refused(models: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made_guard(models, **options)


def test_a_guard_needs_a_template_from_somewhere(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(models / "beta", tmp_path / "guard"))
    (path / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="a guard without a chat template needs template: TEXT"):
        made_guard(models, model=str(path)).prepare()
    made_guard(models, model=str(path), template="{prompt} {response}").prepare()


def test_a_broken_second_model_fails_the_trial_with_its_path(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(models / "beta", tmp_path / "guard"))
    (path / "model.safetensors").unlink()
    scorers: list[Any] = [made_guard(models, model=str(path)), made_classifier(path)]
    for scorer in scorers:
        with pytest.raises(TrialError, match=f"must be a .* model, but {path} is none"):
            scorer.mark_all(asked(*SAID), SecondStage())
