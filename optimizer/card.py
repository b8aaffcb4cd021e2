"""The model card of an exported merge: Markdown, in which names are nothing but names."""

import html
import re
from collections.abc import Mapping, Sequence

import optuna

from optimizer.spec import Spec
from storage.records import Measured, Score
from storage.store import Store

_SPLIT_NOTE = {
    "report": "on the report split, which neither the search nor the choice of this merge has seen",
    "validation": "on the validation split; this trial has no report figures yet (`mergefront validate`)",
    "search": "on the search split that it was selected on, so they flatter it (`mergefront validate` measures afresh)",
}


def model_card(
    store: Store,
    name: str,
    number: int,
    spec: Spec,
    measured: Mapping[str, Mapping[int, Measured]],
    *,
    code: Sequence[str] = (),
) -> str:
    """Markdown: the recipe, and its scores with 95 % intervals beside the baselines' on the freshest split.

    Args:
        code: Python files of the directory, without which the model does not load.
    """
    split = next(s for s in ("report", "validation", "search") if number in measured[s])
    study = store.optuna_study(name, optuna.samplers.RandomSampler(seed=0))
    labels = {
        t.number: t.user_attrs["baseline"] for t in study.get_trials(deepcopy=False) if t.user_attrs.get("baseline")
    }
    chosen = measured[split][number]
    names = list(chosen.scores)
    shown = {"**this merge**": chosen.scores}
    others = {n: label for n, label in labels.items() if n in measured[split] and n != number}
    shown |= {escaped(label): measured[split][n].scores for n, label in others.items()}
    rows = [
        f"| {label} | " + " | ".join(_cell(spec, o, scores[o]) for o in names) + " |" for label, scores in shown.items()
    ]
    weights = "\n".join(
        f"| {escaped(checkpoint)} | {', '.join(f'{w:.4f}' for w in values)} |"
        for checkpoint, values in chosen.recipe.weights.items()
    )
    return f"""---
library_name: transformers
tags: [merge, mergefront]
---

# {escaped(name)}, trial {number}

A merge by {escaped(chosen.recipe.method)} (groups: {escaped(chosen.recipe.groups)}), built and measured by mergefront.

{_code_note(code)}

| checkpoint | weight |
|---|---|
{weights}

## Scores

Means with 95 % intervals {_SPLIT_NOTE[split]}.

| model | {" | ".join(map(escaped, names))} |
|---|{"---|" * len(names)}
{chr(10).join(rows)}

`merge_recipe.json` holds the fingerprint of every input and the digest of every tensor; `mergekit.yaml` is the same
merge for mergekit.
"""


def escaped(text: str) -> str:
    """A text that Markdown and HTML show as it is: no tag, no link, no column of a table, all on one line."""
    plain = html.escape(" ".join(text.split()))
    return re.sub(r"([\\`*_{}\[\]()#+!|~^$])", r"\\\1", plain)


def _code_note(code: Sequence[str]) -> str:
    if not code:
        return "Loading it runs no code from this directory (`trust_remote_code` is not needed)."
    files = ", ".join(map(escaped, code))
    return (
        "**Loading it runs code from this directory** (`trust_remote_code=True`), as measuring it did; the code is the "
        f"base model's: {files}. Read it before you load the model."
    )


def _cell(spec: Spec, objective: str, score: Score) -> str:
    bounds = next(o.bounds for o in spec.objectives if o.name == objective)
    low, high = score.interval(bounds)
    return f"{score.mean:.3f} ({low:.3f} to {high:.3f}, n = {score.n})"
