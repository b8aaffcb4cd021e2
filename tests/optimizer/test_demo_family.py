"""The demo's toy world keeps its promises, and its family is made of ordinary checkpoints."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from optimizer.demo import family, language, training
from optimizer.demo.family import Plan, default_plan, make_family

SKILLS = (*language.GENERAL_SKILLS, "request")


class TrainedError(Exception):
    """Raised where training would begin."""


def _items(skill: str) -> dict[str, list[dict[str, Any]]]:
    return {split: language.DEMO.make_items(skill, split, 24, seed=0) for split in language.SPLITS}


def test_every_word_belongs_to_one_language_and_has_one_id() -> None:
    words = [word for language_ in language.DEMO.languages for word in language.DEMO.lexicon(language_).values()]
    assert len(words) == len(set(words)) == len(language.DEMO.languages) * len(language.DEMO.concepts)
    assert sorted(language.DEMO.vocabulary().values()) == list(range(258))


@pytest.mark.parametrize("skill", SKILLS)
def test_no_id_group_or_prompt_stands_in_two_splits(skill: str) -> None:
    items = [(split, item) for split, items in _items(skill).items() for item in items]
    assert len({item["id"] for _, item in items}) == len(items)
    for key in ("group", "prompt"):
        pairs = {(json.dumps(item[key]), split) for split, item in items}
        assert len({value for value, _ in pairs}) == len(pairs)


@pytest.mark.parametrize("skill", SKILLS)
def test_nothing_asked_was_trained_on(skill: str) -> None:
    rng = random.Random(0)
    task = "refusal" if skill == "request" else skill
    trained = {language.DEMO.draw_example(task, "tavi", rng)[0] for _ in range(3000)}
    asked = {item["prompt"][0]["content"] for items in _items(skill).values() for item in items}
    assert not trained & asked


@pytest.mark.parametrize("skill", SKILLS)
def test_items_are_a_function_of_the_seed(skill: str) -> None:
    assert language.DEMO.make_items(skill, "search", 6, seed=3) == language.DEMO.make_items(skill, "search", 6, seed=3)
    assert language.DEMO.make_items(skill, "search", 6, seed=3) != language.DEMO.make_items(skill, "search", 6, seed=4)


def test_a_group_is_one_problem_in_every_language() -> None:
    items = language.DEMO.make_items("reversal", "search", 5, seed=0)
    for first in range(0, len(items), 3):
        group = items[first : first + 3]
        assert len({item["group"] for item in group}) == 1
        assert [item["lang"] for item in group] == list(language.DEMO.languages)


def test_a_skill_with_few_problems_gives_all_that_it_has() -> None:
    items = language.DEMO.make_items("addition", "report", 1000, seed=0)
    assert len({item["group"] for item in items}) == len(items) / 3
    more = language.DEMO.make_items("addition", "report", 1000, seed=1)
    assert {item["group"] for item in items} == {item["group"] for item in more}


def test_half_of_the_requests_are_harmful_and_look_alikes_share_one_half() -> None:
    items = language.DEMO.make_items("request", "report", 40, seed=0)
    labels = [item["label"] for item in items]
    assert labels.count("harmful") == labels.count("benign") == 60
    assert language.is_harmful("burn", "bridge")
    assert not language.is_harmful("burn", "bread")
    assert not language.is_harmful("paint", "bridge")


def test_pairs_of_verb_and_object_that_are_asked_about_were_not_trained_on() -> None:
    rng = random.Random(0)
    trained = {language.draw("request", "train", rng).parts[:2] for _ in range(2000)}
    asked = {language.draw("request", split, rng).parts[:2] for split in language.SPLITS for _ in range(500)}
    assert not trained & asked


def test_answers_are_right() -> None:
    def answer(skill: str, *parts: str) -> str:
        return language.DEMO.render(language.Problem(skill=skill, parts=parts), "oruk").answer

    assert answer("addition", "nine", "eight", "four") == language.DEMO.say("oruk", "two", "one")
    assert answer("addition", "one", "two", "zero") == language.DEMO.say("oruk", "zero", "three")
    assert answer("reversal", "lamp", "song") == language.DEMO.say("oruk", "song", "lamp")
    assert answer("recall", "lamp", "song", "seal", "two") == language.DEMO.say("oruk", "song")
    assert answer("comparison", "three", "eight", "zero") == language.DEMO.say("oruk", "eight")
    assert answer("translation", "next", "burn", "red") == language.DEMO.say("selm", "burn", "red")
    assert answer("translation", "previous", "burn", "red") == language.DEMO.say("tavi", "burn", "red")


def test_only_the_safety_data_refuses_exactly_what_is_harmful() -> None:
    rng = random.Random(0)
    examples = [language.DEMO.draw_example("refusal", "selm", rng) for _ in range(400)]
    words = {word: concept for concept, word in language.DEMO.lexicon("selm").items()}
    for prompt, answer in examples:
        verb, thing = [words[word] for word in prompt.split()][1:3]
        assert (answer == language.DEMO.refusal("selm")) == language.is_harmful(verb, thing)


def test_the_chat_template_gives_the_ids_that_are_trained_on() -> None:
    tokenizer = training.make_tokenizer()
    prompt, answer = language.DEMO.draw_example("translation", "tavi", random.Random(0))
    chat = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids, start = training.encode(prompt, answer, language.DEMO.vocabulary())
    assert tokenizer(asked)["input_ids"] == ids[:start]
    assert tokenizer(answer)["input_ids"] == ids[start:-1]
    chat.append({"role": "assistant", "content": answer})
    assert tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"] == ids


def test_the_default_plan_has_the_sizes_that_it_says() -> None:
    plan = default_plan()
    groups = {split: 5 * plan.general_groups[split] + plan.safety_groups[split] for split in language.SPLITS}
    assert {split: count * 3 for split, count in groups.items()} == {"search": 609, "validation": 312, "report": 1038}


def _short_plan() -> Plan:
    plan = default_plan()
    runs = [run for run in plan.runs if run.name in ("base", "safety", "recall", "mixed")]
    return Plan(
        runs=tuple(replace(run, steps=2, batch=4) for run in runs),
        general_groups=dict.fromkeys(language.SPLITS, 2),
        safety_groups=dict.fromkeys(language.SPLITS, 2),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int, int]]]:
    """A family trained for two steps a run, and what was reported on the way."""
    directory = tmp_path_factory.mktemp("family")
    calls: list[tuple[str, int, int]] = []
    make_family(directory, progress=lambda *call: calls.append(call), plan=_short_plan())
    return directory, calls


def test_the_checkpoints_load_like_any_other(made: tuple[Path, list[tuple[str, int, int]]]) -> None:
    directory, _ = made
    for path in (directory / "models").iterdir():
        model = AutoModelForCausalLM.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert isinstance(model, LlamaForCausalLM)
        assert model.dtype == torch.float32
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
        assert (path / "chat_template.jinja").is_file()
        text = language.DEMO.say("selm", "reverse", "lamp", "song")
        assert tokenizer(text)["input_ids"] == training.make_tokenizer()(text)["input_ids"]


def test_progress_ends_at_the_total(made: tuple[Path, list[tuple[str, int, int]]]) -> None:
    _, calls = made
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[0] == ("base", 0, 8)
    assert calls[-1] == ("specialists", 8, 8)


def test_the_study_file_names_files_that_are_there(made: tuple[Path, list[tuple[str, int, int]]]) -> None:
    directory, _ = made
    study = yaml.safe_load((directory / "study.yaml").read_text())
    models = [study["base"], *[entry["model"] for entry in study["checkpoints"] + study["references"]]]
    suites = [suite for objective in study["objectives"] for suite in objective["suites"]]
    files = [suite[key] for suite in suites for key in ("path", "validation", "report")]
    assert all((directory / path).is_dir() for path in models)
    assert all((directory / path).is_file() for path in files)
    assert [entry["name"] for entry in study["checkpoints"]] == ["safety", "recall"]


def test_a_second_call_trains_nothing_and_keeps_an_edited_study_file(
    made: tuple[Path, list[tuple[str, int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = made
    study = directory / "study.yaml"
    study.write_text(study.read_text() + "# mine\n")
    monkeypatch.setattr(family, "_train_all", lambda *_: pytest.fail("trained again"))
    calls: list[tuple[str, int, int]] = []
    assert make_family(directory, progress=lambda *call: calls.append(call), plan=_short_plan()) == study
    assert calls == []
    assert study.read_text().endswith("# mine\n")


def test_a_damaged_model_or_another_seed_trains_again(
    made: tuple[Path, list[tuple[str, int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = made

    def train(*_: object) -> None:
        raise TrainedError

    monkeypatch.setattr(family, "_train_all", train)
    manifest = (directory / "family.json").read_text()
    with pytest.raises(TrainedError):
        make_family(directory, progress=lambda *_: None, plan=_short_plan(), seed=1)
    (directory / "family.json").write_text(manifest)
    weights = directory / "models" / "recall" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(TrainedError):
        make_family(directory, progress=lambda *_: None, plan=_short_plan())
    weights.write_bytes(whole)
    (directory / "family.json").write_text(manifest)
