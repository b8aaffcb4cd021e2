"""The outcomes of single items of a study, ready to be paired."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import optuna

from optimizer.spec import ObjectiveSpec, Spec, from_document
from optimizer.statistics import Difference, Pairing, Relative
from search_spaces.errors import InputError
from storage.records import Marks, Measured, Score
from storage.store import Store
from workers.errors import TrialError
from workers.suites import Item


class Outcomes:
    """What every merge made of every item of one split; read from the store when it is asked for, then kept.

    Raises: InputError where a suite is no longer the one that was measured.
    """

    def __init__(self, store: Store, name: str, split: str) -> None:
        self.split = split
        self.spec: Spec = from_document(dict(store.study(name).spec))
        self._store = store
        self._name = name
        self._measured: dict[int, Measured] = {}
        self._pairings: dict[tuple[str, str | None], Pairing] = {}

    def difference(self, objective: ObjectiveSpec, a: int, b: int, lang: str | None = None) -> Difference:
        """Trial a minus trial b on the items that both were scored on; ``lang`` alone where it is named.

        Raises: InputError where there are none.
        """
        try:
            return self._pairing(objective, lang).difference(
                self._column(a, objective, lang), self._column(b, objective, lang)
            )
        except TrialError as e:
            raise InputError(f"trials {a} and {b} must share scored items of {objective.name}: {e}") from e

    def relative(self, objective: ObjectiveSpec, a: int, b: int) -> Relative:
        """Trial a in relation to trial b; raises InputError as :meth:`difference` does."""
        try:
            return self._pairing(objective, None).relative(
                self._column(a, objective, None), self._column(b, objective, None)
            )
        except TrialError as e:
            raise InputError(f"trials {a} and {b} must share scored items of {objective.name}: {e}") from e

    @cached_property
    def labels(self) -> Mapping[int, str]:
        """Trial to baseline."""
        return baselines_of(self._store, self._name)

    def scores(self, trial: int) -> Mapping[str, Score]:
        """A trial's scores by objective."""
        return self._of(trial).scores

    def marks(self, trial: int) -> Mapping[str, Marks]:
        """What came of a trial's items, by suite."""
        return self._of(trial).marks

    def languages(self, objective: ObjectiveSpec) -> list[str]:
        """The languages of the objective's items."""
        return sorted({item.lang for _, item in self.items(objective)})

    def items(self, objective: ObjectiveSpec) -> Sequence[tuple[str, Item]]:
        """(suite, item) pairs of the objective, in the order in which they are asked."""
        return self._items[objective.name]

    def _pairing(self, objective: ObjectiveSpec, lang: str | None) -> Pairing:
        key = (objective.name, lang)
        if key not in self._pairings:
            self._pairings[key] = Pairing(
                [(suite, item) for suite, item in self.items(objective) if lang in (None, item.lang)],
                objective.across if lang is None else "mean",
                objective.bounds,
                maximise=objective.maximise,
                seed=self.spec.search.seed,
            )
        return self._pairings[key]

    def _column(self, trial: int, objective: ObjectiveSpec, lang: str | None) -> list[float | None]:
        """A trial's value of each item; None for one that was not scored or not asked."""
        items = self.items(objective)
        known = self._known(trial, {suite for suite, _ in items})
        _check_known(known, items)
        return [known[suite].get(item.id) for suite, item in items if lang in (None, item.lang)]

    @cached_property
    def _items(self) -> Mapping[str, list[tuple[str, Item]]]:
        loaded = {plan.name: plan.load()[self.split] for plan in self.spec.setup(device="cpu").objectives}
        return {
            name: [(suite.key, item) for suite in objective.suites for item in suite.items]
            for name, objective in loaded.items()
        }

    def _known(self, trial: int, suites: set[str]) -> dict[str, dict[str, float | None]]:
        marks = self.marks(trial)
        return {key: dict(zip(marks[key].ids, marks[key].values, strict=True)) for key in suites}

    def _of(self, trial: int) -> Measured:
        if trial not in self._measured:
            self._measured[trial] = self._store.with_marks(self._name, trial, self.split)
        return self._measured[trial]


def baselines_of(store: Store, name: str) -> dict[int, str]:
    """Trial to baseline, of the trials that are one."""
    trials = store.optuna_study(name, optuna.samplers.RandomSampler(seed=0)).get_trials(deepcopy=False)
    return {t.number: t.user_attrs["baseline"] for t in trials if t.user_attrs.get("baseline")}


def _check_known(known: Mapping[str, Mapping[str, float | None]], items: Sequence[tuple[str, Item]]) -> None:
    there = {(suite, item.id) for suite, item in items}
    lost = next(
        ((suite, item) for suite, values in known.items() for item in values if (suite, item) not in there), None
    )
    if lost is not None:
        raise InputError(
            f"items must be those that were measured, but {lost[1]} of {lost[0]} is no longer in its suite's file."
        )
