"""Where a search starts, and what every merge must beat: uniform, each checkpoint, base, references, Model Stock."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp

from optimizer.spec import BASE, MODEL_STOCK, UNIFORM, Spec
from search_spaces.methods import SIMPLEX_METHODS
from search_spaces.recipe import Recipe, only


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A recipe that is measured first; without a name it is a starting point of the user's and no baseline."""

    name: str | None
    recipe: Recipe


def starting_points(spec: Spec) -> list[Baseline]:
    """Uniform, every corner, the base, every reference, Model Stock, weights by the numbers of examples where every
    checkpoint has one, then the points from the study file.

    For task-vector methods a corner is that checkpoint's task vector at scale 1, uniform every one at 1/k.
    """
    space = spec.space
    names = [c.name for c in spec.checkpoints]
    uniform = Baseline(name=UNIFORM, recipe=space.blend(dict.fromkeys(names, 1 / len(names))))
    corners = [Baseline(name=name, recipe=space.blend({name: 1.0})) for name in names]
    outside = [Baseline(name=name, recipe=only(name)) for name in [BASE, *(r.name for r in spec.references)]]
    own = [Baseline(name=None, recipe=space.blend(_scaled(spec, weights))) for weights in spec.search.start_from]
    return [uniform, *corners, *outside, *_model_stock(names), *_by_examples(spec), *own]


def _model_stock(names: list[str]) -> list[Baseline]:
    """Model Stock has no weights: nothing to search, something to beat."""
    recipe = Recipe(method=MODEL_STOCK, weights=dict.fromkeys(names, (1 / len(names),)))
    return [Baseline(name=MODEL_STOCK, recipe=recipe)] if len(names) > 1 else []


def _by_examples(spec: Spec) -> list[Baseline]:
    """A free guess: weights in proportion to what each checkpoint was trained on. For task vectors the largest set has
    scale 1, after omega = |D| / |G| of Morrison et al. 2024 (arXiv:2410.12937).
    """
    counts = {c.name: float(c.examples) for c in spec.checkpoints if c.examples is not None}
    if len(counts) < len(spec.checkpoints):
        return []
    return [_in_proportion(spec, counts)]


def by_loss(spec: Spec, losses: Mapping[str, float]) -> Baseline:
    """A free guess: softmax(-loss), as LM-Cocktail weighs models (Xiao et al. 2023, arXiv:2311.13534).

    Args:
        losses: of every checkpoint alone, in nats a token of the gold answers. The temperature is 1 nat: a weight is in
            proportion to the probability (geometric mean) that the checkpoint gives a right token. Four decimals count:
            beyond them engines differ, and a study shall not go another way for that.
    """
    known = {name: round(loss, 4) for name, loss in losses.items()}
    least = min(known.values())
    return _in_proportion(spec, {name: exp(least - loss) for name, loss in known.items()})


def _in_proportion(spec: Spec, amounts: Mapping[str, float]) -> Baseline:
    """Weights in proportion to amounts; of task vectors, scales with 1 for the largest, within their range."""
    low, high = spec.search_space.scale
    scales = {name: min(max(amount / max(amounts.values()), low), high) for name, amount in amounts.items()}
    simplex = spec.search_space.methods[0] in SIMPLEX_METHODS
    return Baseline(name=None, recipe=spec.space.blend(_scaled(spec, amounts) if simplex else scales))


def _scaled(spec: Spec, weights: Mapping[str, float]) -> dict[str, float]:
    if spec.search_space.methods[0] not in SIMPLEX_METHODS:
        return dict(weights)
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
