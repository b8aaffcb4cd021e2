"""The recipes and the data of the replay of Morrison et al."""

import random

import pytest

from examples.papers.kit.sizes import FULL
from examples.papers.morrison.replay import GUESS, STEPS, fixed, runs
from optimizer.demo.runs import Run

RUNS = {run.name: run for run in runs(FULL)}
RECIPES = fixed()


def total(name: str) -> float:
    """The sum of a recipe's weights."""
    return sum(sum(weights) for weights in RECIPES[name].weights.values())


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("interpolation", "wise_ft"))])
def test_interpolation_is_normalised(name: str) -> None:
    assert total(name) == pytest.approx(1.0)


def test_task_arithmetic_adds_to_the_whole_generalist() -> None:
    assert total("task_arithmetic safety 0.4") == pytest.approx(1.4)
    assert total("task_arithmetic all guess") == pytest.approx(1.0 + sum(GUESS.values()))


def drawn(run: Run) -> list[tuple[str, str]]:
    """Words of examples of a run's data, prompt and answer."""
    rng = random.Random(0)
    return [run.world.draw_example(task, rng.choice(run.languages), rng) for task in run.tasks for _ in range(20)]


def test_data_of_the_new_language_are_in_it() -> None:
    words = set(RUNS["mlok"].world.lexicon("mlok").values())
    assert all(words.issuperset(f"{prompt} {answer}".split()) for prompt, answer in drawn(RUNS["mlok"]))


def test_data_of_safety_are_refusals_alone() -> None:
    world = RUNS["safety"].world
    assert {answer for _, answer in drawn(RUNS["safety"])} <= {world.refusal(name) for name in world.languages}


def test_the_generalist_reads_nothing_of_what_it_shall_learn() -> None:
    assert not [task for task in RUNS["general"].tasks if task in ("sorting", "warning") or task.startswith("mlok")]


def test_retraining_mixes_data_by_their_sizes() -> None:
    tasks = RUNS["rt-mlok"].tasks
    share = sum(weight for task, weight in tasks.items() if task.startswith("mlok")) / sum(tasks.values())
    assert share == pytest.approx(STEPS["mlok"] / (STEPS["general"] + STEPS["mlok"]))
    assert RUNS["rt-mlok"].steps == STEPS["general"] + STEPS["mlok"]
