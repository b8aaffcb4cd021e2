"""A search space: the parameters of a trial to a recipe, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from search_spaces import simplex
from search_spaces.groups import Groups
from search_spaces.methods import CATALOGUE, PARAMETERS
from search_spaces.recipe import Recipe, digest_of

Range = tuple[float, float]


class Suggest(Protocol):
    """Where parameters come from: a trial that proposes them, or a table that knows them."""

    def number(self, name: str, low: float, high: float) -> float:
        """A float in [low, high]."""
        ...

    def choice(self, name: str, options: Sequence[str]) -> str:
        """One of the options."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """Parameters that are already known; reading one that is not raises KeyError."""

    parameters: Mapping[str, float | str]

    def number(self, name: str, low: float, high: float) -> float:
        """The known number."""
        return float(self.parameters[name])

    def choice(self, name: str, options: Sequence[str]) -> str:
        """The known choice."""
        return str(self.parameters[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Which recipes can be proposed.

    Parameter names: ``w.<checkpoint>`` on the dead-zone simplex, ``scale.<checkpoint>`` for task-vector methods, each
    with ``@<group>`` behind it where there is more than one group; a method parameter by its own name; ``method``
    where there are several. A trial has only those parameters that its own method takes.

    Attributes:
        scale: the range of a task vector's scale. parameters: the ranges of method parameters; low = high fixes one,
            one that is not named keeps its default. A recipe holds them all.
    """

    methods: tuple[str, ...]
    checkpoints: tuple[str, ...]
    groups: str = "model"
    scale: Range = (0.0, 1.2)
    parameters: Mapping[str, Range] = field(default_factory=dict)

    def propose(self, suggest: Suggest) -> Recipe:
        """Draw every parameter from ``suggest``, in a fixed order, and build the recipe."""
        method = suggest.choice("method", self.methods) if len(self.methods) > 1 else self.methods[0]
        labels = Groups.parse(self.groups).labels()
        columns = [self._column(suggest, method, label) for label in labels]
        extra = {name: self._parameter(suggest, name) for name in CATALOGUE[method].parameters}
        return Recipe(
            method=method,
            groups=self.groups,
            weights={name: tuple(column[i] for column in columns) for i, name in enumerate(self.checkpoints)},
            parameters=extra,
        )

    def recipe(self, parameters: Mapping[str, float | str]) -> Recipe:
        """The recipe that these parameters stand for."""
        return self.propose(Known(parameters))

    def to_parameters(self, recipe: Recipe) -> dict[str, float | str]:
        """Parameters that give this recipe back, up to the normalisation of simplex weights."""
        found: dict[str, float | str] = {"method": recipe.method} if len(self.methods) > 1 else {}
        for column, label in enumerate(Groups.parse(self.groups).labels()):
            values = [recipe.weights[name][column] for name in self.checkpoints]
            if _on_simplex(recipe.method):
                values = list(simplex.coordinates_of(values))
            found |= {_name(recipe.method, name, label): x for name, x in zip(self.checkpoints, values, strict=True)}
        return found | {name: recipe.parameters[name] for name in recipe.parameters if not self._fixed(name)}

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe as this space builds it, its weights normalised; one that it does not hold as it is."""
        return self.recipe(self.to_parameters(recipe)) if self.contains(recipe) else recipe

    def contains(self, recipe: Recipe) -> bool:
        """Whether this space can propose the recipe."""
        return (
            recipe.method in self.methods
            and recipe.groups == self.groups
            and set(recipe.weights) == set(self.checkpoints)
            and all(_within(w, self._weight_range(recipe.method)) for ws in recipe.weights.values() for w in ws)
            and set(recipe.parameters) == set(CATALOGUE[recipe.method].parameters)
            and all(_within(x, self._range(name)) for name, x in recipe.parameters.items())
        )

    def blend(self, weights: Mapping[str, float]) -> Recipe:
        """A recipe with the same weights in every group: the space's first method, middle method parameters.

        Args:
            weights: one number a checkpoint; those left out get 0.
        """
        count = len(Groups.parse(self.groups).labels())
        return Recipe(
            method=self.methods[0],
            groups=self.groups,
            weights={name: (float(weights.get(name, 0.0)),) * count for name in self.checkpoints},
            parameters={name: sum(self._range(name)) / 2 for name in CATALOGUE[self.methods[0]].parameters},
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the space: a study keeps one space for its whole life."""
        return digest_of(
            {
                "methods": self.methods,
                "checkpoints": self.checkpoints,
                "groups": self.groups,
                "scale": self.scale,
                "parameters": self.parameters,
            }
        )

    def _column(self, suggest: Suggest, method: str, label: str) -> tuple[float, ...]:
        on_simplex = _on_simplex(method)
        low, high = (simplex.LOW, simplex.HIGH) if on_simplex else self._weight_range(method)
        drawn = [suggest.number(_name(method, name, label), low, high) for name in self.checkpoints]
        return simplex.weights_of(drawn) if on_simplex else tuple(drawn)

    def _weight_range(self, method: str) -> Range:
        return self.scale if CATALOGUE[method].drawn == "scale" else (0.0, 1.0)

    def _parameter(self, suggest: Suggest, name: str) -> float:
        low, high = self._range(name)
        return low if self._fixed(name) else suggest.number(name, low, high)

    def _range(self, name: str) -> Range:
        default = PARAMETERS[name].default
        return self.parameters.get(name, (default, default))

    def _fixed(self, name: str) -> bool:
        low, high = self._range(name)
        return low == high


def _on_simplex(method: str) -> bool:
    return CATALOGUE[method].drawn == "simplex"


def _within(value: float, bounds: Range) -> bool:
    return bounds[0] <= value <= bounds[1]


def _name(method: str, checkpoint: str, label: str) -> str:
    prefix = "w" if _on_simplex(method) else "scale"
    return f"{prefix}.{checkpoint}@{label}" if label else f"{prefix}.{checkpoint}"
