"""The merge methods by name: how their weights are drawn and which parameters they take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Drawn = Literal["simplex", "scale", "share", "none"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A method parameter: its default, and the interval of its values, ``low`` being outside where ``open_below``."""

    default: float
    low: float
    high: float
    open_below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is allowed."""
        return self.low <= value <= self.high and not (self.open_below and value == self.low)

    @property
    def interval(self) -> str:
        """The interval as it is written in an error."""
        return f"{'(' if self.open_below else '['}{self.low:g}, {self.high:g}]"


PARAMETERS: Mapping[str, Parameter] = {
    "density": Parameter(1.0, 0.0, 1.0, open_below=True),
    "gamma": Parameter(0.01, 0.0, 1.0),
    "epsilon": Parameter(0.15, 0.0, 0.5),
    "lambda": Parameter(1.0, -10.0, 10.0),
}
"""Every method parameter; names and defaults are mergekit's."""


@dataclass(frozen=True, slots=True)
class Method:
    """One merge method.

    Attributes:
        drawn: how its weights are proposed. ``simplex``: positive, sum 1 (``w.<checkpoint>``). ``scale``: free scales
            of task vectors (``scale.<checkpoint>``). ``share``: a scale in [0, 1]. ``none``: it has no weights and
            cannot be searched.
        parameters: the names of those it takes. least, most: how many checkpoints it merges.
    """

    drawn: Drawn
    parameters: tuple[str, ...] = field(default=())
    least: int = 2
    most: int | None = None


CATALOGUE: Mapping[str, Method] = {
    "linear": Method("simplex"),
    "slerp": Method("simplex", most=2),
    "multislerp": Method("simplex"),
    "task_arithmetic": Method("scale", ("lambda",)),
    "ties": Method("scale", ("density", "lambda")),
    "dare_linear": Method("scale", ("density", "lambda")),
    "dare_ties": Method("scale", ("density", "lambda")),
    "breadcrumbs": Method("scale", ("density", "gamma", "lambda")),
    "della": Method("scale", ("density", "epsilon", "lambda")),
    "wise_ft": Method("share", least=1, most=1),
    "model_stock": Method("none"),
}
"""Every method that a recipe may name."""

METHODS = tuple(name for name, method in CATALOGUE.items() if method.drawn != "none")
"""Methods that can be searched."""

SIMPLEX_METHODS = tuple(name for name, method in CATALOGUE.items() if method.drawn == "simplex")
"""Methods whose weights are positive and sum to 1."""


def takers(parameter: str) -> tuple[str, ...]:
    """The methods that take a parameter."""
    return tuple(name for name, method in CATALOGUE.items() if parameter in method.parameters)
