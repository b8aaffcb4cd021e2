"""A family of checkpoints: in what they differ, and how far each lies from the base."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from optimizer.spec import BASE, Spec
from search_spaces.errors import InputError
from storage.checkpoints import Checkpoint
from storage.model_directory import read_json
from workers.merger import is_finite

Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 22
_OF_CONFIGS = (
    *(ValueError, OSError, LookupError, ImportError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(AssertionError, StrictDataclassError),
)
"""What a model class makes of a config that fits no model."""

_DUPLICATE = 0.999
_STRANGER = 1.0
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Task vectors against the base, by checkpoint name in order.

    Attributes:
        relative_norm: norm of (checkpoint - base) over the norm of the base. cosine: (k, k), between task vectors.
        rounding: how far rounding the uniform merge to the study's dtype moves it, over its distance to the base.
    """

    names: tuple[str, ...]
    relative_norm: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    rounding: float


def differences(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Every way in which a checkpoint is not of the base's shape."""
    from workers.transformers_engine import empty_weights

    base = checkpoints[BASE]
    try:
        wanted = empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code)
    except InputError as e:
        yield str(e)
        return
    except _OF_CONFIGS as e:
        hint = "; its own code runs where the study file says `workers: {trust_remote_code: true}`: read it first"
        own = "auto_map" in base.config and not base.trust_remote_code
        reason = _short(e) + hint * own
        yield f"the base must be a language model that transformers knows, but {base.path} is not: {reason}"
        return
    missing = [name for name in wanted if name not in base.tensors]
    if missing:
        yield f"tensors must be stored under the names that the model class uses, but {_not_held(missing)}"
    for name, checkpoint in checkpoints.items():
        if checkpoint.architecture != base.architecture:
            yield (
                "checkpoints must share one architecture, but got "
                f"{base.architecture} ({BASE}) and {checkpoint.architecture} ({name})."
            )
        else:
            yield from _tensor_differences(name, base.tensors, checkpoint.tensors, wanted)
    if not missing:
        yield from _without_direction(spec, checkpoints, wanted)


def _not_held(missing: Sequence[str]) -> str:
    if list(missing) == [_HEAD]:
        return (
            f"the base does not hold {_HEAD}; if it shares its head with its embeddings, config.json must say "
            '"tie_word_embeddings": true.'
        )
    return (
        f"the base does not hold {_some(missing)}; loading it in transformers and save_pretrained() may write them so."
    )


def _short(error: Exception) -> str:
    """On one line, without the trace that torch adds."""
    return " ".join(str(error).split())[:500]


