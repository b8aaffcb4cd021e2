"""Merge methods: pure functions of tensors. They add up in float32 and keep weights in float64 until the multiply.

Every function takes the same tensor of each checkpoint (any float type, one shape, in the study file's order) and
returns float32 of that shape.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.errors import MergeError

_PARALLEL = 0.9995
"""Beyond this cosine the two directions count as one and slerp is a straight line (Shoemake 1985, section 3.3)."""


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of checkpoints, theta = sum_i w_i theta_i (model soups, arXiv:2203.05482).

    A weight of 1 with zeros beside it returns that tensor bit for bit; zero weights are not read. The sum runs in
    the order given. Raises MergeError where all weights are zero.
    """
    used = [(t, w) for t, w in zip(tensors, weights, strict=True) if w != 0.0]
    if not used:
        raise MergeError("weights must not all be zero, but they are.")
    (first, weight), *rest = used
    total = first.float() * weight if weight != 1.0 else first.float().clone()
    for tensor, weight in rest:
        total.add_(tensor.float(), alpha=weight)
    return total


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """The base plus scaled task vectors, theta = theta_0 + sum_i s_i (theta_i - theta_0) (arXiv:2212.04089).

    Scales are free: nothing is normalised. Scales of zero return the base bit for bit.
    """
    start = base.float()
    total = start.clone()
    for tensor, scale in zip(tensors, scales, strict=True):
        if scale != 0.0:
            total.add_(tensor.float() - start, alpha=scale)
    return total


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Spherical interpolation of two checkpoints (Shoemake 1985), each tensor taken as one vector.

    ``weights`` are ``(1 - t, t)``. Directions that are parallel or without length are joined by a straight line.
    """
    if len(tensors) != 2:
        raise MergeError(f"slerp takes two checkpoints, but got {len(tensors)}.")
    left, right = (t.double() for t in tensors)
    share = weights[1] / (weights[0] + weights[1])
    norms = float(left.norm()) * float(right.norm())
    cosine = float((left * right).sum()) / norms if norms > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return linear(tensors, (1.0 - share, share))
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    to_left = float(((1.0 - share) * angle).sin() / angle.sin())
    to_right = float((share * angle).sin() / angle.sin())
    return linear(tensors, (to_left, to_right))
