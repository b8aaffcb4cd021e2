"""What a study that arrives over the network may name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.service.reader import parsed
from optimizer.service.screen import inside, screened
from optimizer.service.settings import Settings, resolved_roots
from search_spaces.errors import InputError

LM_EVAL = {"task": "mine", "dataset_path": "json", "output_type": "generate_until", "doc_to_text": "a"}


@pytest.fixture
def settings(tmp_path: Path, study_file: Callable[..., Path]) -> Settings:
    """Everything of the tiny family lies below the root but the models, which are a link out of it: copied in."""
    study_file()
    link = tmp_path / "models"
    target = link.resolve()
    link.unlink()
    link.symlink_to(target)
    return Settings(storage="sqlite://", roots=(tmp_path.resolve(), target))


def refused(settings: Settings, document: dict[str, Any]) -> str:
    with pytest.raises(InputError) as e:
        parsed(settings, json.dumps(document), True)
    return str(e.value)


def document(**changes: Any) -> dict[str, Any]:
    suite = {"path": "suites/choice.jsonl", "scorer": "multiple_choice"} | changes.pop("suite", {})
    return {
        "study": "tiny",
        "base": "models/base",
        "checkpoints": [{"name": "alpha", "model": "models/alpha"}, {"name": "beta", "model": "models/beta"}],
        "objectives": [{"name": "general", "suites": [suite]}],
    } | changes


def test_paths_below_the_roots_pass_with_their_links_resolved(settings: Settings) -> None:
    found = parsed(settings, json.dumps(document()), True)
    assert found["base"] == str(settings.roots[1] / "base")
    assert found["objectives"][0]["suites"][0]["path"] == str(settings.roots[0] / "suites" / "choice.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "/etc"},
        {"base": "../elsewhere"},
        {"base": "models/../../elsewhere"},
        {"base": "~root/model"},
        {"base": "link-out"},
        {"checkpoints": [{"name": "a", "model": "models/alpha", "adapter": "/etc/adapter"}]},
        {"references": [{"name": "r", "model": "/etc"}]},
        {"suite": {"path": "/etc/passwd"}},
        {"suite": {"path": "suites/../../../etc/passwd"}},
        {"suite": {"path": "file-link"}},
        {"suite": {"validation": "/etc/passwd"}},
        {"suite": {"report": "/etc/passwd"}},
        {"suite": {"scorer": "refusal", "phrases": "/etc/passwd"}},
        {"suite": {"scorer": "classifier", "model": "/etc"}},
        {"suite": {"scorer": "guard", "model": "/etc"}},
        {"objectives": [{"name": "g", "suites": [{"lm_eval": LM_EVAL | {"dataset_path": "/etc"}}]}]},
        {
            "objectives": [
                {"name": "g", "suites": [{"lm_eval": LM_EVAL | {"dataset_kwargs": {"data_files": {"t": "/etc/x"}}}}]}
            ]
        },
    ],
    ids=str,
)
def test_a_path_outside_the_roots_is_refused(settings: Settings, tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "link-out").symlink_to("/etc")
    (tmp_path / "file-link").symlink_to("/etc/passwd")
    assert "paths must lie below the service's roots" in refused(settings, document(**changes))


def test_nobody_learns_what_lies_outside_the_roots(settings: Settings, tmp_path: Path) -> None:
    """A file that is there and one that is not get the same answer, before either is looked at."""
    there, missing = tmp_path.parent / "there", tmp_path.parent / "missing"
    there.write_text("secret")
    said = [refused(settings, document(suite={"path": str(p)})).replace(p.name, "X") for p in (there, missing)]
    assert said[0] == said[1]


@pytest.mark.parametrize("out", ["/etc/x", "../x", "a/../../x", "link/x", "~root/x", "link/../../x", "\0"])
def test_an_export_stays_below_the_roots(tmp_path: Path, out: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/tmp")
    with pytest.raises(InputError, match="must lie below the service's roots|must be one that this system takes"):
        inside(Settings(storage="sqlite://", roots=(root.resolve(),)), out)


def test_an_export_below_a_root_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    roots = resolved_roots([str(tmp_path / "root")])
    assert inside(Settings(storage="sqlite://", roots=roots), "a/b") == (tmp_path / "real/a/b").resolve()
    assert inside(Settings(storage="sqlite://", roots=roots), str(tmp_path / "root" / "c")).name == "c"


def test_a_scorer_that_is_code_is_not_run_for_a_stranger(settings: Settings) -> None:
    said = refused(settings, document(suite={"scorer": "python:os:system"}))
    assert "the scorer python:os:system is code, which takes `mergefront serve --allow-code`" in said


def test_a_models_code_is_not_run_for_a_stranger(settings: Settings) -> None:
    said = refused(settings, document(workers={"trust_remote_code": True}))
    assert "trust_remote_code runs a model's code, which takes `mergefront serve --allow-code`" in said


def test_items_and_keys_do_not_go_to_an_endpoint_of_a_strangers_choice(settings: Settings) -> None:
    judge = {"scorer": "judge", "url": "http://evil.example/v1", "model": "m", "rubric": "r", "key_from": "PATH"}
    assert "--allow-url URL`, but got http://evil.example/v1" in refused(settings, document(suite=judge))


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("http://judge:8000/v1", True),
        ("http://judge:8000/v1/chat", True),
        ("http://judge:8000/v2", False),
        ("http://judge:8000/v1/../admin", False),
        ("http://judge:8000/v1evil", False),
        ("https://judge:8000/v1", False),
        ("http://judge:80000/v1", False),
        ("http://judge:8000.evil.example/v1", False),
        ("http://judge:8000@evil.example/v1", False),
        ("http://judge:8000/v1/%2e%2e/admin", False),
    ],
)
def test_a_judge_that_only_looks_like_an_allowed_one_is_refused(settings: Settings, url: str, passes: bool) -> None:
    allowed = replace(settings, urls=("http://judge:8000/v1",))
    judge = document(suite={"scorer": "judge", "url": url, "model": "m", "rubric": "r"})
    if passes:
        assert screened(allowed, judge)["study"] == "tiny"
    else:
        assert "--allow-url URL`, but got" in refused(allowed, judge)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "local:///etc",
        "http://169.254.169.254/latest/meta-data",
        "s3://somebodys-bucket/model",
        "simplecache::file:///etc",
        "hf://org/name::file:///etc",
        "file:///etc/with a blank",
    ],
)
def test_the_service_fetches_nothing_for_a_stranger(settings: Settings, url: str) -> None:
    """Neither files by another name, nor what only this machine reaches, nor what only its credentials open."""
    guard = {"suite": {"scorer": "guard", "model": url}}
    for changes in ({"base": url}, {"checkpoints": [{"name": "a", "model": url}]}, guard):
        assert "a URL must be one of `mergefront serve --allow-url URL`" in refused(settings, document(**changes))


def test_what_is_allowed_or_lies_on_the_hub_passes(settings: Settings) -> None:
    allowed = replace(settings, urls=("s3://ours/models",))
    checkpoints = [{"name": "a", "model": "s3://ours/models/a"}, {"name": "b", "model": "hf://org/name@main"}]
    assert screened(allowed, document(checkpoints=checkpoints))["checkpoints"] == checkpoints


def test_a_script_in_a_name_is_no_name(settings: Settings) -> None:
    said = refused(settings, document(study="<script>alert(1)</script>"))
    assert "study must match pattern" in said or "study must" in said
