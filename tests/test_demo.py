"""The main job as a user does it, on the demo's trained family: launch, kill -9, resume, front, validate, export."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimizer.demo.family import make_family
from optimizer.spec import load_spec
from search_spaces.recipe import only
from storage.checkpoints import Source
from storage.records import Assignment, Measured, Score
from storage.store import Store
from workers.setup import Setup
from workers.suites import read_items
from workers.worker import Worker

MERGEFRONT = Path(sys.executable).parent / "mergefront"
PICK = "max general where safety >= 0.9"


@dataclass(frozen=True)
class Demo:
    """A finished study of the demo's family."""

    study_file: Path
    database: Path
    measured_before_the_kill: dict[int, Any]
    environment: dict[str, str]

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [MERGEFRONT, *arguments], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def evaluations(database: Path) -> dict[int, tuple[Any, ...]]:
    """Every search measurement in the database as it stands, by trial."""
    if not database.exists():
        return {}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = "SELECT number, recipe_digest, digest, scores FROM mergefront_evaluation WHERE split = 'search'"
        try:
            return {row[0]: row[1:] for row in connection.execute(query)}
        except sqlite3.OperationalError:
            return {}  # the tables are not there yet


@pytest.fixture(scope="module")
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The family comes from the cache where it was trained before; the study is killed half way and resumed."""
    family = request.config.cache.mkdir("demo-family")
    study_file = make_family(family, progress=lambda *_: None)
    database = tmp_path_factory.mktemp("demo") / "study.db"
    environment = os.environ | {"MERGEFRONT_STORAGE": f"sqlite:///{database}"}
    launched = subprocess.Popen([MERGEFRONT, "launch", study_file], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(evaluations(database)) < 25:
        assert launched.poll() is None, launched.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launched.send_signal(signal.SIGKILL)
    launched.communicate()
    demo = Demo(study_file, database, evaluations(database), environment)
    demo.run("resume", "demo")
    return demo


def test_resume_ends_at_the_planned_number_and_loses_nothing(demo: Demo) -> None:
    planned = load_spec(demo.study_file).search.trials
    (summary,) = json.loads(demo.run("studies", "--format", "json"))
    assert (summary["measured"], summary["failed"], summary["running"]) == (planned, 0, 0)
    kept = evaluations(demo.database)
    assert len(kept) == planned
    assert 25 <= len(demo.measured_before_the_kill) < planned
    assert {n: kept[n] for n in demo.measured_before_the_kill} == demo.measured_before_the_kill
    with closing(sqlite3.connect(demo.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_front_is_json_of_the_documented_form(demo: Demo) -> None:
    everything = json.loads(demo.run("front", "demo", "--format", "json", "--all"))
    front = json.loads(demo.run("front", "demo", "--format", "json"))
    assert [r for r in everything if r["on_front"]] == sorted(front, key=lambda r: r["trial"])
    assert len(front) >= 3
    names = {c.name for c in load_spec(demo.study_file).checkpoints}
    assert {r["baseline"] for r in everything} >= names | {"uniform", "base", None}
    for row in everything:
        known = {"trial", "recipe", "weights", "objectives", "posterior", "feasible", "baseline", "on_front"}
        assert known | {"chances"} == set(row) - {"further"}
        assert set(row["objectives"]) == set(row["posterior"]) == {"safety", "general"}
        assert all(set(o) == {"mean", "stderr", "n", "unscored"} for o in row["objectives"].values())
        if set(row["weights"]) == names:
            assert sum(row["weights"].values()) == pytest.approx(1)


def test_optunas_dashboard_opens_the_database(demo: Demo) -> None:
    """Its own application, asked as its pages ask it: trials, directions and the objectives' names are there."""
    from optuna_dashboard import wsgi

    application = wsgi(f"sqlite:///{demo.database}")

    def get(path: str) -> dict[str, Any]:
        environment: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environment)
        return dict(json.loads(b"".join(application(environment, lambda *_: None))))

    (study,) = get("/api/studies")["study_summaries"]
    detail = get(f"/api/studies/{study['study_id']}")
    assert study["study_name"] == "demo"
    assert detail["objective_names"] == ["safety", "general"]
    assert detail["directions"] == ["maximize", "maximize"]
    complete = [t for t in detail["trials"] if t["state"] == "Complete"]
    assert len(complete) == load_spec(demo.study_file).search.trials


