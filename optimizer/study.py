"""One study in its database: what to propose next, what to keep of an outcome, what a crash left behind."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from math import inf, isfinite
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from optimizer.baselines import Baseline, by_loss, starting_points
from optimizer.handmade import handmade
from optimizer.outlook import SPENT, STOPPED, SecondLooks, end_of, end_text
from optimizer.patience import UNREACHABLE, DatabaseGone, Spool, first_line, patiently
from optimizer.rivals import Rivals
from optimizer.samplers import AGAIN, drawn_together, make_sampler
from optimizer.spec import BEST_SLIDER, GREEDY_SOUP, Spec, from_document
from optimizer.warm_start import INHERITED, WarmStart, extended
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from search_spaces.space import Space
from storage.records import FURTHER, Assignment, Failed, Measured, Outcome
from storage.store import Store, StudyRecord
from storage.tables import now
from workers.marks import GOLD_NLL

_log = logging.getLogger(__name__)

_ROUNDING = 1e-9
_HANDMADE = (GREEDY_SOUP, BEST_SLIDER)
_ROOM = 10
"""Fewest trials beside the starting points of a study that gives its last two to what people make by hand."""

_PACKAGES = ("mergefront", "optuna", "torch", "transformers", "safetensors", "ray")


_Asked = tuple[str, str]
"""A recipe's digest and the split that it is asked on."""


@dataclass(frozen=True, slots=True)
class _FromTrial:
    """Parameters that an Optuna trial proposes."""

    trial: Trial

    def number(self, name: str, low: float, high: float) -> float:
        return self.trial.suggest_float(name, low, high)

    def choice(self, name: str, options: Sequence[str]) -> str:
        return str(self.trial.suggest_categorical(name, list(options)))


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's parameters of a search space, as one trial of it has them."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    space.propose(_FromTrial(trial))
    return trial.distributions


def create_study(store: Store, spec: Spec, *, trials: int, fingerprints: dict[str, str]) -> None:
    """Write a new study; raises StoreError where the name is taken."""
    directions: list[Literal["minimize", "maximize"]] = [
        "maximize" if o.maximise else "minimize" for o in spec.optimised
    ]
    record = study_record(spec, trials=trials, fingerprints=fingerprints)
    store.create(record, directions=directions, objectives=[o.name for o in spec.optimised])


def study_record(spec: Spec, *, trials: int, fingerprints: dict[str, str]) -> StudyRecord:
    """What the store keeps of a study that begins now."""
    return StudyRecord(
        name=spec.study,
        spec=spec.document(),
        spec_digest=spec.digest,
        space_digest=spec.space.digest,
        planned=trials,
        fingerprints=fingerprints,
        versions=versions(),
        created=now(),
    )


