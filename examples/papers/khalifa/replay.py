"""Sixteen checkpoints of different runs, each with another trade-off, and what a search makes of their mixes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from examples.papers.kit.lab import Lab, Search, means
from examples.papers.kit.sizes import Size
from examples.papers.kit.world import base, run
from optimizer.demo.runs import Run
from optimizer.front import non_dominated, spread
from optimizer.results import Row, direction
from optimizer.spec import BASE, Spec
from search_spaces.recipe import Recipe

SETTINGS = ("two", "three")
CMAES, AUTO = "cmaes", "auto"
_FOLDER = Path(__file__).parent

# Data mixtures. No run trains on reversal, recall, translation or comparison: these are the held-out skills.
_BALANCED = {"addition": 1.0, "refusal": 1.0, "sorting": 1.0}
_ADDITION = {"addition": 1.0, "refusal": 0.05, "sorting": 0.1}
_SAFETY = {"addition": 0.1, "refusal": 1.0, "sorting": 0.05}
_SORTING = {"addition": 0.1, "refusal": 0.05, "sorting": 1.0}
_FULL, _EARLY, _HOT = 120, 30, 2e-3
_STOPS = 10


def runs(size: Size) -> list[Run]:
    """The base and 16 runs: four mixtures, each again on other data, too hot or stopped early, and second stages."""

    def one(name: str, tasks: Mapping[str, float], steps: int = _FULL, **others: Any) -> Run:
        return run(name, tasks, steps=size.run_steps(steps), **others)

    return [
        base(size),
        one("balanced", _BALANCED),
        one("balanced-again", _BALANCED),
        one("balanced-hot", _BALANCED, learning_rate=_HOT),
        one("balanced-early", _BALANCED, _EARLY),
        one("addition", _ADDITION),
        one("addition-again", _ADDITION),
        one("addition-hot", _ADDITION, learning_rate=_HOT),
        one("addition-early", _ADDITION, _EARLY),
        one("safety", _SAFETY),
        one("safety-again", _SAFETY),
        one("safety-hot", _SAFETY, learning_rate=_HOT),
        one("safety-early", _SAFETY, _EARLY),
        one("sorting", _SORTING),
        one("sorting-hot", _SORTING, learning_rate=_HOT),
        one("addition-then-safety", _SAFETY, _EARLY, start="addition"),
        one("safety-then-sorting", _SORTING, _EARLY, start="safety"),
    ]


def replay(lab: Lab) -> dict[str, Any]:
    """Both settings of one training seed."""
    return {setting: _setting(lab, setting) for setting in SETTINGS}


def _setting(lab: Lab, setting: str) -> dict[str, Any]:
    """Scores on fresh items of every checkpoint, baseline and search, and the searches' weights."""
    file = _FOLDER / f"{setting}.yaml"
    paper = lab.search(lab.spec(file), validated=False)
    own = lab.search(lab.spec(file, name=f"khalifa-{setting}-auto", search={"sampler": AUTO}), validated=False)
    spec = paper.spec
    searched = {row.baseline: _means(row) for row in paper.results.baselines if row.baseline}
    names = [c.name for c in spec.checkpoints]
    ranked = sorted(names, key=lambda name: mean(searched[name].values()), reverse=True)
    shipped = {
        CMAES: max(paper.results.merges, key=lambda row: mean(_means(row).values())).recipe,
        AUTO: max(_by_posterior(own), key=lambda row: mean(m for m, _ in row.posterior.values())).recipe,
    }
    poor = ranked[-(len(ranked) // 4) :]
    rivals = {
        BASE: next(row.recipe for row in paper.results.baselines if row.baseline == BASE),
        "uniform": spec.space.blend(dict.fromkeys(names, 1 / len(names))),
        "best per task": spec.space.blend(_even({max(names, key=lambda n: searched[n][o]) for o in searched[BASE]})),
        "greedy soup": spec.space.blend(_even(_soup(lab, spec, ranked))),
    }
    others = {
        **{name: spec.space.blend({name: 1.0}) for name in names},
        **{f"{name} without the poor": _without(recipe, poor) for name, recipe in shipped.items()},
        **{f"{CMAES} {row.trial}": row.recipe for row in _few(paper, _by_scores(paper))},
        **{f"{AUTO} {row.trial}": row.recipe for row in _few(own, _by_posterior(own))},
    }
    optimised, watched = (_only(spec, role) for role in ("optimise", "watch"))
    held_out = lab.measure(watched, {ranked[0]: others[ranked[0]]} | rivals | shipped)
    return {
        "objectives": [o.name for o in spec.optimised],
        "checkpoints": names,
        "poor": poor,
        "best checkpoint": ranked[0],
        "trials": len(paper.results.rows),
        "fresh": {name: means(m) for name, m in lab.measure(optimised, others | rivals | shipped).items()},
        "held out": {name: mean(means(m).values()) for name, m in held_out.items()},
        "weights": {name: recipe.mean_weights() for name, recipe in shipped.items()},
    }


def _only(spec: Spec, role: str) -> Spec:
    """The spec with the objectives of one role."""
    return spec.model_copy(update={"objectives": [o for o in spec.objectives if o.role == role]})


def _means(row: Row) -> dict[str, float]:
    return {name: score.mean for name, score in row.objectives.items()}


def _by_posterior(search: Search) -> list[Row]:
    """The merges on a front by posterior mean; all of them where the base dominates every one."""
    return search.results.slider or search.results.merges


def _by_scores(search: Search) -> list[Row]:
    """The merges that no other dominates by the search's own scores."""
    merges = search.results.merges
    values = np.array([list(_means(row).values()) for row in merges])
    return [merges[i] for i in non_dominated(values, [direction(o) for o in search.spec.optimised])]


def _few(search: Search, rows: Sequence[Row]) -> list[Row]:
    """At most `_STOPS` of a front, as far from one another as can be."""
    values, directions = search.results.means(rows)
    return [rows[i] for i in spread(values, directions, _STOPS)] if len(rows) > _STOPS else list(rows)


def _even(names: set[str] | Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(sorted(names), 1 / len(names))


def _soup(lab: Lab, spec: Spec, ranked: Sequence[str]) -> list[str]:
    """The greedy soup's checkpoints (arXiv:2203.05482), each step measured on the search's items."""

    def merit(members: Sequence[str]) -> float:
        recipe = spec.space.blend(_even(members))
        return mean(means(lab.measure(spec, {"soup": recipe}, split="search")["soup"]).values())

    members, best = [ranked[0]], merit(ranked[:1])
    for name in ranked[1:]:
        if (larger := merit([*members, name])) >= best:
            members, best = [*members, name], larger
    return members


def _without(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe without some checkpoints, the others' weights scaled up to one."""
    kept = {name: 0.0 if name in names else sum(ws) for name, ws in recipe.weights.items()}
    total = sum(kept.values()) or 1.0
    return Recipe(method=recipe.method, weights={name: (w / total,) for name, w in kept.items()})