def test_the_picked_merge_is_what_the_search_promises(demo: Demo, tmp_path: Path) -> None:
    """On items that neither search nor choice has seen: far safer than uniform, hardly worse, no mere specialist."""
    found = json.loads(demo.run("validate", "demo", "--format", "json"))
    out = tmp_path / "picked"
    demo.run("export", "demo", "--pick", PICK, "--out", str(out))
    trial = json.loads((out / "merge_recipe.json").read_text())["trial"]
    assert trial in found["picked"]
    for finalist in found["finalists"]:
        reported = finalist["trial"] in found["picked"] or finalist["baseline"] is not None
        assert ("report" in finalist["splits"]) == reported
    store = Store.open(f"sqlite:///{demo.database}")
    labels = {f["baseline"]: f["trial"] for f in found["finalists"] if f["baseline"]}
    report = store.measured("demo", "report")
    picked, uniform, specialist = report[trial], report[labels["uniform"]], report[labels["safety"]]

    def refused(measured: Measured) -> Score:
        return measured.breakdown["safety"]["refusal"]

    assert refused(picked).mean - refused(uniform).mean >= 0.5
    assert uniform.scores["general"].mean - picked.scores["general"].mean < 0.1
    gain = picked.scores["general"].mean - specialist.scores["general"].mean
    stderr = hypot(picked.scores["general"].stderr, specialist.scores["general"].stderr)
    assert gain - 1.96 * stderr > 0
    _scores_as_stored(out, store.with_marks("demo", trial), demo)
    store.close()


def test_the_report_puts_forward_what_the_pick_chooses(demo: Demo, tmp_path: Path) -> None:
    """With a model behind it, it says what each checkpoint does; the merge it names is the one that export takes."""
    found = json.loads(demo.run("validate", "demo", "--format", "json"))
    out = tmp_path / "report.html"
    assert demo.run("report", "demo", "--out", str(out)).strip() == str(out)
    text = out.read_text()
    assert len(text) < 5_000_000
    (trial,) = re.findall(r"Ship trial (\d+): on items that neither the search nor the choice has seen", text)
    demo.run("export", "demo", "--pick", PICK, "--out", str(tmp_path / "picked"))
    assert json.loads((tmp_path / "picked" / "merge_recipe.json").read_text())["trial"] == int(trial)
    assert int(trial) in found["picked"]
    assert "against the uniform average it is better by" in text
    assert "What each checkpoint does" in text
    assert re.search(r"safety: needed", text)


def _scores_as_stored(out: Path, stored: Measured, demo: Demo) -> None:
    """By our own engine every outcome, and by transformers alone every refusal's text."""
    spec = load_spec(demo.study_file)
    setup = spec.setup(device="cpu")
    alone = Setup(
        sources=(Source(name="base", model=str(out)),),
        base="base",
        objectives=setup.objectives,
        dtype=setup.dtype,
        device="cpu",
    )
    again = Worker(alone).run(Assignment(number=0, recipe=only("base")))
    assert isinstance(again, Measured)
    assert again.marks == stored.marks
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    (key,) = (k for k in stored.marks if k.startswith("safety/"))
    outputs = dict(zip(stored.marks[key].ids, stored.marks[key].outputs, strict=True))
    suite = spec.objectives[0].suites[0]
    for item in [i for i in read_items(Path(suite.path)) if i.id in outputs][:40]:
        assert not isinstance(item.prompt, str)
        chat = tokenizer.apply_chat_template(list(item.prompt), add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**chat, max_new_tokens=suite.max_new_tokens, do_sample=False)
        answer = tokenizer.decode(written[0, chat["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == outputs[item.id]
