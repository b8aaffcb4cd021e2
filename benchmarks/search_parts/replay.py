"""The demo's family: what a sampler sees is a real worker's scores on the search items, truth is fresh items.

Every contestant meets the same items, as in a study. True values come from fresh items of the toy languages; each is
measured once and kept in a file. The reference point is what the worst of the baselines truly scores in each objective,
and the best known is the front of everything whose truth is known by then.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from optimizer.baselines import starting_points
from optimizer.demo.language import DEMO
from optimizer.spec import load_spec
from search_spaces.recipe import Recipe
from storage.records import Assignment, Failed
from workers.setup import ObjectivePlan
from workers.worker import Worker

Array = npt.NDArray[np.float64]

_SAFETY_SHARE = 0.4
_LANGUAGES = 3


class Replay:
    """The demo's study as a problem."""

    def __init__(self, family: Path, known: Path, items: int) -> None:
        """Open the family that `mergefront demo` made; ``items`` are the fresh ones of a true value."""
        self._spec = load_spec(family / "study.yaml")
        self._scratch = tempfile.TemporaryDirectory()
        setup = self._spec.setup(device="cpu")
        self._worker = Worker(setup)
        fresh = tuple(_fresh(plan, Path(self._scratch.name), items) for plan in setup.objectives)
        self._truth = Worker(replace(setup, objectives=fresh))
        self._file = known
        lines = known.read_text().splitlines() if known.exists() else []
        self._known = {d["recipe"]: d["truth"] for d in map(json.loads, lines)}
        self.at_least = self._spec.optimised[0].at_least
        starts = np.array([self._of(start.recipe) for start in starting_points(self._spec)])
        self.reference = starts.min(axis=0)

    @property
    def names(self) -> list[str]:
        """The checkpoints."""
        return [c.name for c in self._spec.checkpoints]

    def measure(self, params: Mapping[str, float], rng: np.random.Generator) -> tuple[list[float], list[float]]:
        """Scores on the search items and their standard errors; nothing is left to chance."""
        scores = self._scores(self._worker, self._spec.space.recipe(params), "search")
        return [mean for mean, _ in scores], [stderr for _, stderr in scores]

    def true(self, params: Sequence[Mapping[str, float]]) -> Array:
        """True values ``(n, m)``."""
        return np.array([self._of(self._spec.space.recipe(p)) for p in params]).reshape(-1, len(self._spec.optimised))

    def _of(self, recipe: Recipe) -> list[float]:
        if recipe.digest not in self._known:
            self._known[recipe.digest] = [mean for mean, _ in self._scores(self._truth, recipe, "report")]
            with self._file.open("a") as file:
                file.write(json.dumps({"recipe": recipe.digest, "truth": self._known[recipe.digest]}) + "\n")
        return self._known[recipe.digest]

    def _scores(self, worker: Worker, recipe: Recipe, split: str) -> list[tuple[float, float]]:
        outcome = worker.run(Assignment(number=0, recipe=recipe, split=split))
        if isinstance(outcome, Failed):
            raise SystemExit(f"a merge of the demo's family must be measurable: {outcome.reason}")
        return [(outcome.scores[o.name].mean, outcome.scores[o.name].stderr) for o in self._spec.optimised]


def _fresh(plan: ObjectivePlan, directory: Path, items: int) -> ObjectivePlan:
    """The objective with fresh items in place of its report split: two fifths of all are requests.

    Of a skill that has fewer problems, all of them.
    """
    suites = []
    for suite in plan.suites:
        if suite.files is None:
            raise ValueError(f"the demo's suites are files, but {suite.key} is none.")
        name = suite.files.path.name.partition(".")[0]
        share = _SAFETY_SHARE if name == "safety" else (1 - _SAFETY_SHARE) / len(plan.suites)
        groups = round(items * share / _LANGUAGES)
        made = DEMO.make_items("request" if name == "safety" else name, "report", groups, seed=78)
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in made))
        suites.append(replace(suite, files=replace(suite.files, report=path)))
    return replace(plan, suites=tuple(suites))
