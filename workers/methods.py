"""Merge methods: pure functions of tensors.

A method has two parts. What needs whole tensors (norms, thresholds) or whole rows (ranks) does not depend on the
weights: :class:`Inputs` computes it once and keeps it. The rest is one element-wise pass (:mod:`workers.kernels`),
which is what a method returns, over the names of the checkpoints: plain values, whoever reads the tensors. Weights are
float64 up to the multiply; sums run in float32 in the order of the checkpoints.

Every method takes the inputs, one weight a checkpoint, and its parameters; it reads no checkpoint whose weight is 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import acos, cos, inf, sin, sqrt
from typing import Any, Final, TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from search_spaces.methods import CATALOGUE, PARAMETERS
from workers.errors import MergeError
from workers.kernels import Loop, Pass

BASE: Final = ""
"""The base's name in a pass: no checkpoint has it."""

_CHUNK = 1 << 20
_PARALLEL = 0.9995
"""Beyond this cosine slerp is a straight line (mergekit's number): the sine of the angle is too small to divide by."""

_STEPS = 200
_STILL = 1e-13
_BALANCED = 1e-8

T = TypeVar("T")
Weights = Mapping[str, float]
Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One tensor of the base and of every checkpoint, and what has been computed of it so far.

    Attributes:
        name: the tensor's name; masks are drawn from it. base: any float type, any shape but empty.
        tensors: checkpoint name to a tensor of that shape, in the order in which sums run. seed: the study's.
    """

    name: str
    base: Tensor
    tensors: Mapping[str, Tensor]
    seed: int = 0
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def gram(self, *, of_vectors: bool) -> list[list[float]]:
        """Inner products (k, k) of the checkpoints' tensors, or of their task vectors, in float64."""
        return self._once(("gram", of_vectors), lambda: self._gram(of_vectors))

    def window(self, checkpoint: str, density: float, gamma: float) -> tuple[float, float]:
        """The least and the greatest magnitude in a task vector that are kept.

        The gamma n greatest of n are left out and the density n next are kept; equal magnitudes stay together. Where
        both do not fit, density wins.
        """
        if density >= 1.0:
            return 0.0, inf
        return self._once(("window", checkpoint, density, gamma), lambda: self._window(checkpoint, density, gamma))

    def ranks(self, checkpoint: str) -> Tensor:
        """Rank (n,), float32, from 0, of each magnitude of the task vector in its row (the last dimension).

        Kept on a host only: a GPU sorts anew sooner than it could hold them beside a model.
        """
        if self.base.device.type != "cpu":
            return self._ranks(checkpoint)
        return self._once(("ranks", checkpoint), lambda: self._ranks(checkpoint))

    def seeds(self, checkpoint: str) -> tuple[int, int]:
        """Two numbers in the range of int32, from (study seed, tensor name, checkpoint name)."""
        text = f"{self.seed}\0{self.name}\0{checkpoint}".encode()
        low, high = np.frombuffer(xxhash.xxh3_64_digest(text), dtype="<i4").tolist()
        return low, high

    def _once(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """A searched density gives every trial another threshold: only the latest of a kind is kept."""
        kind = key[:2]
        if kind not in self._known or self._known[kind][0] != key:
            self._known[kind] = key, compute()
        found: T = self._known[kind][1]
        return found

    def _gram(self, of_vectors: bool) -> list[list[float]]:
        k, flat = len(self.tensors), self.base.reshape(-1)
        total = torch.zeros(k, k, dtype=torch.float64, device=flat.device)
        for start in range(0, flat.numel(), _CHUNK):
            cut = slice(start, start + _CHUNK)
            stack = torch.stack([t.reshape(-1)[cut].double() for t in self.tensors.values()])
            if of_vectors:
                stack -= flat[cut].double()
            total += stack @ stack.T
        found: list[list[float]] = total.tolist()
        return found

    def _window(self, checkpoint: str, density: float, gamma: float) -> tuple[float, float]:
        sizes = self._sizes(checkpoint).reshape(-1)
        kept = max(1, int(density * sizes.numel()))
        first = max(0, sizes.numel() - kept - int(gamma * sizes.numel()))
        low, high = _sorted_values(sizes, [first, first + kept - 1])
        return low, inf if gamma == 0.0 else high

    def _ranks(self, checkpoint: str) -> Tensor:
        columns = self.base.shape[-1] if self.base.dim() else 1
        base, tensor = self.base.reshape(-1, columns), self.tensors[checkpoint].reshape(-1, columns)
        places = torch.arange(columns, dtype=torch.float32, device=base.device)
        ranks = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        rows = max(_CHUNK // columns, 1)  # at a time: a sort takes several times the memory of what it sorts
        for first in range(0, base.shape[0], rows):
            cut = slice(first, first + rows)
            order = (tensor[cut].float() - base[cut].float()).abs_().argsort(dim=1, stable=True)
            ranks[cut].scatter_(1, order, places.expand(order.shape))
        return ranks.view(-1)

    def _sizes(self, checkpoint: str) -> Tensor:
        return (self.tensors[checkpoint].float() - self.base.float()).abs_()


def linear(inputs: Inputs, weights: Weights, _parameters: Parameters) -> Pass[str]:
    """Weighted sum of checkpoints, theta = sum_i w_i theta_i (model soups, arXiv:2203.05482).

    A single weight of 1 is that checkpoint bit for bit. Raises MergeError where all weights are zero.
    """
    used = {name: w for name, w in weights.items() if w != 0.0}
    if not used:
        raise MergeError("weights must not all be zero, but they are.")
    return _sum_of(list(used), list(used.values()), arity=len(weights))


def slerp(inputs: Inputs, weights: Weights, _parameters: Parameters) -> Pass[str]:
    """Spherical interpolation of two checkpoints (Shoemake 1985), each tensor taken as one vector.

    Weights are (1 - t, t). Directions that are nearly parallel are joined by a straight line. Raises MergeError for
    another number of checkpoints, and where just one of the two tensors is zero: it has no direction.
    """
    if len(weights) != 2:
        raise MergeError(f"slerp merges two checkpoints (multislerp merges more), but got {len(weights)}.")
    left, right = _shares(weights)
    straight = linear(inputs, dict(zip(weights, (left, right), strict=True)), {})
    if 0.0 in (left, right) or not any(lengths := _lengths(inputs)):
        return straight
    cosine = inputs.gram(of_vectors=False)[0][1] / (lengths[0] * lengths[1])
    if abs(cosine) > _PARALLEL:
        return straight
    angle = acos(cosine)
    factors = [sin(left * angle) / sin(angle), sin(right * angle) / sin(angle)]
    return _sum_of(list(inputs.tensors), factors, arity=2)


def multislerp(inputs: Inputs, weights: Weights, _parameters: Parameters) -> Pass[str]:
    """Weighted mean on the sphere (Buss and Fillmore 2001, ACM Trans. Graph. 20(2)), each tensor taken as one vector.

    Its direction is the one whose weighted sum of squared angles to the checkpoints is least, its length their
    weighted mean length. The order of the checkpoints does not count; two of equal length give slerp. A tensor of one
    element has a sign but no direction: it gets the weighted mean. Raises MergeError where some of the tensors but not
    all are zero, or where directions cancel out.
    """
    shares = _shares(weights)
    used = [i for i, share in enumerate(shares) if share != 0.0]
    if len(used) == 1 or inputs.base.numel() == 1 or not any(lengths := _lengths(inputs)):
        return linear(inputs, dict(zip(weights, shares, strict=True)), {})
    gram = np.array(inputs.gram(of_vectors=False))[np.ix_(used, used)]
    sizes, weight = np.array(lengths)[used], np.array(shares)[used]
    direction = _spherical_mean(gram / np.outer(sizes, sizes), weight)
    factors = direction / sizes * float(weight @ sizes)
    names = list(inputs.tensors)
    return _sum_of([names[i] for i in used], factors.tolist(), arity=len(weights))


def task_arithmetic(_inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    """The base plus scaled task vectors, theta_0 + lambda sum_i s_i (theta_i - theta_0) (arXiv:2212.04089)."""
    return _vectors("plain_sum", scales, parameters)


def ties(inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    """Task vectors trimmed to their ``density`` greatest magnitudes; at each element only those count whose sign is
    that of the scaled sum (TIES-Merging, arXiv:2306.01708).
    """
    return _trimmed("trimmed_election", inputs, scales, parameters, gamma=0.0)


def breadcrumbs(inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    """Task vectors without their ``gamma`` greatest magnitudes, trimmed to the ``density`` next
    (Model Breadcrumbs, arXiv:2312.06795).
    """
    return _trimmed("trimmed_sum", inputs, scales, parameters, gamma=parameters["gamma"])


def dare_linear(inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    """Each element of a task vector is kept with probability ``density`` and divided by it (DARE, arXiv:2311.03099).

    The draw is the same for every trial of a study, and nested: a greater density keeps what a lesser one keeps.
    """
    return _dropped("dropped_sum", inputs, scales, parameters)


def dare_ties(inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    """``dare_linear``, and at each element only those vectors count whose sign is that of the scaled sum."""
    return _dropped("dropped_election", inputs, scales, parameters)


def della(inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    """Each element of a task vector is kept with a probability that rises with its magnitude's rank in its row, from
    ``density - epsilon`` to ``density + epsilon``, and divided by it; then signs are elected (DELLA, arXiv:2406.11617).

    Raises MergeError where the probabilities leave (0, 1].
    """
    density, epsilon = parameters["density"], parameters["epsilon"]
    if density - epsilon <= 0.0 or density + epsilon > 1.0:
        raise MergeError(f"density -/+ epsilon must lie in (0, 1], but they are {density:g} and {epsilon:g}.")
    columns = inputs.base.shape[-1] if inputs.base.dim() else 1
    lowest, step = (density - epsilon, 2 * epsilon / (columns - 1)) if columns > 1 else (density, 0.0)
    used = _used(scales)
    return _vectors(
        "ranked_election",
        scales,
        parameters,
        factors=[[lowest] * len(used), [step] * len(used)],
        integers=_seeds(inputs, used),
        ranks=tuple(used),
    )


def wise_ft(inputs: Inputs, shares: Weights, _parameters: Parameters) -> Pass[str]:
    """The straight line from the base to one fine-tuned model, (1 - a) theta_0 + a theta_1 (arXiv:2109.01903).

    Both ends are exact. Raises MergeError for another number of checkpoints than one.
    """
    if len(shares) != 1:
        raise MergeError(f"wise_ft merges the base and one checkpoint, but got {len(shares)}.")
    ((name, share),) = shares.items()
    used = {n: factor for n, factor in ((BASE, 1.0 - share), (name, share)) if factor != 0.0}
    return _sum_of(list(used), list(used.values()), arity=2)


def model_stock(inputs: Inputs, weights: Weights, _parameters: Parameters) -> Pass[str]:
    """Between base and uniform average, at t = k c / (1 + (k - 1) c) with c the mean cosine of task vectors
    (Model Stock, arXiv:2403.19522). It has no weights: those given only say which checkpoints.
    """
    gram, k = inputs.gram(of_vectors=True), len(weights)
    if k < 2:
        raise MergeError(f"model_stock merges at least two checkpoints, but got {k}.")
    cosines = [_cosine(gram, i, j) for i in range(k) for j in range(i)]
    cosine = sum(cosines) / len(cosines)
    below = 1 + (k - 1) * cosine
    share = k * cosine / below if abs(below) > 1e-6 else 0.0
    if share == 0.0:
        return copy_of(BASE)
    return _sum_of([BASE, *inputs.tensors], [1.0 - share, *[share / k] * k], arity=0)


METHODS: Mapping[str, Callable[[Inputs, Weights, Parameters], Pass[str]]] = {
    "linear": linear,
    "slerp": slerp,
    "multislerp": multislerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "breadcrumbs": breadcrumbs,
    "della": della,
    "wise_ft": wise_ft,
    "model_stock": model_stock,
}


def plan(method: str, inputs: Inputs, weights: Weights, parameters: Parameters) -> Pass[str]:
    """The pass of a method by name, its parameters completed by defaults. Raises MergeError for what cannot be."""
    known = CATALOGUE[method].parameters
    complete = {name: parameters.get(name, PARAMETERS[name].default) for name in known}
    for name, value in complete.items():
        if not PARAMETERS[name].holds(value):
            raise MergeError(f"{name} must lie in {PARAMETERS[name].interval}, but is {value}.")
    return METHODS[method](inputs, weights, complete)


def merge(method: str, inputs: Inputs, weights: Weights, parameters: Parameters | None = None) -> Tensor:
    """The merge of one tensor, float32, in the base's shape."""
    todo = plan(method, inputs, weights, parameters or {})
    out = torch.empty(inputs.base.shape, dtype=torch.float32, device=inputs.base.device)
    Loop().write(bound(todo, inputs), out.view(-1))
    return out


def bound(todo: Pass[str], inputs: Inputs, *, first: int = 0) -> Pass[Tensor]:
    """The pass over the inputs' own tensors, as vectors (n,).

    Args:
        inputs: whole tensors, or the same rows of each. first: index of their first element in the whole tensor.
    """
    tensors = {name: t.reshape(-1) for name, t in {**inputs.tensors, BASE: inputs.base}.items()}
    return Pass(
        kernel=todo.kernel,
        tensors=tuple(tensors[name] for name in todo.tensors),
        base=None if todo.base is None else tensors[todo.base],
        ranks=tuple(inputs.ranks(name) for name in todo.ranks),
        factors=todo.factors,
        integers=todo.integers,
        arity=todo.arity,
        first=first,
    )


def copy_of(name: str) -> Pass[str]:
    """The pass that takes a checkpoint's tensor as it is."""
    return Pass(kernel="copy", tensors=(name,))


def _sorted_values(values: Tensor, places: list[int]) -> list[float]:
    """What stands at these places (from 0) of the sorted values (n,)."""
    if values.device.type == "cpu":  # numpy's selection is vectorised, torch's is not
        return [float(x) for x in np.partition(values.numpy(), sorted(set(places)))[places]]
    return [float(values.kthvalue(place + 1).values) for place in places]


def _sum_of(names: Sequence[str], factors: Sequence[float], *, arity: int) -> Pass[str]:
    if list(factors) == [1.0]:
        return copy_of(names[0])
    return Pass(kernel="weighted_sum", tensors=tuple(names), factors=[factors], arity=arity)


def _used(scales: Weights) -> list[str]:
    return [name for name, scale in scales.items() if scale != 0.0]


def _vectors(
    kernel: str,
    scales: Weights,
    parameters: Parameters,
    *,
    factors: Sequence[Sequence[float]] = (),
    integers: Sequence[Sequence[int]] = ((),),
    ranks: tuple[str, ...] = (),
) -> Pass[str]:
    """A pass over task vectors; without a scale above or below zero it is the base, bit for bit."""
    used = _used(scales)
    if not used:
        return copy_of(BASE)
    return Pass(
        kernel=kernel,
        tensors=tuple(used),
        base=BASE,
        ranks=ranks,
        factors=[[scales[name] for name in used], [parameters["lambda"]] * len(used), *factors],
        integers=integers,
        arity=len(scales),
    )


def _trimmed(kernel: str, inputs: Inputs, scales: Weights, parameters: Parameters, *, gamma: float) -> Pass[str]:
    windows = [inputs.window(name, parameters["density"], gamma) for name in _used(scales)]
    edges = [[low for low, _ in windows], [high for _, high in windows]]
    return _vectors(kernel, scales, parameters, factors=edges)


def _dropped(kernel: str, inputs: Inputs, scales: Weights, parameters: Parameters) -> Pass[str]:
    used, density = _used(scales), parameters["density"]
    last = max(int(density * 2**32), 1) - 2**31 - 1
    integers = [*_seeds(inputs, used), [last] * len(used)]
    return _vectors(kernel, scales, parameters, factors=[[density] * len(used)], integers=integers)


def _seeds(inputs: Inputs, used: Sequence[str]) -> list[list[int]]:
    return [list(row) for row in zip(*(inputs.seeds(name) for name in used), strict=True)]


def _shares(weights: Weights) -> list[float]:
    total = sum(weights.values())
    if total == 0.0:
        raise MergeError("weights must not sum to zero, but they do.")
    return [w / total for w in weights.values()]


def _lengths(inputs: Inputs) -> list[float]:
    """Euclidean lengths of the checkpoints' tensors: all above zero, or all zero."""
    gram = inputs.gram(of_vectors=False)
    lengths = [sqrt(max(gram[i][i], 0.0)) for i in range(len(gram))]
    if 0.0 in lengths and any(lengths):
        name = list(inputs.tensors)[lengths.index(0.0)]
        raise MergeError(f"a direction must have a length, but the tensor is all zero in {name} and not in the others.")
    return lengths


def _cosine(gram: Sequence[Sequence[float]], i: int, j: int) -> float:
    length = sqrt(gram[i][i] * gram[j][j])
    return min(max(gram[i][j] / length, -1.0), 1.0) if length > 0.0 else 0.0


def _spherical_mean(cosines: Any, weights: Any) -> Any:
    """Coefficients (k,) of the mean direction over unit vectors of which only the cosines (k, k) are known."""
    mean = weights / _length(weights, cosines)
    for _ in range(_STEPS):
        along = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(along)
        pull = weights * np.divide(angles, np.sin(angles), out=np.ones_like(angles), where=np.sin(angles) > _BALANCED)
        step = pull - float(pull @ along) * mean
        size = sqrt(max(float(step @ cosines @ step), 0.0))
        if size < _STILL:
            break
        mean = cos(size) * mean + sin(size) / size * step
        mean = mean / _length(mean, cosines)
    return mean


def _length(coefficients: Any, cosines: Any) -> float:
    length = sqrt(max(float(coefficients @ cosines @ coefficients), 0.0))
    if length < _BALANCED:
        raise MergeError("directions must not cancel out, but their weighted mean is zero.")
    return length
