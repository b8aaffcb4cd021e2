"""What is wrong with a family or a suite is said at ``check``, with exit code 2, before anything is spent."""

import json
import shutil
import tracemalloc
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


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "line 2: a study file takes no aliases, but there is *a"),
        ("study: !!python/object/apply:os.system ['touch x']\n", "line 1: a study file must be plain YAML"),
        ("study: !!python/name:os.system\n", "but there is the tag tag:yaml.org,2002:python/name:os.system"),
        ("study: !!binary aGk=\n", "there is the tag tag:yaml.org,2002:binary"),
        ("[" * 10_000, "must not be nested deeper than 32"),
        ("{a: " * 10_000, "must not be nested deeper than 32"),
        ("- " * 3_000 + "x", "must not be nested deeper than 32"),
        ("? [a, b]\n: c\n", "line 1: a key must be a text, but there is a list or a mapping"),
        ("study: x\nno: 1\n", "line 2: a key must be a text, but there is no (put it in quotes)"),
        ("study: 2024-13-45\n", "month must be in 1..12"),
        ("study: " + "1" * 6_000 + "\n", "digits"),
        ("study: 0x_\n", "must be plain YAML"),
        ('study: "\\UFFFFFFFF"\n', "must be plain YAML"),
        ("study: \x00\n", "must be plain YAML"),
        ("study: a\nstudy: b\n", "line 2: a key must stand once, but study stands twice"),
        ("a: " + "x" * 1_100_000, "must have at most 1,000,000 bytes"),
        ("a: 1\n---\nb: 2\n", "must be plain YAML"),
    ],
)
def test_yaml_that_attacks(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    assert cli.main(["check", str(tmp_path / "study.yaml")]) == 2
    assert reason in capsys.readouterr().err


def test_a_study_file_that_does_not_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "/dev/zero"]) == 2
    assert "must have at most 1,000,000 bytes" in capsys.readouterr().err


HOSTILE = [
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "a\nb",
    "a\x00b",
    "a\x1b[2J",
    "x'; DROP TABLE mergefront_study; --",
    "<script>alert(1)</script>",
    "=1+1",
    "-x",
    ".hidden",
    "",
    "a" * 101,
    "\ud800",
    "caf\u00e9",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_studies_checkpoints_and_objectives_are_plain_words(
    study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    suites = [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]
    for changes in (
        {"study": name},
        {"checkpoints": [{"name": name, "model": "models/alpha"}, {"name": "beta", "model": "models/beta"}]},
        {"objectives": [{"name": name, "suites": suites}]},
    ):
        assert cli.main(["check", str(study_file(**changes))]) == 2
        said = capsys.readouterr().err
        assert "name must" in said or "study must" in said or "must be plain YAML" in said
        assert "\x1b" not in said


@pytest.mark.parametrize("path", ["a\x1b[2Jb", "x" * 5000, "~nobody-of-that-name/x", "x" * 300, "\x00"])
def test_paths_that_no_file_has(study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], path: str) -> None:
    suite = {"path": path, "scorer": "multiple_choice"}
    for changes in ({"base": path}, {"objectives": [{"name": "o", "suites": [suite]}]}):
        assert cli.main(["check", str(study_file(**changes))]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "\x1b" not in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(
    study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], value: float
) -> None:
    suites = [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]
    path = study_file()
    for changes in ({"at_least": value}, {"across_languages": {"aa": value, "bb": 1.0}}):
        document = yaml.safe_load(path.read_text()) | {"objectives": [{"name": "o", "suites": suites} | changes]}
        path.write_text(yaml.safe_dump(document))
        assert cli.main(["check", str(path)]) == 2
        assert "finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "1", "id": "2", "prompt": "p", "lang": "aa"}', "the key 'id' stands twice"),
        ('{"id": "1", "prompt": "p", "lang": "aa", "meta": {"x": NaN}}', "NaN is no number of JSON"),
        ('{"id": "1", "prompt": "p", "lang": "aa", "meta": {"x": 1e999}}', "the number 1e999 overflows"),
        ('{"id": "1", "prompt": "p", "lang": "aa", "gold": ' + "1" * 5000 + "}", "digits"),
        ('{"id": "1", "prompt": "p", "lang": "aa", "meta": ' + '{"a":' * 70 + "1" + "}" * 71, "nested deeper than 64"),
        ("[" * 100_000, "nested deeper than 64"),
        ('{"id": "\\ud800", "prompt": "p", "lang": "aa"}', "half of a surrogate pair"),
        ('{"id": "a\\nb", "prompt": "p", "lang": "aa"}', "id must be printable"),
        ('{"id": "a", "prompt": "p", "lang": "\\u001b[2J"}', "lang must be printable"),
        ('{"id": "a", "prompt": "p", "lang": "aa", "group": "\\u0000"}', "group must be printable"),
        ('{"id": "' + "a" * 501 + '", "prompt": "p", "lang": "aa"}', "id must be printable and of at most 500"),
        ('{"id": "a", "prompt": ' + json.dumps(["x" * 10_000]) + ', "lang": "aa"}', "prompt must be a text or a list"),
    ],
)
def test_items_that_attack(
    check: Check, tmp_path: Path, study_file: Callable[..., Path], line: str, reason: str
) -> None:
    break_line(tmp_path / "suites" / "choice.jsonl", 7, line)
    said = check()
    assert "choice.jsonl, line 7: " in said
    assert reason in said
    assert len(said) < 2000


