"""A recipe as a configuration for mergekit, for those who keep their merges there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from optimizer.spec import BASE, Spec
from search_spaces.groups import Groups
from search_spaces.methods import PARAMETERS
from search_spaces.recipe import Recipe
from storage.checkpoints import HUB, Checkpoint, Source
from storage.staging import is_url
from workers.merger import layer_count
from workers.transformers_engine import empty_weights

_SAME = "The same merge as a mergekit configuration."
_OTHER = {
    "multislerp": "mergekit's multislerp is the normalised weighted sum, not the spherical mean: its result differs.",
    "dare_linear": "mergekit draws other masks each time and rescales by norms: its result differs.",
    "dare_ties": "mergekit draws other masks each time and rescales by norms: its result differs.",
    "della": "mergekit draws other masks each time and rescales by norms: its result differs.",
    "ties": "The same merge as a mergekit configuration, but for equal magnitudes at the trimming threshold.",
    "breadcrumbs": "The same merge as a mergekit configuration, but for equal magnitudes at the trimming thresholds.",
    "slerp": "The same merge as a mergekit configuration, up to float32 rounding.",
    "model_stock": "The same merge as a mergekit configuration, up to float32 rounding.",
}

_NAMED = "# What is no repository is the name of a checkpoint whose fingerprint merge_recipe.json has.\n"

Weight = float | list[dict[str, Any]]


def mergekit_yaml(
    spec: Spec, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], *, for_others: bool = False
) -> str:
    """The same merge for mergekit, with a comment that says how far it is the same.

    Args:
        checkpoints: base and the recipe's checkpoints by name; their paths are written. for_others: hub ids, and in
            place of what lies on this machine its name.
    """
    paths = {name: _path(checkpoint) for name, checkpoint in checkpoints.items()}
    if for_others:
        paths = {s.name: _public(s) for s in spec.sources if s.name in checkpoints}
    body = {
        **_body(recipe, paths, _weights(spec, recipe, checkpoints)),
        "dtype": "float32",
        "out_dtype": spec.workers.dtype,
        "tokenizer_source": paths[BASE],
    }
    head = f"# {_OTHER.get(recipe.method, _SAME)}\n" + _NAMED * for_others
    return head + str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True))


def _body(recipe: Recipe, paths: Mapping[str, str], weights: Mapping[str, Weight]) -> dict[str, Any]:
    """Method, models and parameters, without the weights that are 0: mergekit would read those models for nothing."""
    method, base = recipe.method, paths[BASE]
    if method == "slerp":
        left, right = recipe.weights
        return {
            "merge_method": method,
            "base_model": paths[left],
            "models": [{"model": paths[right]}],
            "parameters": {"t": weights[right]},
        }
    if method == "model_stock":
        return {"merge_method": method, "base_model": base, "models": [{"model": paths[n]} for n in recipe.weights]}
    if method == "wise_ft":
        ((name, share),) = weights.items()
        return _linear({base: _rest(share), paths[name]: share})
    weighted = {paths[name]: weight for name, weight in weights.items() if weight != 0.0}
    if method == "linear":
        return _linear(weighted)
    if method == "multislerp":
        return {"merge_method": method, "models": _models(weighted)}
    # A sum of no task vectors has no name there.
    weighted = weighted or {paths[next(iter(weights))]: 0.0}
    own = {name: value for name, value in recipe.parameters.items() if value != PARAMETERS[name].default}
    return {
        "merge_method": method,
        "base_model": base,
        "models": _models(weighted),
        "parameters": {"normalize": False, **own},
    }


def _linear(weighted: Mapping[str, Weight]) -> dict[str, Any]:
    # Weights sum to 1 already; to divide by their sum once more would change last bits.
    return {"merge_method": "linear", "models": _models(weighted), "parameters": {"normalize": False}}


def _models(weighted: Mapping[str, Weight]) -> list[dict[str, Any]]:
    return [{"model": path, "parameters": {"weight": weight}} for path, weight in weighted.items()]


def _weights(spec: Spec, recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Weight]:
    """One number a checkpoint, or where groups differ one a tensor: mergekit takes the first filter that is part of the
    tensor's name. Of slerp, the share of each.
    """
    if all(len(set(values)) == 1 for values in recipe.weights.values()):
        return {name: values[0] for name, values in recipe.weights.items()}
    groups = Groups.parse(recipe.groups)
    base = checkpoints[BASE]
    tensors = list(empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code))
    layers = layer_count(checkpoints[BASE].tensors)
    return {
        name: [{"filter": tensor, "value": groups.weight(values, tensor, layers)} for tensor in tensors]
        for name, values in recipe.weights.items()
    }


def _rest(share: Weight) -> Weight:
    if isinstance(share, float):
        return 1.0 - share
    return [{"filter": entry["filter"], "value": 1.0 - entry["value"]} for entry in share]


def _path(checkpoint: Checkpoint) -> str:
    path = str(checkpoint.path)
    return path if checkpoint.adapter is None else f"{path}+{checkpoint.adapter}"


def _public(source: Source) -> str:
    parts = [part.removeprefix(HUB) for part in (source.model, source.adapter) if part is not None]
    elsewhere = any(is_url(part) or Path(part).is_absolute() or Path(part).is_dir() for part in parts)
    return source.name if elsewhere else "+".join(parts)
