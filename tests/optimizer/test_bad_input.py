"""What is wrong with a family or a suite is said at ``check``, with exit code 2, before anything is spent."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from optimizer import cli

Check = Callable[..., str]


@pytest.fixture
def check(study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs ``mergefront check`` on a changed study and returns what it says on stderr."""

    def run(**changes: Any) -> str:
        assert cli.main(["check", str(study_file(**changes))]) == 2
        return capsys.readouterr().err

    return run


def with_alpha(path: Path) -> dict[str, Any]:
    return {"checkpoints": [{"name": "alpha", "model": str(path)}, {"name": "beta", "model": "models/beta"}]}


@pytest.fixture
def alpha(models: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint to break."""
    return Path(shutil.copytree(models / "alpha", tmp_path / "alpha"))


def test_a_missing_checkpoint_directory(check: Check, tmp_path: Path) -> None:
    assert "a checkpoint must be a directory or a hub id, but there is no directory" in check(
        **with_alpha(tmp_path / "no")
    )


def test_a_pickled_checkpoint(check: Check, alpha: Path) -> None:
    (alpha / "model.safetensors").rename(alpha / "pytorch_model.bin")
    assert "alpha: weights must be safetensors" in check(**with_alpha(alpha))


def test_truncated_safetensors(check: Check, alpha: Path) -> None:
    data = (alpha / "model.safetensors").read_bytes()
    (alpha / "model.safetensors").write_bytes(data[:-100])
    assert "alpha: a weight file must be whole safetensors" in check(**with_alpha(alpha))


def test_another_architecture(check: Check, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=49, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    model.save_pretrained(tmp_path / "gpt2")
    said = check(**with_alpha(tmp_path / "gpt2"))
    assert (
        "checkpoints must share one architecture, but got LlamaForCausalLM (base) and GPT2LMHeadModel (alpha)" in said
    )


def test_another_vocabulary_size(check: Check, alpha: Path) -> None:
    tensors = {k: v.clone() for k, v in load_file(alpha / "model.safetensors").items()}
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([rows, rows[:3]])
    save_file(tensors, alpha / "model.safetensors", metadata={"format": "pt"})
    said = check(**with_alpha(alpha))
    assert "shape" in said
    assert f"({len(rows) + 3}, 16) in alpha" in said
    assert f"({len(rows)}, 16) in the base" in said


def test_a_missing_and_an_extra_tensor(check: Check, alpha: Path) -> None:
    tensors = {k: v.clone() for k, v in load_file(alpha / "model.safetensors").items()}
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, alpha / "model.safetensors", metadata={"format": "pt"})
    said = check(**with_alpha(alpha))
    assert "alpha lacks model.norm.weight" in said
    assert "alpha has also model.extra.weight" in said


def test_nan_in_a_checkpoint(check: Check, alpha: Path) -> None:
    tensors = {k: v.clone() for k, v in load_file(alpha / "model.safetensors").items()}
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, alpha / "model.safetensors", metadata={"format": "pt"})
    assert "weights must be finite, but model.norm.weight of alpha holds NaN or infinity" in check(**with_alpha(alpha))


def break_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines))


def test_a_broken_line_of_a_suite(check: Check, tmp_path: Path, study_file: Callable[..., Path]) -> None:
    break_line(tmp_path / "suites" / "choice.jsonl", 7, "{nonsense")
    assert "choice.jsonl, line 7: an item must be one JSON object" in check()


def test_duplicate_ids(check: Check, tmp_path: Path, study_file: Callable[..., Path]) -> None:
    path = tmp_path / "suites" / "choice.jsonl"
    break_line(path, 7, path.read_text().splitlines()[0])
    assert "choice.jsonl, line 7: ids must be unique, but 'choice-0' stands there twice" in check()


def test_no_items_for_a_language(check: Check) -> None:
    objective = {
        "name": "general",
        "suites": [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}],
        "across_languages": {"aa": 1.0, "bb": 1.0, "cc": 1.0},
    }
    assert "general has no" in check(objectives=[objective])
    objective["across_languages"] = {"aa": 1.0}
    assert "must weigh every language, but general gives none to bb" in check(objectives=[objective])


def test_an_id_that_stands_in_two_splits(check: Check, tmp_path: Path, study_file: Callable[..., Path]) -> None:
    lines = (tmp_path / "suites" / "choice.jsonl").read_text().splitlines()
    (tmp_path / "suites" / "v.jsonl").write_text("\n".join(lines[:4]))
    suite = {"path": "suites/choice.jsonl", "validation": "suites/v.jsonl", "scorer": "multiple_choice"}
    said = check(objectives=[{"name": "general", "suites": [suite]}])
    assert "splits must be disjoint, but id 'choice-" in said


def test_a_language_without_refusal_phrases(check: Check, tmp_path: Path, study_file: Callable[..., Path]) -> None:
    (tmp_path / "suites" / "phrases.json").write_text(json.dumps({"aa": ["no"]}))
    assert "refusal needs refusal phrases for its language 'bb'" in check()


def test_a_chat_prompt_without_a_chat_template(check: Check, models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "plain"))
    (base / "chat_template.jinja").unlink()
    assert "a chat prompt needs a chat template, but the base's tokenizer has none" in check(base=str(base))


def test_every_problem_is_listed_at_once(check: Check, tmp_path: Path) -> None:
    checkpoints = [{"name": n, "model": str(tmp_path / n)} for n in ("one", "two", "three")]
    said = check(checkpoints=checkpoints)
    assert all(f"problem: {n}: a checkpoint must be a directory" in said for n in ("one", "two", "three"))


@pytest.mark.parametrize("command", ["resume", "front", "validate"])
def test_an_unknown_study(command: str, storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    from storage.store import Store

    Store.open(storage, create=True).close()
    assert cli.main([command, "nobody"]) == 2
    assert "the study must be in the database, but there is no 'nobody' (studies: none)" in capsys.readouterr().err


def test_a_database_that_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert cli.main(["front", "x", "--storage", f"sqlite:///{tmp_path}/other.db"]) == 2
    assert "must be one that mergefront wrote" in capsys.readouterr().err


def test_a_wrong_launch_leaves_no_study_behind(
    study_file: Callable[..., Path], storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(checkpoints=[{"name": n, "model": str(tmp_path / n)} for n in ("one", "two")])
    assert cli.main(["launch", str(path)]) == 2
    assert cli.main(["studies", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_warnings_name_duplicates_strangers_and_the_base_itself(
    models: Path, study_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "alpha", tmp_path / "twin")
    checkpoints = [
        {"name": "alpha", "model": "models/alpha"},
        {"name": "twin", "model": str(tmp_path / "twin")},
        {"name": "same", "model": "models/base"},
    ]
    assert cli.main(["check", str(study_file(checkpoints=checkpoints))]) == 0
    said = capsys.readouterr()
    assert "alpha and twin point the same way (cosine 1.0000)" in said.err
    assert "same equals the base: its task vector is zero" in said.err
    assert "alpha is 1." in said.err  # random weights are strangers to each other
    assert "LlamaForCausalLM" in said.out
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["study"] == "tiny"