def test_a_line_of_100_megabytes_is_refused_without_being_held(tmp_path: Path) -> None:
    from search_spaces.errors import InputError
    from workers.suites import MOST_LINE_BYTES, read_items

    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": "1", "lang": "aa", "prompt": "p"}\n')
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"x.jsonl, line 2: an item must have at most 8,388,608 bytes"):
            read_items(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_a_chat_template_that_does_not_end(
    check: Check, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import chat_templates

    base = Path(shutil.copytree(models / "base", tmp_path / "loops"))
    loop = "{% for i in range(99999) %}"
    (base / "chat_template.jinja").write_text(loop * 3 + "{% endfor %}" * 3)
    monkeypatch.setattr(chat_templates, "SECONDS", 0.5)
    assert "but the base's does not end" in check(base=str(base))


def test_a_chat_template_that_reaches_for_attributes(check: Check, models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "reaches"))
    (base / "chat_template.jinja").write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    assert "the base's chat template must render every chat, but: SecurityError" in check(base=str(base))


def test_a_link_out_of_a_checkpoint(check: Check, alpha: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (alpha / "notes.txt").symlink_to(tmp_path / "private")
    assert "alpha: the files of a model must lie in its directory" in check(**with_alpha(alpha))


def test_a_table_for_spreadsheets_holds_no_formulas() -> None:
    from optimizer.results import cell

    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://evil")'):
        assert cell(text) == f"'{text}"
    assert [cell(t) for t in ("uniform", "", "a=b", "1-2")] == ["uniform", "", "a=b", "1-2"]


def test_texts_that_look_like_sql_are_kept_as_texts(
    tmp_path: Path, study_file: Callable[..., Path], storage: str
) -> None:
    from optimizer import loop
    from optimizer.preflight import check as preflight
    from optimizer.spec import load_spec
    from optimizer.study import DriverStudy, create_study
    from storage.store import Store
    from workers.pool import LocalPool
    from workers.worker import Worker

    path = tmp_path / "suites" / "choice.jsonl"
    spec_file = study_file()
    items = [json.loads(line) for line in path.read_text().splitlines()]
    for item in items:
        item["id"] += "'; DROP TABLE mergefront_study; --"
        item["lang"] += "'); DELETE FROM mergefront_evaluation; --"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    spec = load_spec(spec_file)
    report = preflight(spec, timed=False, progress=lambda *_: None)
    assert report.problems == ()
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=2, fingerprints=dict(report.fingerprints))
    loop.search(DriverStudy(store, spec.study), LocalPool(lambda: Worker(spec.setup(device="cpu"))), lambda _: None)
    (summary,) = store.studies()
    assert summary.measured == 2
    marks = store.with_marks("tiny", 0)
    assert all(i.endswith("DROP TABLE mergefront_study; --") for i in marks.marks["general/0:choice.jsonl"].ids)
    assert "lang:aa'); DELETE FROM mergefront_evaluation; --" in marks.breakdown["general"]
    store.close()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", []),
        ("tokenizer.json", {}),
        ("tokenizer.json", {"model": {"type": "Evil"}}),
        ("tokenizer.json", {"added_tokens": [{"id": -1, "content": "x"}]}),
        ("tokenizer_config.json", {"bos_token": 5}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", []),
    ],
)
def test_a_tokenizer_that_is_none(check: Check, models: Path, tmp_path: Path, file: str, change: Any) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "strange"))
    whole = json.loads((base / file).read_text())
    (base / file).write_text(json.dumps(whole | change if change else change))
    assert "the base must have a tokenizer, but" in check(base=str(base))


def test_what_files_say_moves_no_cursor_and_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    from optimizer.preflight import Report

    cli.print_report(Report(problems=("\x1b[2J\x07 a\nb",), warnings=("\x9b31m c",)))
    assert capsys.readouterr().err == "warning: \\x9b31m c\nproblem: \\x1b[2J\\x07 a\nb\n"
    table = Table("[/red]")
    table.add_row("[bold]x[/bold] :bomb: [/nothing]")
    cli.show(table)
    said = capsys.readouterr().out
    assert "[/red]" in said
    assert "[bold]x[/bold] :bomb: [/nothing]" in said


NLL = {"name": "nll", "suites": [{"path": "suites/choice.jsonl", "scorer": "gold_nll"}]}
GENERAL = {"name": "general", "suites": [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]}
SIXTEEN = [{"name": f"c{i}", "model": f"models/{('alpha', 'beta', 'gamma')[i % 3]}"} for i in range(16)]


@pytest.mark.parametrize(
    ("sampler", "changes", "message"),
    [
        ("grid", {"checkpoints": SIXTEEN}, "at most 10000 points, but 16 parameters at 5 levels make 152587890625"),
        ("grid", {"search_space": {"method": ["linear", "multislerp"]}}, "the grid sampler needs the same numbers"),
        ("cmaes", {"search_space": {"method": ["linear", "multislerp"]}}, "the cmaes sampler needs the same numbers"),
        ("cmaes", {"objectives": [GENERAL, NLL]}, "cmaes searches one number, the plain mean of the objectives, so"),
        ("bayes", {}, "a sampler must be one of auto"),
    ],
)
def test_a_sampler_that_cannot_do_what_the_study_asks(
    study_file: Callable[..., Path],
    storage: str,
    capsys: pytest.CaptureFixture[str],
    sampler: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    file = study_file(search={"trials": 8, "sampler": sampler}, **changes)
    assert cli.main(["launch", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert not Path(storage.removeprefix("sqlite:///")).exists()
