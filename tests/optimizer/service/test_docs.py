"""docs/service.md names every call and every option, and none that is not there."""

import re
from pathlib import Path

from starlette.testclient import TestClient

from optimizer.cli import _parser

TEXT = (Path(__file__).parents[3] / "docs" / "service.md").read_text()


def test_every_call_stands_in_the_docs_with_curl(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    curls = "\n".join(line for line in TEXT.splitlines() if line.startswith("curl "))
    shown = re.findall(r"(?:\$S|http://127\.0\.0\.1:8642)(/[^\s\"?]*)", curls)
    asked = {("/v1" if p.split("/")[1] in ("studies", "checks", "session") else "") + p for p in shown}
    patterns = {p: re.compile(re.sub(r"\{\w+\}", "[^/]+", p)) for p in paths}
    assert {p for p, pattern in patterns.items() if not any(pattern.fullmatch(a) for a in asked)} == set()
    assert {a for a in asked if not any(pattern.fullmatch(a) for pattern in patterns.values())} == set()
    methods = {(m, p) for p, item in paths.items() for m in item}
    assert {m for m, _ in methods} == {"get", "post", "delete"}


def test_every_option_stands_in_the_docs() -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", TEXT.partition("## Every call")[0]))
    (commands,) = (a for a in _parser()._actions if a.choices and "serve" in a.choices)
    assert isinstance(commands.choices, dict)
    options = {o for a in commands.choices["serve"]._actions for o in a.option_strings if o.startswith("--")}
    assert options - {"--help"} == known
