"""Checkpoints of the replays are known by what they depend on, and one that diverged is noticed."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.papers.kit.models import Models, diverged, train
from examples.papers.kit.sizes import SHORT
from examples.papers.kit.world import base, run
from optimizer.demo.runs import Run
from search_spaces.errors import InputError

BASE = replace(base(SHORT), steps=2, batch=4)


def skill(start: str = "base", **changes: float) -> Run:
    return replace(run("recall", {"recall": 1.0}, steps=2, start=start), batch=4, **changes)


def test_a_checkpoint_is_another_where_its_start_is(tmp_path: Path) -> None:
    models = Models(tmp_path, 0)
    longer = [replace(BASE, steps=3), skill()]
    assert models.paths([BASE, skill()])["recall"] != models.paths(longer)["recall"]
    assert models.paths([BASE, skill()]) != Models(tmp_path, 1).paths([BASE, skill()])
    assert models.paths([BASE, skill()])["base"] == models.paths([BASE])["base"]


def test_a_start_must_stand_before_what_goes_on_from_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recall goes on from general"):
        Models(tmp_path, 0).paths([BASE, skill("general")])


def test_training_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    models, counted = Models(tmp_path, 0), list[tuple[int, int]]()
    train(models.jobs([BASE]), progress=lambda *_: None, processes=1)
    (tmp_path / f"{models.paths([BASE, skill()])['recall'].name}.partial").mkdir()  # what a kill leaves
    jobs = models.jobs([BASE, skill()])
    assert [job.run.name for job in jobs] == ["recall"]
    train([*jobs, *jobs], progress=lambda *steps: counted.append(steps), processes=1)  # two papers want it
    assert counted[-1] == (2, 2)
    assert models.jobs([BASE, skill()]) == []
    assert not list(tmp_path.glob("*.partial"))


def test_training_that_costs_what_it_trains_is_noticed(tmp_path: Path) -> None:
    good = replace(base(SHORT), tasks={"comparison": 1.0}, languages=("tavi",), steps=120, batch=16)
    hot = replace(run("hot", good.tasks, steps=2, learning_rate=50.0), languages=good.languages)
    models = Models(tmp_path, 0)
    train(models.jobs([good, hot]), progress=lambda *_: None, processes=1)
    assert list(diverged(models.paths([good, hot]))) == ["hot"]


def test_a_base_that_answers_nothing_is_noticed(tmp_path: Path) -> None:
    models = Models(tmp_path, 0)
    lost = replace(BASE, learning_rate=1e30)
    train(models.jobs([lost]), progress=lambda *_: None, processes=1)
    assert "it diverged" in diverged(models.paths([lost]))["base"]