def versions() -> dict[str, str]:
    """Versions of the packages that a measurement depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class DriverStudy:
    """The driver's side of a study: it proposes and records, and is the only writer.

    Our row of a measurement is written first, then Optuna is told. Whatever a crash left between the two is put right
    when the study is opened: a measured trial that still runs is told, an unmeasured one is handed out again, and
    one whose proposal was cut off fails and counts for nothing. A database that goes away is waited for; when it stays
    away, outcomes are kept on disk until the study is opened the next time, and nothing more is proposed.
    """

    def __init__(self, store: Store, name: str) -> None:
        """Open the study and put right what a crash left. Raises InputError where the search space has changed."""
        record = store.study(name)
        self.spec = from_document(dict(record.spec))
        self.planned = record.planned
        self._space = self.spec.space
        if self._space.digest != record.space_digest:
            raise InputError(
                "a study keeps its search space for life, but the one that this version reads from the spec of "
                f"{name} has digest {self._space.digest[:12]} and the study was made with {record.space_digest[:12]}."
            )
        self._store = store
        self._name = name
        sampler = make_sampler(self.spec.search.sampler, seed=self.spec.search.seed)
        self._ledger = store.ledger(name)
        self._study = self._ledger.study(sampler)
        # Telling asks no sampler anything; opening a Trial object by number would make this one propose.
        self._books = self._ledger.study(optuna.samplers.RandomSampler(seed=0))
        self._rivals = Rivals(store, name, self._books) if self.spec.search.evaluation.racing else None
        self._looks = SecondLooks(self.spec)
        notes = store.notes(name)
        self._may_stop = self.spec.search.stop is not None and STOPPED not in notes
        # A study that was cut short was long enough before.
        self._spent = SPENT in notes
        self._roomy = STOPPED in notes or self._spent or self.planned - len(starting_points(self.spec)) >= _ROOM
        self._seconds = store.seconds(name).get("gpu", 0.0)
        self._guessed = False
        self._again: list[Assignment] = []
        self._out: dict[_Asked, int] = {}
        self._twins: dict[_Asked, list[int]] = {}
        self._spool = Spool(name, store.address)
        self._gone: Exception | None = None
        self._take_up_spooled()
        self._put_right()
        self._warm = WarmStart.from_notes(notes)
        self._take_over()
        self._start: list[Baseline] = self._missing_starts()
        self._look()

    @property
    def name(self) -> str:
        """The study's name."""
        return self._name

    def wants_more(self) -> bool:
        """Whether an assignment is left to hand out: one from before a crash, or a trial that is planned still."""
        return self._gone is None and (bool(self._again) or len(self._states) < self.planned)

    def propose(self, count: int = 1) -> list[Assignment]:
        """The next assignments, at most ``count``. None where nobody need work: what comes next was measured before or
        is out already, or the database stays away.
        """
        try:
            return patiently(lambda: self._propose(count), before_again=self._read_again)
        except UNREACHABLE as e:
            self._gone = e
            return []

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Keep outcomes, and the same for trials that wait with the same recipe."""
        if self._gone is None:
            try:
                patiently(lambda: self._record(outcomes), before_again=self._ledger.reload)
            except UNREACHABLE as e:
                self._gone = e
        if self._gone is not None:
            for outcome in outcomes:
                self._spool.put(outcome)

    def close(self) -> None:
        """Raises DatabaseGone where outcomes had to be left on disk."""
        if self._gone is not None:
            raise DatabaseGone(
                f"the database {self._store.address} stayed out of reach ({first_line(self._gone)}); "
                f"{len(self._spool.waiting())} outcomes wait in {self._spool.directory}, and "
                f"`mergefront resume {self._name}` takes them up when it is back."
            )

    def _propose(self, count: int) -> list[Assignment]:
        picked = self._again[:count] or self._begin(count) or self._best_next(count)
        if self._rivals is not None:
            picked = [replace(a, rivals=self._rivals.against(a.number)) if a.split == "search" else a for a in picked]
        known = [self._known(assignment) for assignment in picked]
        self._keep([_once_more(k, a.number) for k, a in zip(known, picked, strict=True) if k is not None])
        self._look()
        # Nothing below may fail: an assignment that is out must reach the caller.
        numbers = {assignment.number for assignment in picked}
        self._again = [a for a in self._again if a.number not in numbers]
        return [a for k, a in zip(known, picked, strict=True) if k is None and self._is_first(a)]

    def _known(self, assignment: Assignment) -> Measured | None:
        """What was measured of the same recipe before, where that will do."""
        known = self._store.find(self._name, assignment.recipe.digest, assignment.split)
        # Who is not raced answers everything, also where the same recipe was stopped in a race.
        return None if known is None or (known.stopped and assignment.rivals is None) else known

    def _is_first(self, assignment: Assignment) -> bool:
        """Whether its recipe is not out already; if it is, what comes of it will be kept for both."""
        asked = (assignment.recipe.digest, assignment.split)
        if asked in self._out:
            self._twins.setdefault(asked, []).append(assignment.number)
            return False
        self._out[asked] = assignment.number
        return True

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        asked = [(outcome.recipe.digest, outcome.split) for outcome in outcomes]
        twins = [_once_more(o, n) for key, o in zip(asked, outcomes, strict=True) for n in self._twins.get(key, [])]
        self._keep([*outcomes, *twins])
        for key in asked:
            self._out.pop(key, None)
            self._twins.pop(key, None)
        self._look()
        self._seconds += sum(o.seconds.get("gpu", 0.0) for o in outcomes if isinstance(o, Measured))
        self._end_if_spent()

    def _read_again(self) -> None:
        """An attempt to propose failed, and the database may have kept it."""
        self._ledger.reload()
        self._put_right()
        self._start = self._missing_starts()

    def counts(self) -> tuple[int, int, int]:
        """How many trials are measured, failed and planned."""
        return self._states.count(TrialState.COMPLETE), self._states.count(TrialState.FAIL), self.planned

    def _look(self) -> None:
        """States of the trials that count towards the planned number: every one whose proposal was not cut off."""
        self._states = [t.state for t in self._study.get_trials(deepcopy=False) if "recipe" in t.user_attrs]

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        """Our rows of all of them first, then Optuna's; each is one transaction."""
        usable = [self._usable(outcome) for outcome in outcomes]
        measured = [o for o in usable if isinstance(o, Measured)]
        failed = [o for o in usable if isinstance(o, Failed)]
        if measured:
            self._store.add_measured(self._name, *measured)
        if failed:
            self._store.add_failed(self._name, *failed)
        with self._ledger.together():
            for outcome in usable:
                self._tell(outcome)
        for outcome in usable:
            _say(outcome)

    def _usable(self, outcome: Outcome) -> Outcome:
        """The outcome, or a failure where its scores must not be told."""
        reason = _unusable(outcome, self.spec) if isinstance(outcome, Measured) else None
        if reason is None:
            return outcome
        return Failed(number=outcome.number, recipe=outcome.recipe, split=outcome.split, reason=reason)

    def _tell(self, outcome: Outcome) -> None:
        """Tell Optuna plain finite floats; every step can be repeated after a crash."""
        if isinstance(outcome, Failed):
            self._books.tell(outcome.number, state=TrialState.FAIL, skip_if_finished=True)
            return
        scores = [outcome.scores[o.name] for o in self.spec.optimised]
        frozen = self._frozen(outcome.number)
        if frozen.state.is_finished():
            return
        trial = Trial(self._books, frozen._trial_id)
        trial.set_user_attr("stderr", [s.stderr for s in scores])
        if outcome.stopped:
            trial.set_user_attr("stopped", outcome.stopped)
        for objective, score in zip(self.spec.optimised, scores, strict=True):
            for key, value in objective.violations(score.mean).items():
                if not any(key in attr for attr in frozen.system_attrs):
                    trial.set_constraint(key, value)
        values = [float(s.mean) for s in scores]
        self._books.tell(outcome.number, values, state=TrialState.COMPLETE, skip_if_finished=True)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._books.get_trials(deepcopy=False)[number]

    def _begin(self, count: int) -> list[Assignment]:
        """What is still to be measured of what the study begins with, or else what its trials so far suggest."""
        left = self._start[: min(count, max(self.planned - len(self._states), 1))]
        with self._ledger.together():
            begun = [self._starting(start) for start in left or (self._handmade() or self._by_loss())[:1]]
        self._start = self._start[len(left) :]
        return begun

    def _best_next(self, count: int) -> list[Assignment]:
        """New merges; or, where that is expected to tell more, a second look before them.

        Whatever is asked for is written down first, so a crash in between costs neither.
        """
        left = self.planned - len(self._states)
        reserved = self._reserved(self._study.get_trials(deepcopy=False))
        asked = self._ask(min(count, left - reserved if left > reserved else left))
        trials = self._study.get_trials(deepcopy=False)
        self._stop_if_done([t for t in trials if "recipe" in t.user_attrs])
        room = self.planned - self._reserved(trials) - len(self._states) > len(asked)
        due = (self._looks.due(trials[a.number], trials, self.planned) for a in asked)
        number = next((n for n in due if n is not None), None) if room else None
        if number is None:
            return asked
        self._again.extend(asked)
        return [self._second_look(trials[number]), *asked][:count]

    def _stop_if_done(self, trials: Sequence[FrozenTrial]) -> None:
        """Ends the search once, where the study asks for it; trials that are bought later are made."""
        ahead = self.spec.search.stop
        if ahead is None or not self._may_stop or (end := end_of(trials, ahead)) is None:
            return
        if self._end_early(trials):
            self._may_stop = False
            self._say_end(STOPPED, end.to_json())

    def _end_if_spent(self) -> None:
        """Ends the study once, where its budget is spent; trials that are bought later are made."""
        budget = self.spec.search.budget
        if budget is None or self._spent or self._seconds < budget.gpu_hours * 3600:
            return
        self._spent = True
        trials = [t for t in self._study.get_trials(deepcopy=False) if "recipe" in t.user_attrs]
        self._end_early(trials)
        # Said also of a study that was at its end anyway: what is bought later is beyond the budget, and wanted.
        note = {"trials": len(trials), "spent": self._seconds / 3600, "budget": budget.gpu_hours}
        self._say_end(SPENT, note)

    def _end_early(self, trials: Sequence[FrozenTrial]) -> bool:
        """Plan no more than there is; whether that changed anything."""
        enough = len(trials) + self._reserved(trials)
        if enough >= self.planned:
            return False
        self.planned = enough
        self._store.set_planned(self._name, self.planned)
        return True

    def _say_end(self, key: str, note: Mapping[str, Any]) -> None:
        self._store.note(self._name, key, note)
        _log.warning("%s", end_text({key: note}))

    def _second_look(self, first: FrozenTrial) -> Assignment:
        """A trial of the same merge on further items. It has parameters, so the model learns from it by itself."""
        recipe = _recipe_of(first)
        assert recipe is not None
        attrs = {"recipe": recipe.to_json(), AGAIN: first.number}
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=first.params, distributions=first.distributions, user_attrs=attrs
            )
        )
        number = self._study.get_trials(deepcopy=False)[-1].number
        return Assignment(number=number, recipe=recipe, split=FURTHER)

    def _ask(self, count: int) -> list[Assignment]:
        """Proposals of the sampler, at most ``count``, kept together."""
        drawn = drawn_together(self._study, count) if count > 1 else []
        with self._ledger.together():
            return [self._drawn(trial) for trial in drawn] or [self._asked() for _ in range(count)]

    def _drawn(self, trial: FrozenTrial) -> Assignment:
        recipe = self._space.recipe(trial.params)
        trial.set_user_attr("recipe", recipe.to_json())
        self._study.add_trial(trial)
        return Assignment(number=self._study.get_trials(deepcopy=False)[-1].number, recipe=recipe)

    def _asked(self) -> Assignment:
        trial = self._study.ask()
        recipe = self._space.propose(_FromTrial(trial))
        trial.set_user_attr("recipe", recipe.to_json())
        return Assignment(number=trial.number, recipe=recipe)

    def _starting(self, start: Baseline) -> Assignment:
        """A starting point: through the sampler's queue where the space holds it, else a trial without parameters."""
        if self._space.contains(start.recipe):
            label = {} if start.name is None else {"baseline": start.name}
            self._study.enqueue_trial(self._space.to_parameters(start.recipe), user_attrs=label)
            return self._asked()
        attrs = {"recipe": start.recipe.to_json(), "baseline": start.name}
        self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attrs))
        return Assignment(number=self._study.get_trials(deepcopy=False)[-1].number, recipe=start.recipe)

    def _handmade(self) -> list[Baseline]:
        """What is missing of the merges that people make by hand, once there is nothing but them left to be tried."""
        trials = self._study.get_trials(deepcopy=False)
        due = self._reserved(trials)
        if not due or len(self._states) < self.planned - due:
            return []
        labels = {t.user_attrs.get("baseline") for t in trials}
        return [b for b in handmade(self.spec, self._books) if b.name not in labels]

    def _by_loss(self) -> list[Baseline]:
        """The guess by the checkpoints' losses, once each was measured alone and as long as it was not tried."""
        if self._guessed:
            return []
        trials = self._study.get_trials(deepcopy=False)
        labels = {t.user_attrs.get("baseline"): t.number for t in trials if t.state == TrialState.COMPLETE}
        names = [c.name for c in self.spec.checkpoints]
        if not labels.keys() >= set(names):
            return []
        measured = self._store.measured(self._name)
        losses = {name: loss for name in names if (loss := _loss(measured[labels[name]])) is not None}
        guess = [by_loss(self.spec, losses)] if len(losses) == len(names) else []
        there = {recipe.digest for t in trials if (recipe := _recipe_of(t)) is not None}
        self._guessed = not guess or self._space.settled(guess[0].recipe).digest in there
        return [] if self._guessed else guess

    def _reserved(self, trials: Sequence[FrozenTrial]) -> int:
        """How many of the last trials are for them; none of a study that is too short to spare any."""
        labels = {t.user_attrs.get("baseline") for t in trials}
        return sum(name not in labels for name in _HANDMADE) if self._roomy else 0

    def _take_up_spooled(self) -> None:
        for path, outcome in self._spool.waiting():
            self._keep([outcome])
            path.unlink()
            _log.warning("taken up from %s", path, extra={"trial": outcome.number})

    def _put_right(self) -> None:
        known = {a.number for a in self._again} | set(self._out.values()) | set(chain(*self._twins.values()))
        measured = self._store.measured(self._name) | self._store.measured(self._name, FURTHER)
        left = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        # A second look goes before the new merge that it was preferred to, as it would have without the interruption.
        for trial in sorted(left, key=lambda t: AGAIN not in t.user_attrs):
            if trial.number in known:
                continue
            if trial.number in measured:
                self._tell(measured[trial.number])
            elif "recipe" in trial.user_attrs:
                recipe = Recipe.from_json(trial.user_attrs["recipe"])
                split = FURTHER if AGAIN in trial.user_attrs else "search"
                self._again.append(Assignment(number=trial.number, recipe=recipe, split=split))
            else:
                self._drop(trial)

    def _take_over(self) -> None:
        """Measurements of an earlier study become trials of this one; they count towards no planned number.

        One that a crash cut off has been dropped, and is taken over anew.
        """
        if self._warm is None or self._warm.reason:
            return
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        there = {t.user_attrs[INHERITED]["trial"] for t in trials if INHERITED in t.user_attrs}
        for number in [n for n in self._warm.trials if n not in there]:
            measured = self._store.with_marks(self._warm.study, number)
            recipe = extended(measured.recipe, self._space)
            if recipe is not None:
                self._inherit(replace(measured, recipe=recipe))

    def _inherit(self, measured: Measured) -> None:
        assert self._warm is not None
        recipe = measured.recipe
        attrs: dict[str, Any] = {INHERITED: self._warm.origin(measured.number, recipe)}
        known = self._starts().get(recipe.digest)
        if known is not None and known.name is not None:
            attrs["baseline"] = known.name
        with self._ledger.together():
            self._study.enqueue_trial(self._space.to_parameters(recipe), user_attrs=attrs)
            trial = self._study.ask()
            self._space.propose(_FromTrial(trial))
        self._keep([replace(measured, number=trial.number)])

    def _drop(self, trial: FrozenTrial) -> None:
        """A proposal that was cut off: it fails without a recipe, and so counts for nothing."""
        storage = self._ledger
        if trial.state == TrialState.WAITING:
            storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _missing_starts(self) -> list[Baseline]:
        trials = self._study.get_trials(deepcopy=False)
        there = {recipe.digest for t in trials if (recipe := _recipe_of(t)) is not None}
        return [start for digest, start in self._starts().items() if digest not in there]

    def _starts(self) -> dict[str, Baseline]:
        """Every starting point once, by the digest of its recipe as the space builds it."""
        starts: dict[str, Baseline] = {}
        for start in [*starting_points(self.spec), *self._again_from_before()]:
            starts.setdefault(self._space.settled(start.recipe).digest, start)
        return starts

    def _again_from_before(self) -> list[Baseline]:
        """Merges of an earlier study whose measurements are none of this one."""
        if self._warm is None or not self._warm.reason:
            return []
        measured = self._store.measured(self._warm.study)
        recipes = [extended(measured[n].recipe, self._space) for n in self._warm.trials]
        return [Baseline(name=None, recipe=recipe) for recipe in recipes if recipe is not None]


