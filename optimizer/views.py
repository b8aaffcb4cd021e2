"""Other views of the same figures: in relation to the base model, as papers about merges report theirs; by language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from rich import box
from rich.table import Table

from optimizer.outcomes import Outcomes
from optimizer.spec import BASE, Spec, from_document
from optimizer.statistics import Relative
from search_spaces.errors import InputError
from storage.records import Measured, Score
from storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What was asked for of some trials on one split, by trial and objective; empty what was not.

    Attributes:
        labels: trial to baseline. relative: to the base. languages: language to score, the worst one first.
    """

    spec: Spec
    split: str
    labels: Mapping[int, str]
    relative: Mapping[int, Mapping[str, Relative]]
    languages: Mapping[int, Mapping[str, Mapping[str, Score]]]

    def to_json(self, trial: int) -> dict[str, Any]:
        """What is to be added to a trial's document."""
        found: dict[str, Any] = {}
        if trial in self.relative:
            found["relative"] = {name: _relative_json(r) for name, r in self.relative[trial].items()}
        if trial in self.languages:
            found["languages"] = {
                name: {lang: score.to_json() for lang, score in scores.items()}
                for name, scores in self.languages[trial].items()
            }
        return found

    def tables(self) -> list[Table]:
        """A table a view."""
        return [*([self._relative_table()] if self.relative else []), *self._language_tables()]

    def _relative_table(self) -> Table:
        names = list(dict.fromkeys(name for row in self.relative.values() for name in row))
        table = _table(f"Relative to the base ({self.split} split, 95 % intervals)")
        for name in names:
            table.add_column(f"{name}\nchange", justify="right")
            table.add_column(f"{name}\nwin rate", justify="right")
        for trial, found in self.relative.items():
            cells = [cell for name in names for cell in _relative_cells(found[name])]
            table.add_row(str(trial), self.labels.get(trial, ""), *cells)
        return table

    def _language_tables(self) -> list[Table]:
        tables = []
        for objective in self.spec.objectives:
            rows = {t: found[objective.name] for t, found in self.languages.items() if objective.name in found}
            if not rows:
                continue
            languages = sorted(next(iter(rows.values())))
            table = _table(f"{objective.name} by language ({self.split} split, mean ± standard error)")
            for name in ("worst", *languages):
                table.add_column(name, justify="right")
            for trial, scores in rows.items():
                worst = next(iter(scores))
                cells = [f"{scores[lang].mean:.3f} ± {scores[lang].stderr:.3f}" for lang in languages]
                table.add_row(str(trial), self.labels.get(trial, ""), f"{scores[worst].mean:.3f} {worst}", *cells)
            tables.append(table)
        return tables


def views(
    store: Store, name: str, split: str, trials: Sequence[int], *, relative: bool = False, languages: bool = False
) -> Views:
    """The views of some trials that were asked for, on a split; trials that were not measured on it are left out.

    Raises: InputError where figures relative to the base are asked for and it was not measured on the split.
    """
    spec = from_document(dict(store.study(name).spec))
    study = store.optuna_study(name, optuna.samplers.RandomSampler(seed=0))
    found = study.get_trials(deepcopy=False)
    labels = {t.number: t.user_attrs["baseline"] for t in found if t.user_attrs.get("baseline")}
    measured = store.measured(name, split)
    there = [t for t in trials if t in measured]
    return Views(
        spec=spec,
        split=split,
        labels=labels,
        relative=_relative(store, name, split, there, labels, measured) if relative else {},
        languages={t: _by_language(spec, measured[t]) for t in there} if languages else {},
    )


def _relative(
    store: Store,
    name: str,
    split: str,
    trials: Sequence[int],
    labels: Mapping[int, str],
    measured: Mapping[int, Measured],
) -> dict[int, dict[str, Relative]]:
    base = next((n for n, label in labels.items() if label == BASE), None)
    if base is None or base not in measured:
        raise InputError(f"figures relative to the base need it measured on the {split} split, but {name} has not.")
    outcomes = Outcomes(store, name, split)
    return {
        trial: {
            o.name: outcomes.relative(o, trial, base)
            for o in outcomes.spec.objectives
            if o.name in measured[trial].scores and o.name in measured[base].scores
        }
        for trial in trials
        if trial != base
    }


def _by_language(spec: Spec, measured: Measured) -> dict[str, dict[str, Score]]:
    """The worst language first."""
    found = {}
    for objective in [o for o in spec.objectives if o.name in measured.breakdown]:
        parts = measured.breakdown[objective.name]
        scores = {part.removeprefix("lang:"): s for part, s in parts.items() if part.startswith("lang:")}
        worst = sorted(scores, key=lambda lang: scores[lang].mean, reverse=not objective.maximise)
        found[objective.name] = {lang: scores[lang] for lang in worst}
    return found


def _relative_json(found: Relative) -> dict[str, Any]:
    change = None if found.change is None else dict(zip(("percent", "low", "high"), found.change, strict=True))
    return {
        "change": change,
        "win_rate": dict(zip(("share", "low", "high"), found.win_rate, strict=True)),
        "n": found.n,
    }


def _relative_cells(found: Relative) -> tuple[str, str]:
    rate, low, high = found.win_rate
    won = f"{rate:.1%} [{low:.1%}, {high:.1%}]"
    if found.change is None:
        return "no ratio: the base may be 0", won
    change, least, most = found.change
    return f"{change:+.1f} % [{least:+.1f}, {most:+.1f}]", won


def _table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("")
    return table
