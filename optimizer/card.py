"""The model card of an exported merge."""

from collections.abc import Mapping

import optuna

from optimizer.spec import Spec
from storage.records import Measured, Score
from storage.store import Store

_SPLIT_NOTE = {
    "report": "on the report split, which neither the search nor the choice of this merge has seen",
    "validation": "on the validation split; this trial has no report figures yet (`mergefront validate`)",
    "search": "on the search split that it was selected on, so they flatter it (`mergefront validate` measures afresh)",
}


def model_card(store: Store, name: str, number: int, spec: Spec, measured: Mapping[str, Mapping[int, Measured]]) -> str:
    """Markdown: the recipe, and its scores with 95 % intervals beside the baselines' on the freshest split."""
    split = next(s for s in ("report", "validation", "search") if number in measured[s])
    study = store.optuna_study(name, optuna.samplers.RandomSampler(seed=0))
    labels = {
        t.number: t.user_attrs["baseline"] for t in study.get_trials(deepcopy=False) if t.user_attrs.get("baseline")
    }
    chosen = measured[split][number]
    names = list(chosen.scores)
    shown = {"**this merge**": chosen.scores}
    shown |= {label: measured[split][n].scores for n, label in labels.items() if n in measured[split] and n != number}
    rows = [
        f"| {label} | " + " | ".join(_cell(spec, o, scores[o]) for o in names) + " |" for label, scores in shown.items()
    ]
    weights = "\n".join(
        f"| {checkpoint} | {', '.join(f'{w:.4f}' for w in values)} |"
        for checkpoint, values in chosen.recipe.weights.items()
    )
    return f"""---
library_name: transformers
tags: [merge, mergefront]
---

# {name}, trial {number}

A merge by `{chosen.recipe.method}` (groups: `{chosen.recipe.groups}`), built and measured by mergefront.

| checkpoint | weight |
|---|---|
{weights}

## Scores

Means with 95 % intervals {_SPLIT_NOTE[split]}.

| model | {" | ".join(names)} |
|---|{"---|" * len(names)}
{chr(10).join(rows)}

`merge_recipe.json` holds the fingerprint of every input and the digest of every tensor; `mergekit.yaml` is the same
merge for mergekit.
"""


def _cell(spec: Spec, objective: str, score: Score) -> str:
    bounds = next(o.bounds for o in spec.objectives if o.name == objective)
    low, high = score.interval(bounds)
    return f"{score.mean:.3f} ({low:.3f} to {high:.3f}, n = {score.n})"