def _tensor_differences(
    name: str, base: Mapping[str, Tensor], other: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[str]:
    """What the model class uses must be in both; what it does not use may be in both, or be a buffer."""
    missing = sorted(t for t in base if t not in other and not _is_spare(t, base, wanted))
    extra = sorted(t for t in other if t not in base and not _is_spare(t, other, wanted))
    if missing or extra:
        found = [f"{name} lacks {_some(missing)}"] * bool(missing) + [f"{name} has also {_some(extra)}"] * bool(extra)
        tied = _HEAD in (*missing, *extra)
        hint = "; one ties its head to its embeddings and the other does not: untie it in transformers and save it"
        yield f"checkpoints must have the same tensors as the base, but {' and '.join(found)}{hint * tied}."
    both = [t for t in base if t in other]
    shapes = [t for t in both if other[t].shape != base[t].shape]
    if shapes:
        found = [f"{t} is {tuple(other[t].shape)} in {name} and {tuple(base[t].shape)} in the base" for t in shapes]
        yield f"checkpoints must have the base's shapes, but {_some(found)}{_how_to_pad(name, shapes, base, other)}."
    kinds = [t for t in both if other[t].is_floating_point() != base[t].is_floating_point()]
    if kinds:
        yield f"a tensor must hold floats in all checkpoints or in none, but {_some(kinds)} of {name} differs."


def _how_to_pad(name: str, shapes: Sequence[str], base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """The hint where only rows of embeddings and head differ."""
    if not all(t == _HEAD or t.endswith(_EMBEDDINGS) for t in shapes):
        return ""
    rows, wanted = other[shapes[0]].shape[0], base[shapes[0]].shape[0]
    return (
        f"; if only the vocabulary is padded differently, model.resize_token_embeddings({wanted}) in transformers and "
        f"save_pretrained() {'cut' if rows > wanted else 'pad'} {name} to the base's"
    )


def unused(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """A warning where the base stores weights that its model class does not use."""
    from workers.transformers_engine import empty_weights

    base = checkpoints[BASE]
    wanted = empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code)
    spare = [t for t in base.tensors if t not in wanted and not _is_spare(t, base.tensors, wanted)]
    if spare:
        yield f"{base.architecture} does not use {_some(spare)} of the base: they are neither merged nor exported."


def foreign_adapters(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """A warning for each adapter that says that it was trained on another model than it is put on."""
    for entry in (*spec.checkpoints, *spec.references):
        adapter = checkpoints[entry.name].adapter
        if adapter is None:
            continue
        trained_on = read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or ""
        # Paths differ from machine to machine: what a model is called last is all that can be compared.
        if trained_on and Path(str(trained_on)).name != Path(entry.model.partition("@")[0]).name:
            yield f"the adapter of {entry.name} says that its base is {trained_on}, but it is put on {entry.model}."


def _is_spare(name: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether the model class does without it and it says nothing new: one of the constants that older versions of
    transformers stored beside the weights, or a second copy of tied embeddings.
    """
    if name in wanted:
        return False
    embeddings = [t for n, t in tensors.items() if n.endswith(_EMBEDDINGS)]
    return name.endswith(_BUFFERS) or (name == _HEAD and any(torch.equal(tensors[name], e) for e in embeddings))


def _without_direction(
    spec: Spec, checkpoints: Mapping[str, Checkpoint], wanted: Mapping[str, Tensor]
) -> Iterator[str]:
    """Tensors that are zero in some checkpoints but not in all: there is no angle between them."""
    spherical = [m for m in spec.search_space.methods if m in ("slerp", "multislerp")]
    names = [c.name for c in spec.checkpoints]
    for tensor in wanted if spherical else ():
        holders = [n for n in names if tensor in checkpoints[n].tensors]
        zero = [n for n in holders if not checkpoints[n].tensors[tensor].any()]
        if zero and len(zero) < len(holders):
            yield f"{spherical[0]} needs tensors with a direction, but {tensor} is all zero in {zero[0]}."


def task_vectors(spec: Spec, checkpoints: Mapping[str, Checkpoint], progress: Progress) -> tuple[Vectors, list[str]]:
    """Norms and cosines in one pass over every tensor, and every tensor that is not finite."""
    base = checkpoints[BASE].tensors
    names = [c.name for c in spec.checkpoints]
    others = [n for n in checkpoints if n not in names]
    gram = torch.zeros(len(names), len(names), dtype=torch.float64)
    sums = torch.zeros(3, dtype=torch.float64)  # squared: of the base, of the rounding, of the uniform task vector
    not_finite: list[str] = []
    dtype = getattr(torch, spec.workers.dtype)
    everywhere = set(base).intersection(*(c.tensors for c in checkpoints.values()))
    floats = [name for name, tensor in base.items() if tensor.is_floating_point() and name in everywhere]
    for done, name in enumerate(floats):
        progress("reading weights", done, len(floats))
        bad = [n for n in [*names, *others] if not is_finite(checkpoints[n].tensors[name])]
        not_finite += [f"weights must be finite, but {name} of {n} holds NaN or infinity." for n in bad]
        for start in range(0, base[name].numel(), _CHUNK):
            cut = slice(start, start + _CHUNK)
            origin = base[name].reshape(-1)[cut].float()
            stack = torch.stack([checkpoints[n].tensors[name].reshape(-1)[cut].float() for n in names]) - origin
            gram += (stack @ stack.T).double()
            uniform = stack.mean(0) + origin
            sums += torch.stack(
                [
                    origin.square().sum().double(),
                    (uniform.to(dtype).float() - uniform).square().sum().double(),
                    (uniform - origin).square().sum().double(),
                ]
            )
    progress("reading weights", len(floats), len(floats))
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(norms, norms)
    cosine = torch.where(scale > 0, gram / scale, torch.zeros_like(gram))
    size, rounding, distance = sums.sqrt().tolist()
    found = Vectors(
        names=tuple(names),
        relative_norm=tuple((norms / size).tolist()),
        cosine=tuple(tuple(row) for row in cosine.tolist()),
        rounding=rounding / distance if distance > 0 else 0.0,
    )
    return found, not_finite


def facts_of(checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Architecture, size and storage types, in words."""
    base = checkpoints[BASE]
    dtypes = {
        n: ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in c.tensors.values()}))
        for n, c in checkpoints.items()
    }
    count = sum(t.numel() for t in base.tensors.values())
    return {
        "architecture": f"{base.architecture}, {count / 1e6:,.2f} million parameters, {len(base.tensors)} tensors",
        "stored as": ", ".join(sorted(set(dtypes.values())))
        + ("" if len(set(dtypes.values())) == 1 else " (" + ", ".join(f"{n}: {d}" for n, d in dtypes.items()) + ")"),
    }


def warnings_of(vectors: Vectors) -> Iterator[str]:
    """Copies of the base, strangers, duplicates, and rounding that drowns the merge."""
    for name, norm in zip(vectors.names, vectors.relative_norm, strict=True):
        if norm == 0.0:
            yield f"{name} equals the base: its task vector is zero."
        elif norm > _STRANGER:
            yield f"{name} is {norm:.1f} times as far from the base as the base is from zero: is it of this family?"
    for (i, left), (j, right) in combinations(enumerate(vectors.names), 2):
        if vectors.cosine[i][j] > _DUPLICATE:
            yield f"{left} and {right} point the same way (cosine {vectors.cosine[i][j]:.4f}): are they duplicates?"
    if vectors.rounding > 0.1:
        yield f"rounding moves the uniform merge by {vectors.rounding:.0%} of its way from the base: use a finer dtype."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
