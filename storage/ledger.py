"""Optuna's record of one study as the driver keeps it: read from memory, written in batches."""

import copy
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import (
    StudyModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage.errors import StoreError

_STUDIES, _TRIALS, _PARAMS, _VALUES, _USER, _SYSTEM = (
    cast(sa.Table, model.__table__)
    for model in (
        StudyModel,
        TrialModel,
        TrialParamModel,
        TrialValueModel,
        TrialUserAttributeModel,
        TrialSystemAttributeModel,
    )
)

_Row = dict[str, Any]


class Ledger(BaseStorage):
    """The trials of one study, for its one writer.

    An Optuna storage like any other, and what it writes is read by all others. But it answers from memory, since nobody
    else writes, and all that is written `together` is one transaction: there after a crash, or not at all.
    """

    def __init__(self, storage: RDBStorage, name: str) -> None:
        """Reads the study of that name; KeyError where there is none."""
        self._storage = storage
        self._name = name
        self._study_id = storage.get_study_id_from_name(name)
        self._before: dict[int, FrozenTrial | None] | None = None
        self.reload()

    def reload(self) -> None:
        """Read again: after a commit that failed nobody knows what the database has kept."""
        # A list by number. Trials in it are never changed but replaced, so that readers may keep them.
        self._trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._numbers = {t._trial_id: t.number for t in self._trials}

    def study(self, sampler: BaseSampler) -> optuna.Study:
        """Optuna's study on this storage, with the sampler that it shall ask."""
        return optuna.load_study(study_name=self._name, storage=self, sampler=sampler)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within is one transaction at its end; nothing of it is kept where an error ends it."""
        if self._before is not None:
            yield
            return
        self._before, kept = {}, False
        try:
            yield
            self._write(self._before)
            kept = True
        finally:
            before, self._before = self._before, None
            if not kept:
                self._undo(before)

    # --- Optuna's storage: trials ------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial = copy.copy(template_trial or create_trial(state=TrialState.RUNNING))
        if template_trial is None:
            trial.datetime_start = datetime.now()
        trial.user_attrs, trial.system_attrs = _as_read(trial.user_attrs), _as_read(trial.system_attrs)
        number = len(self._trials)
        trial.number, trial._trial_id = number, _provisional(number)
        with self.together():
            self._put(trial)
        return self._trials[number]._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        value = distribution.to_external_repr(param_value_internal)
        trial = self._open(trial_id)
        trial.params = trial.params | {param_name: value}
        trial.distributions = trial.distributions | {param_name: distribution}
        with self.together():
            self._put(trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        trial = self._open(trial_id)
        if state == TrialState.RUNNING and trial.state != TrialState.WAITING:
            return False
        trial.state = state
        if values is not None:
            trial.values = list(values)
        if state == TrialState.RUNNING:
            trial.datetime_start = datetime.now()
        if state.is_finished():
            trial.datetime_complete = datetime.now()
        with self.together():
            self._put(trial)
        return True

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._open(trial_id)
        trial.user_attrs = trial.user_attrs | _as_read({key: value})
        with self.together():
            self._put(trial)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._open(trial_id)
        trial.system_attrs = trial.system_attrs | _as_read({key: value})
        with self.together():
            self._put(trial)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        raise NotImplementedError("trials of a study have no intermediate values.")

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return copy.deepcopy(self._trials[self._number(trial_id)])

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._trials[trial_number]._trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [t for t in self._trials if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    # --- Optuna's storage: the study, which is the database's --------------------------------------------------------

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._storage.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._storage.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._storage.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._storage.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        return self._storage.get_all_studies()

    # --- in memory ---------------------------------------------------------------------------------------------------

    def _number(self, trial_id: int) -> int:
        return _provisional(trial_id) if trial_id < 0 else self._numbers[trial_id]

    def _open(self, trial_id: int) -> FrozenTrial:
        """A trial that may still be changed, to be changed and `_put` back."""
        trial = copy.copy(self._trials[self._number(trial_id)])
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial

    def _put(self, trial: FrozenTrial) -> None:
        assert self._before is not None
        if trial.number == len(self._trials):
            self._before.setdefault(trial.number, None)
            self._trials.append(trial)
        else:
            self._before.setdefault(trial.number, self._trials[trial.number])
            self._trials[trial.number] = trial

    def _undo(self, before: Mapping[int, FrozenTrial | None]) -> None:
        for number, trial in before.items():
            if trial is not None:
                self._trials[number] = trial
        fresh = [number for number, trial in before.items() if trial is None]
        del self._trials[min(fresh, default=len(self._trials)) :]

    # --- in the database ---------------------------------------------------------------------------------------------

    def _write(self, before: Mapping[int, FrozenTrial | None]) -> None:
        changes = [_Change(was, self._trials[number]) for number, was in before.items()]
        if not changes:
            return
        fresh = [change for change in changes if change.was is None]
        with self._storage.engine.begin() as connection:
            self._lock(connection, known=len(self._trials) - len(fresh))
            ids = self._insert(connection, fresh)
            _update(connection, [change for change in changes if change.was is not None])
            for change in changes:
                change.trial_id = ids.get(change.trial.number, change.trial._trial_id)
            _execute(connection, sa.insert(_PARAMS), [row for change in changes for row in change.params()])
            _execute(connection, sa.insert(_VALUES), [row for change in changes for row in change.values()])
            for table, kind in ((_USER, "user_attrs"), (_SYSTEM, "system_attrs")):
                _execute(connection, _forget(table), [row for change in changes for row in change.replaced(kind)])
                _execute(connection, sa.insert(table), [row for change in changes for row in change.attributes(kind)])
        for change in fresh:
            change.trial._trial_id = change.trial_id
            self._numbers[change.trial_id] = change.trial.number

    def _lock(self, connection: sa.Connection, *, known: int) -> None:
        """Have the study's row to oneself. To write is to lock, which SQLite grants only to who has read nothing yet.

        Raises: StoreError where the study is gone, or has other trials than are known here.
        """
        mine = sa.update(_STUDIES).where(_STUDIES.c.study_id == self._study_id).values(study_id=self._study_id)
        there = connection.execute(mine).rowcount
        count = connection.scalar(sa.select(sa.func.count()).where(_TRIALS.c.study_id == self._study_id))
        if not there or count != known:
            raise StoreError(
                f"a study has one driver at a time, but of {self._name}, which has {known} trials, somebody else "
                f"has made {count}."
                if there
                else f"the study must be in the database, but {self._name} is not any more."
            )

    def _insert(self, connection: sa.Connection, fresh: Sequence["_Change"]) -> dict[int, int]:
        """New trials; their ids by number."""
        if not fresh:
            return {}
        _execute(connection, sa.insert(_TRIALS), [c.row() | {"study_id": self._study_id} for c in fresh])
        first = min(c.trial.number for c in fresh)
        mine = (_TRIALS.c.study_id == self._study_id, _TRIALS.c.number >= first)
        found = connection.execute(sa.select(_TRIALS.c.number, _TRIALS.c.trial_id).where(*mine))
        return {row.number: row.trial_id for row in found}


@dataclass
class _Change:
    """A trial that is to be written, and what the database has of it."""

    was: FrozenTrial | None
    trial: FrozenTrial
    trial_id: int = -1

    def row(self) -> _Row:
        t = self.trial
        start, end = _utc(t.datetime_start), _utc(t.datetime_complete)
        return {"number": t.number, "state": t.state, "datetime_start": start, "datetime_complete": end}

    def params(self) -> Iterator[_Row]:
        had = {} if self.was is None else self.was.params
        for name, distribution in self.trial.distributions.items():
            if name not in had:
                yield {
                    "trial_id": self.trial_id,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(self.trial.params[name]),
                    "distribution_json": distribution_to_json(distribution),
                }

    def values(self) -> Iterator[_Row]:
        if self.trial.values is not None and (self.was is None or self.was.values is None):
            for objective, value in enumerate(self.trial.values):
                stored, kind = TrialValueModel.value_to_stored_repr(value)
                yield {"trial_id": self.trial_id, "objective": objective, "value": stored, "value_type": kind}

    def attributes(self, kind: str) -> Iterator[_Row]:
        had = self._had(kind)
        for key, value in getattr(self.trial, kind).items():
            if key not in had or had[key] != value:
                yield {"trial_id": self.trial_id, "key": key, "value_json": json.dumps(value)}

    def replaced(self, kind: str) -> Iterator[_Row]:
        had = self._had(kind)
        for key, value in getattr(self.trial, kind).items():
            if key in had and had[key] != value:
                yield {"trial": self.trial_id, "name": key}

    def _had(self, kind: str) -> Mapping[str, Any]:
        return {} if self.was is None else getattr(self.was, kind)


def _update(connection: sa.Connection, changes: Sequence[_Change]) -> None:
    same = _TRIALS.c.trial_id == sa.bindparam("trial")
    changed = [c for c in changes if c.was is not None and c.was.state != c.trial.state]
    rows = [change.row() | {"trial": change.trial._trial_id} for change in changed]
    _execute(connection, sa.update(_TRIALS).where(same), rows)


def _forget(table: sa.Table) -> sa.Delete:
    """What an attribute was before."""
    return sa.delete(table).where(table.c.trial_id == sa.bindparam("trial"), table.c.key == sa.bindparam("name"))


def _execute(connection: sa.Connection, statement: sa.Executable, rows: Sequence[_Row]) -> None:
    if rows:
        connection.execute(statement, rows)


def _provisional(number: int) -> int:
    """A trial's id until the database gives it one; the same function leads back."""
    return -1 - number


def _as_read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """As the database will give them back: a tuple becomes a list."""
    return dict(json.loads(json.dumps(attributes)))


def _utc(local: datetime | None) -> datetime | None:
    """As Optuna keeps times: naive, in UTC."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)
