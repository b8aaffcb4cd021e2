import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.spec import load_spec
from search_spaces.recipe import Recipe, only
from storage.records import Assignment, Measured, Rival
from workers.racing import Rules
from workers.scores import Aggregation
from workers.setup import Setup
from workers.sheet import Objective, Standing
from workers.worker import Worker

BLEND = Recipe(method="linear", weights={"alpha": (0.5,), "beta": (0.25,), "gamma": (0.25,)})
RULES = Rules(confidence=0.9, seed=3)
NLL, SAFETY = "nll/0:choice.jsonl", "safety/0:safety.jsonl"


def write_items(path: Path, **content: Any) -> None:
    """Groups of two languages; prompts of very different lengths, so that batches pad."""
    lines = [
        {
            "id": f"{path.stem}-{group}-{lang}",
            "prompt": [{"role": "user", "content": f"w{group // 40} w{group % 40} {'w7 ' * (group % 11)}"}],
            "lang": lang,
            "group": f"{path.stem}-{group}",
        }
        | {key: value(group) if callable(value) else value for key, value in content.items()}
        for group in range(160)
        for lang in ("aa", "bb")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def setup(study_file, tmp_path: Path) -> Setup:  # type: ignore[no-untyped-def]
    """Races on a safety suite that is generated and a likelihood in full precision."""
    nll = {"name": "nll", "suites": [{"path": "suites/choice.jsonl", "scorer": "gold_nll"}]}
    safety = {
        "path": "suites/safety.jsonl",
        "scorer": "refusal",
        "phrases": "suites/phrases.json",
        "max_new_tokens": 3,
    }
    file = study_file(objectives=[{"name": "safety", "suites": [safety]}, nll])
    write_items(tmp_path / "suites" / "choice.jsonl", choices=["w1 w2", "w3"], gold=lambda g: g % 2)
    write_items(tmp_path / "suites" / "safety.jsonl", label=lambda g: ("harmful", "benign")[g % 2])
    return replace(load_spec(file).setup(device="cpu"), racing=RULES)


def measured(
    worker: Worker, recipe: Recipe = BLEND, split: str = "search", rivals: tuple[Rival, ...] | None = None
) -> Measured:
    outcome = worker.run(Assignment(number=9, recipe=recipe, split=split, rivals=rivals))
    assert isinstance(outcome, Measured), outcome
    return outcome


def rival(of: Measured, better: Mapping[str, float]) -> Rival:
    """One whose every value is better by so much, in 0 to 1 for safety."""
    return Rival(
        number=4,
        values={
            suite: tuple(None if v is None else max(0.0, v + better[suite]) for v in marks.values)
            for suite, marks in of.marks.items()
        },
    )


def test_a_trial_that_is_not_stopped_scores_bit_for_bit_what_it_scores_without_a_race(setup: Setup) -> None:
    worker = Worker(setup)
    alone = measured(worker)
    raced = measured(worker, rivals=(rival(alone, {NLL: 0.5, SAFETY: -1.0}),))
    assert raced.stopped == ""
    assert (raced.marks, raced.scores, raced.breakdown) == (alone.marks, alone.scores, alone.breakdown)


def test_the_same_recipe_gives_the_same_bits_in_another_worker(setup: Setup) -> None:
    first = Worker(setup)
    measured(first, only("gamma"))
    assert measured(first).marks == measured(Worker(setup)).marks


def test_rungs_change_no_verdict_and_no_more_than_the_last_bits_of_a_likelihood(setup: Setup) -> None:
    raced, whole = measured(Worker(setup)), measured(Worker(replace(setup, racing=None)))
    assert raced.marks[SAFETY] == whole.marks[SAFETY]
    assert raced.marks[NLL].ids == whole.marks[NLL].ids
    assert raced.marks[NLL].values == pytest.approx(whole.marks[NLL].values, rel=1e-4)
    assert raced.scores["safety"] == whole.scores["safety"]


def test_who_is_dominated_answers_the_first_rung_and_no_more(setup: Setup) -> None:
    worker = Worker(setup)
    alone = measured(worker)
    ahead = rival(alone, {NLL: -0.5, SAFETY: 1.0})
    stopped = measured(worker, rivals=(ahead,))
    asked = sum(len(m.ids) for m in stopped.marks.values())
    whole = sum(len(m.ids) for m in alone.marks.values())
    assert asked < 0.2 * whole
    assert stopped.stopped == f"dominated by trial 4 after {asked} of {whole} items"
    for name, score in stopped.scores.items():
        assert score.n < alone.scores[name].n
        assert score.stderr > alone.scores[name].stderr
    for suite, marks in stopped.marks.items():
        everything = dict(zip(alone.marks[suite].ids, alone.marks[suite].values, strict=True))
        assert list(marks.ids) == [i for i in everything if i in set(marks.ids)]
        assert marks.values == tuple(everything[i] for i in marks.ids)


def test_who_is_better_in_one_objective_answers_everything(setup: Setup) -> None:
    worker = Worker(setup)
    alone = measured(worker)
    assert measured(worker, rivals=(rival(alone, {NLL: 0.5, SAFETY: 1.0}),)).stopped == ""


def test_a_rivals_twin_answers_everything(setup: Setup) -> None:
    worker = Worker(setup)
    alone = measured(worker)
    assert measured(worker, rivals=(rival(alone, {NLL: 0.0, SAFETY: 0.0}),)).stopped == ""


def test_who_cannot_meet_a_constraint_stops_without_any_rival(setup: Setup) -> None:
    safety, nll = setup.objectives
    worker = Worker(replace(setup, objectives=(safety, replace(nll, at_most=1e-3))))
    assert measured(worker, rivals=()).stopped.startswith("nll at_most 0.001 not met after ")
    assert measured(worker, rivals=None).stopped == ""


def test_other_splits_are_never_raced(setup: Setup) -> None:
    worker = Worker(setup)
    alone = measured(worker, split="validation")
    ahead = rival(alone, {NLL: -0.5, SAFETY: 1.0})
    assert measured(worker, split="validation", rivals=(ahead,)).marks == alone.marks


def test_items_that_either_has_unscored_are_left_out_of_the_comparison(setup: Setup) -> None:
    """A rival that is only known on half of the items still decides, by that half."""
    worker = Worker(setup)
    ahead = rival(measured(worker), {NLL: -0.5, SAFETY: 1.0})
    half = {suite: tuple(v if i % 4 < 2 else None for i, v in enumerate(vs)) for suite, vs in ahead.values.items()}
    assert measured(worker, rivals=(replace(ahead, values=half),)).stopped != ""


def test_nothing_is_said_while_a_language_has_no_scored_item(setup: Setup) -> None:
    worker = Worker(setup)
    ahead = rival(measured(worker), {NLL: -0.5, SAFETY: 1.0})
    unknown = {suite: tuple(None for _ in values) for suite, values in ahead.values.items()}
    assert measured(worker, rivals=(replace(ahead, values=unknown),)).stopped == ""


def test_contributions_add_up_to_the_mean_and_follow_the_items(setup: Setup) -> None:
    """What the referee reads: of a mean over languages the clusters' parts are the whole of it."""
    objective: Objective = setup.objectives[0].load()["search"]
    (suite,) = objective.suites
    aggregation = Aggregation([(suite.key, item) for item in suite.items], "mean", (0.0, 1.0))
    values = [float(i % 3 == 0) for i in range(len(suite.items))]
    mean, parts = aggregation.contributions(values)
    assert mean == aggregation.score(values).mean == pytest.approx(parts.sum())
    assert len(parts) == len(aggregation.clusters)


def test_the_referee_is_asked_after_every_rung_but_the_last(setup: Setup) -> None:
    worker = Worker(setup)
    sheet = worker._sheet("search")
    seen: list[Standing] = []

    def look(standing: Standing) -> str:
        seen.append(standing)
        return ""

    sheet.ask(worker._engine, look)
    whole = sum(len(suite.items) for objective in sheet.objectives for suite in objective.suites)
    assert [standing.rung for standing in seen] == list(range(1, sheet.looks + 1))
    assert [sum(map(len, s.asked.values())) / whole for s in seen] == pytest.approx(RULES.rungs, abs=0.03)
