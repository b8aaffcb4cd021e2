"""Everything that a report says, read from the store in one go."""

from collections.abc import Mapping
from dataclasses import dataclass

from optimizer import validate
from optimizer.compare import Comparison, between
from optimizer.costs import Cost, costs
from optimizer.outcomes import Outcomes
from optimizer.outlook import end_text
from optimizer.repeat import repeat_text
from optimizer.report.changed import Changed, changed_most
from optimizer.results import Results, choose, results
from optimizer.spec import BASE, UNIFORM, ObjectiveSpec, Spec
from optimizer.standing import Standing, standings
from optimizer.validate import Validation
from optimizer.why import Why, of_study
from search_spaces.errors import InputError
from storage.records import SPLITS, Measured
from storage.store import Store, StudyRecord, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The merge that a report puts forward, and by which rule, in words."""

    trial: int
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is known of one study.

    Attributes:
        measured: split to trial to scores. validation: None before there was one. choice: None where no merge can be
        put forward, and ``no_choice`` why. why: what each checkpoint does. against: the choice against uniform and
        base, on their freshest split. changed: the items that differ most between choice and uniform. missing: why what
        needs the suites' files is not there, empty where it is. failures: trial to the reasons of its failed attempts.
        standings: the front against what one would try anyway. early_end: why the search stopped
        early, empty where it did not. costs: worker and GPU seconds by stage. span: first and last measurement, UTC;
        None without any.
    """

    record: StudyRecord
    summary: Summary
    results: Results
    measured: Mapping[str, Mapping[int, Measured]]
    picked: tuple[int, ...]
    validation: Validation | None
    choice: Choice | None
    no_choice: str
    why: Why
    against: tuple[Comparison, ...]
    changed: tuple[Changed, ...]
    missing: str
    failures: Mapping[int, list[str]]
    standings: tuple[Standing, ...]
    repeat_noise: str
    early_end: str
    costs: tuple[Cost, ...]
    span: tuple[str, str] | None

    @property
    def spec(self) -> Spec:
        """The study's spec."""
        return self.results.spec

    def freshest(self, trial: int) -> Measured:
        """A trial's measurement on the split that flatters it least: report, else validation, else search."""
        return next(self.measured[split][trial] for split in reversed(SPLITS) if trial in self.measured[split])

    def baseline(self, name: str) -> int | None:
        """The trial of a baseline; None where it is not measured."""
        return next((r.trial for r in self.results.baselines if r.baseline == name), None)


def findings(store: Store, name: str, *, pick: str | None = None) -> Findings:
    """Read a study.

    Args:
        pick: which merge to put forward, as ``mergefront export --pick`` reads it; None for `default_pick`'s.
    Raises: InputError where ``pick`` is wrong or nothing meets it, StoreError for an unknown study.
    """
    found = results(store, name)
    measured = {split: store.measured(name, split) for split in SPLITS}
    picked = validate.picks(found, measured["validation"])
    choice, no_choice = _choice(found, measured["validation"], pick)
    paired = _paired(store, name, found, measured, choice)
    notes, summary = store.notes(name), store.summary(name)
    assert summary is not None
    return Findings(
        record=store.study(name),
        summary=summary,
        results=found,
        measured=measured,
        picked=picked,
        validation=paired.validation,
        choice=choice,
        no_choice=no_choice,
        why=of_study(store, name, found.spec, {row.trial: row.recipe for row in found.rows}),
        against=paired.against,
        changed=paired.changed,
        missing=paired.missing,
        failures=store.failures(name),
        standings=standings(store, name, found),
        repeat_noise=repeat_text(notes),
        early_end=end_text(notes),
        costs=costs(store, name),
        span=store.span(name),
    )


def default_pick(spec: Spec) -> str:
    """The pick that the constraints suggest: the best of the first objective without one, where all of them hold.

    The front's knee where no objective has a constraint, or all have.
    """
    free = [o for o in spec.optimised if not _bounds(o)]
    conditions = [condition for o in spec.optimised for condition in _bounds(o)]
    if not free or not conditions:
        return "knee"
    return f"{'max' if free[0].maximise else 'min'} {free[0].name} where {' and '.join(conditions)}"


def _bounds(objective: ObjectiveSpec) -> list[str]:
    least = [] if objective.at_least is None else [f"{objective.name} >= {objective.at_least:g}"]
    most = [] if objective.at_most is None else [f"{objective.name} <= {objective.at_most:g}"]
    return [*least, *most]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paired:
    """What is read from the outcomes of single items; all of it needs the suites' files."""

    validation: Validation | None = None
    against: tuple[Comparison, ...] = ()
    changed: tuple[Changed, ...] = ()
    missing: str = ""


def _paired(
    store: Store,
    name: str,
    found: Results,
    measured: Mapping[str, Mapping[int, Measured]],
    choice: Choice | None,
) -> _Paired:
    try:
        validation = validate.known(store, name, found)
        if choice is None:
            return _Paired(validation=validation)
        split = next(s for s in reversed(SPLITS) if choice.trial in measured[s])
        outcomes = Outcomes(store, name, split)
        rivals = [r for r in found.baselines if r.baseline in (UNIFORM, BASE) and r.trial in measured[split]]
        rivals = [r for r in rivals if r.trial != choice.trial]
        uniform = next((r.trial for r in rivals if r.baseline == UNIFORM), None)
        return _Paired(
            validation=validation,
            against=tuple(between(outcomes, name, choice.trial, r.trial) for r in rivals),
            changed=() if uniform is None else tuple(changed_most(outcomes, choice.trial, uniform)),
        )
    except InputError as e:
        return _Paired(missing=str(e))


def _choice(found: Results, validated: Mapping[int, Measured], pick: str | None) -> tuple[Choice | None, str]:
    """The choice, or why there is none. Raises InputError where a pick that was asked for chooses nothing."""
    if pick is not None:
        return Choice(trial=choose(found, validated, pick), rule=pick), ""
    if all(r.stopped for r in found.merges):
        return None, "no merge has been measured yet"
    rule = default_pick(found.spec)
    try:
        return Choice(trial=choose(found, validated, rule), rule=rule), ""
    except InputError as e:
        return None, str(e).rstrip(".")
