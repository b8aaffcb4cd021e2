"""A recipe: all it takes to build a merge."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Merge method, merge weights and method parameters.

    ``weights`` holds one number a group for each checkpoint; with ``groups="model"`` that is one number.
    A recipe of ``linear`` with a single weight of 1 is that checkpoint itself, bit for bit.
    """

    method: str
    weights: Mapping[str, tuple[float, ...]]
    groups: str = "model"
    parameters: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, in the order of the study file."""
        return {
            "method": self.method,
            "groups": self.groups,
            "weights": {name: list(values) for name, values in self.weights.items()},
            "parameters": dict(self.parameters),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Recipe":
        """Read what :meth:`to_json` wrote."""
        return cls(
            method=document["method"],
            groups=document["groups"],
            weights={name: tuple(values) for name, values in document["weights"].items()},
            parameters=dict(document["parameters"]),
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the recipe's content: equal recipes build equal merges.

        Zero weights are left out and the checkpoints' order does not count.
        """
        document = self.to_json()
        document["weights"] = {name: ws for name, ws in document["weights"].items() if any(ws)}
        return digest_of(document)

    def mean_weights(self) -> dict[str, float]:
        """One number a checkpoint: its weight averaged over the groups."""
        return {name: sum(values) / len(values) for name, values in self.weights.items()}


def only(name: str) -> Recipe:
    """The recipe of one checkpoint as it is."""
    return Recipe(method="linear", weights={name: (1.0,)})


def digest_of(document: Any) -> str:
    """SHA-256 (hex) of a JSON document written with sorted keys and exact floats."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
