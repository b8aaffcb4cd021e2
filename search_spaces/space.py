"""A search space: the parameters of a trial to a recipe, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from search_spaces import simplex
from search_spaces.groups import Groups
from search_spaces.recipe import Recipe, digest_of

SIMPLEX_METHODS = ("linear", "slerp")
"""Methods whose weights are positive and sum to 1 (parameters ``w.<checkpoint>``)."""

TASK_VECTOR_METHODS = ("task_arithmetic",)
"""Methods that scale task vectors freely and need the base (parameters ``scale.<checkpoint>``)."""

METHODS = SIMPLEX_METHODS + TASK_VECTOR_METHODS
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
    where there are several.
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
        extra = {name: self._parameter(suggest, name) for name in self.parameters}
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
            if recipe.method in SIMPLEX_METHODS:
                values = list(simplex.coordinates_of(values))
            found |= {_name(recipe.method, name, label): x for name, x in zip(self.checkpoints, values, strict=True)}
        return found | {name: recipe.parameters[name] for name in self.parameters if not self._fixed(name)}

    def contains(self, recipe: Recipe) -> bool:
        """Whether this space can propose the recipe."""
        return (
            recipe.method in self.methods
            and recipe.groups == self.groups
            and set(recipe.weights) == set(self.checkpoints)
            and set(recipe.parameters) == set(self.parameters)
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
            parameters={name: (low + high) / 2 for name, (low, high) in self.parameters.items()},
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
        low, high = (simplex.LOW, simplex.HIGH) if method in SIMPLEX_METHODS else self.scale
        drawn = [suggest.number(_name(method, name, label), low, high) for name in self.checkpoints]
        return simplex.weights_of(drawn) if method in SIMPLEX_METHODS else tuple(drawn)

    def _parameter(self, suggest: Suggest, name: str) -> float:
        low, high = self.parameters[name]
        return low if self._fixed(name) else suggest.number(name, low, high)

    def _fixed(self, name: str) -> bool:
        low, high = self.parameters[name]
        return low == high


def _name(method: str, checkpoint: str, label: str) -> str:
    prefix = "w" if method in SIMPLEX_METHODS else "scale"
    return f"{prefix}.{checkpoint}@{label}" if label else f"{prefix}.{checkpoint}"