def _recipe_of(trial: FrozenTrial) -> Recipe | None:
    """The recipe of a trial of this study or of one that was taken over; None where its proposal was cut off."""
    taken = trial.user_attrs.get(INHERITED, {}) if trial.state == TrialState.COMPLETE else {}
    document = trial.user_attrs.get("recipe") or taken.get("recipe")
    return None if document is None else Recipe.from_json(document)


def _loss(measured: Measured) -> float | None:
    """Mean over objectives of the gold answers' negative log-likelihood; None where no scorer asked for it."""
    found = [parts[GOLD_NLL].mean for parts in measured.breakdown.values() if GOLD_NLL in parts]
    return fmean(found) if found else None


def _once_more(outcome: Outcome, number: int) -> Outcome:
    """The outcome of a trial whose merge was measured for another: it cost nothing."""
    if isinstance(outcome, Failed):
        return replace(outcome, number=number)
    return replace(outcome, number=number, seconds=dict.fromkeys(outcome.seconds, 0.0))


def _say(outcome: Outcome) -> None:
    if isinstance(outcome, Failed):
        about = {"trial": outcome.number, "worker": outcome.worker, "traceback": outcome.traceback}
        _log.warning("failed: %s", outcome.reason, extra=about)
    else:
        found = {"trial": outcome.number, "worker": outcome.worker, "seconds": dict(outcome.seconds)}
        _log.info("measured%s", outcome.stopped and f", {outcome.stopped}", extra=found)


def _unusable(measured: Measured, spec: Spec) -> str | None:
    """Why these scores must not be told, in words."""
    bounds = {o.name: o.bounds for o in spec.objectives}
    parts = [(f"{name} ({part})", s, None) for name, found in measured.breakdown.items() for part, s in found.items()]
    for name, score, within in [*((n, s, bounds.get(n)) for n, s in measured.scores.items()), *parts]:
        if not (isfinite(score.mean) and isfinite(score.stderr) and score.stderr >= 0):
            return f"scores must be finite, but {name} is {score.mean} with standard error {score.stderr}."
        if score.n < 1:
            return f"scores must be of items, but {name} is of none."
        low, high = within or (-inf, inf)
        if not low - _ROUNDING <= score.mean <= high + _ROUNDING:
            return f"scores must lie in their scorer's range, but {name} is {score.mean} and its range [{low}, {high}]."
    missing = [o.name for o in spec.optimised if o.name not in measured.scores]
    return f"every objective must be measured, but {missing[0]} is not." if missing else None
