"""Mixtures of general and safety data, and six languages alone: merges by objective and by language against mixing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from examples.papers.kit.lab import Lab, means, parts
from examples.papers.kit.sizes import Size
from examples.papers.kit.world import GENERAL, LANGUAGES, base, run
from optimizer.demo.runs import Run
from optimizer.results import Results, Row
from optimizer.spec import BASE, Spec
from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe, only

STUDIES = {
    "sft": "mix-15",
    "dpo": "mix-15-dpo",
    "six-languages": "mix-15",
    "three-languages": "mix-15",
}
"""Each study file with the reference that its merges are to beat."""

AXES = ("general", "safety")
GRID, SEARCH = "grid", "search"
_GRID = (0.0, 0.3, 0.5, 0.7, 1.0)
_GRADIENTS = ((0.0, 1.0), (1.0, 0.0))
_FOLDER = Path(__file__).parent
_STEPS, _PREFERENCE_STEPS = 240, 120


def runs(size: Size) -> list[Run]:
    """The base, mixtures with 0, 15 and 100 % safety data by SFT and by DPO, and the 15 % mixture by language."""

    def one(name: str, safety: float, steps: int = _STEPS, **others: Any) -> Run:
        return run(name, _mixture(safety), steps=size.run_steps(steps), **others)

    def preferred(name: str, safety: float) -> Run:
        return one(f"{name}-dpo", safety, _PREFERENCE_STEPS, learning_rate=1e-4, beta=0.3)

    return [
        base(size),
        one("general", 0.0),
        one("mix-15", 0.15),
        one("safety", 1.0),
        one("mix-15-double", 0.15, 2 * _STEPS),
        preferred("general", 0.0),
        preferred("mix-15", 0.15),
        preferred("safety", 1.0),
        *(one(name, 0.15, 2 * _STEPS // len(LANGUAGES), languages=(name,)) for name in LANGUAGES),
    ]


def _mixture(safety: float) -> dict[str, float]:
    """Tasks of which a share is safety data: requests, the harmful ones refused."""
    return {name: (1 - safety) / len(GENERAL) for name in GENERAL if safety < 1} | (
        {"refusal": safety} if safety else {}
    )


def replay(lab: Lab) -> dict[str, Any]:
    """All four studies of one training seed."""
    return {"left out": sorted(lab.left_out), **{key: _study(lab, key) for key in STUDIES}}


def _study(lab: Lab, key: str) -> dict[str, Any]:
    """What the paper's grid and our search choose, and what fresh items say of these and of everything that is trained.

    Either chooses, by the search items, the merge whose lesser gain over the reference, of the two axes, is greatest.
    """
    spec = lab.spec(_FOLDER / f"{key}.yaml")
    trained = {name: only(name) for name in (BASE, *(c.name for c in (*spec.checkpoints, *spec.references)))}
    bar = means(lab.measure(spec, trained, split="search")[STUDIES[key]])
    tried = {method: recipes[:: round(1 / lab.size.trials)] for method, recipes in grids(spec).items()}
    by_hand = {method: _best(lab, spec, recipes, bar) for method, recipes in tried.items()}
    best = _best(lab, spec, list(by_hand.values()), bar)
    found = lab.search(spec, validated=False).results
    searched = max(_searched(found), key=lambda row: balance(_likely(row), bar)).recipe
    merges = {**by_hand, SEARCH: searched}
    fresh = lab.measure(spec, trained | merges)
    return {
        "reference": STUDIES[key],
        "methods": list(by_hand),
        GRID: best.method,
        "worst language": _worst_language(lab, spec, best),
        "tried": {GRID: sum(map(len, tried.values())), SEARCH: len(found.rows)},
        "recipes": {name: recipe.to_json() for name, recipe in merges.items()},
        "fresh": {name: means(m) for name, m in fresh.items()},
        "parts": {name: parts(m) for name, m in fresh.items()},
    }


def _best(lab: Lab, spec: Spec, recipes: Sequence[Recipe], bar: Mapping[str, float]) -> Recipe:
    """The best balanced of some recipes by the search items."""
    asked = lab.measure(spec, {str(n): recipe for n, recipe in enumerate(recipes)}, split="search")
    return recipes[int(max(asked, key=lambda n: balance(means(asked[n]), bar)))]


def balance(scores: Mapping[str, float], bar: Mapping[str, float]) -> float:
    """The lesser of the gains on both axes."""
    return min(scores[axis] - bar[axis] for axis in AXES)


def _searched(found: Results) -> list[Row]:
    """Merges by the methods that are searched: no checkpoint alone, and no baseline of another method."""
    methods = found.spec.space.methods
    return [r for r in found.merges if r.recipe.method in methods and sum(map(any, r.recipe.weights.values())) > 1]


def _likely(row: Row) -> dict[str, float]:
    return {name: mean for name, (mean, _) in row.posterior.items()}


def _worst_language(lab: Lab, spec: Spec, recipe: Recipe) -> str:
    """The language that a merge costs most general quality, by the search items; fresh ones say how much."""
    asked = lab.measure(spec, {BASE: only(BASE), "merge": recipe}, split="search")
    before, after = (parts(asked[name])["general"] for name in (BASE, "merge"))
    return min(LANGUAGES, key=lambda lang: after[f"lang:{lang}"] - before[f"lang:{lang}"])


def grids(spec: Spec) -> dict[str, list[Recipe]]:
    """What the paper tries by hand, by method."""
    tried = _by_objective if len(spec.checkpoints) == 2 else _alike
    return {method: tried(spec, method) for method in spec.search_space.methods}


def _by_objective(spec: Spec, method: str) -> list[Recipe]:
    """Two checkpoints: every weight of the grid, the same at all depths or from one end of the model to the other."""
    first, second = (c.name for c in spec.checkpoints)
    inner = _GRID[1:-1]
    if _on_simplex(method):
        shares = [(a, b) for a, b in product(_GRID, repeat=2) if a != b or a in inner]
        return [_recipe(spec, method, {first: share, second: tuple(1 - x for x in share)}) for share in shares]
    constant = [((a, a), (b, b)) for a, b in product(_GRID[1:], repeat=2)]
    pairs = [*constant, *zip(_GRADIENTS, reversed(_GRADIENTS), strict=True)]
    return [_recipe(spec, method, {first: a, second: b}) for a, b in pairs]


def _alike(spec: Spec, method: str) -> list[Recipe]:
    """Several checkpoints: all with one weight, which is searched where it is free."""
    names = [c.name for c in spec.checkpoints]
    scales: Sequence[float] = (1 / len(names),) if _on_simplex(method) else _GRID[1:]
    return [_recipe(spec, method, dict.fromkeys(names, (scale,))) for scale in scales]


def _on_simplex(method: str) -> bool:
    return CATALOGUE[method].drawn == "simplex"


def _recipe(spec: Spec, method: str, weights: Mapping[str, tuple[float, ...]]) -> Recipe:
    """The method's recipe with the parameters that the study file fixes."""
    return replace(replace(spec.space, methods=(method,)).blend({}), weights=weights)
