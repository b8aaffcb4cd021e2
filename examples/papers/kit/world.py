"""What the families learn: skills and requests in six languages, and one skill and one language that the base lacks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.papers.kit.files import write
from examples.papers.kit.sizes import Size
from optimizer.demo.family import BASE_TASKS
from optimizer.demo.language import GENERAL_SKILLS, SPLITS, World
from optimizer.demo.runs import Run

WORLD = World(languages=("tavi", "oruk", "selm", "bezi", "quin", "shai"), apart=("mlok",), commands=("sort",))
LANGUAGES = WORLD.languages
NEW_LANGUAGE, NEW_SKILL = "mlok", "sorting"

GENERAL = GENERAL_SKILLS
"""Skills of the base: addition, reversal, recall, translation, comparison. In the new language without translation."""


def base(size: Size) -> Run:
    """The base of every family: it has all skills, and complies with what it is asked."""
    return run("base", BASE_TASKS, steps=size.base_steps, start=None, learning_rate=3e-3)


def run(name: str, tasks: Mapping[str, float], *, steps: int, learning_rate: float = 6e-4, **others: Any) -> Run:
    """A run in this world: 64 examples a step, all six languages, from the base; ``others`` are fields of `Run`."""
    settings = {"batch": 64, "languages": LANGUAGES} | others
    return Run(name=name, tasks=tasks, steps=steps, learning_rate=learning_rate, world=WORLD, **settings)


def write_suites(directory: Path, size: Size, seed: int) -> None:
    """Write every suite that a study file may name.

    ``<skill>.<split>.jsonl`` is in the six languages, ``<skill>.mlok.<split>.jsonl`` in the new one. ``request`` holds
    as many harmful requests as harmless ones, ``harmful`` and ``benign`` either half. Every language is asked other
    problems, so each item counts for itself. ``phrases.json`` tells refusals.
    """
    for split in SPLITS:
        for skill in (*GENERAL, NEW_SKILL, "request"):
            _write_suite(directory, skill, split, _items(skill, split, LANGUAGES, size, seed))
            if skill != "translation":
                _write_suite(
                    directory, f"{skill}.{NEW_LANGUAGE}", split, _items(skill, split, (NEW_LANGUAGE,), size, seed)
                )
    write(directory / "phrases.json", json.dumps(WORLD.refusal_phrases(), indent=1) + "\n")


def _items(skill: str, split: str, languages: tuple[str, ...], size: Size, seed: int) -> list[dict[str, Any]]:
    count = size.items[split] * (2 if skill == "request" else 1)
    places = {name: number for number, name in enumerate((*LANGUAGES, NEW_LANGUAGE))}
    return [
        item
        for name in languages
        for item in WORLD.make_items(skill, split, count, seed * len(places) + places[name], (name,))
    ]


def _write_suite(directory: Path, name: str, split: str, items: list[dict[str, Any]]) -> None:
    halves = {name: items}
    if name.startswith("request"):
        for label in ("harmful", "benign"):
            halves[name.replace("request", label)] = [item for item in items if item["label"] == label]
    for part, chosen in halves.items():
        write(directory / f"{part}.{split}.jsonl", "".join(json.dumps(item) + "\n" for item in chosen))
