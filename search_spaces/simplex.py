"""The dead-zone simplex: coordinates in [-0.5, 1] to weights that are positive and sum to 1.

``w = relu(x) / sum(relu(x))``. A third of each coordinate's range is exactly zero, so faces and corners of the
simplex are as easy to reach as its centre.
"""

from collections.abc import Sequence
from math import fsum

LOW, HIGH = -0.5, 1.0
ABSENT = -0.25
"""The coordinate written for a weight of zero: the middle of the dead zone."""


def weights_of(coordinates: Sequence[float]) -> tuple[float, ...]:
    """Weights (k,) >= 0 with sum 1 of coordinates (k,) in [-0.5, 1].

    Where no coordinate is positive the largest one (the first of equals) takes the whole weight: the corner that
    raising all coordinates together reaches first.
    """
    positive = [max(x, 0.0) for x in coordinates]
    total = fsum(positive)
    if total == 0.0:
        largest = max(range(len(coordinates)), key=lambda i: coordinates[i])
        return tuple(float(i == largest) for i in range(len(coordinates)))
    # Dividing by the largest first keeps subnormal coordinates from overflowing the quotient.
    top = max(positive)
    scaled = [x / top for x in positive]
    total = fsum(scaled)
    return tuple(x / total for x in scaled)


def coordinates_of(weights: Sequence[float]) -> tuple[float, ...]:
    """Coordinates (k,) that :func:`weights_of` maps back to ``weights``, up to normalisation; zeros stay exact."""
    top = max(weights)
    return tuple(w / top if w > 0 else ABSENT for w in weights)
