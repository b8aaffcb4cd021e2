"""What a tracker is told, and when: by one that keeps everything in memory, and is away when it is told to be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from optuna.study import StudyDirection

from optimizer.front import hypervolume
from optimizer.results import results
from optimizer.spec import from_document
from optimizer.study import create_study
from optimizer.tracking.story import Story, about, tables
from optimizer.tracking.track import track
from optimizer.tracking.tracker import About, Export, Table, TrackerError, Trial
from search_spaces.errors import InputError
from storage.lease import Holder
from storage.store import Store
from tests.optimizer.tracking.conftest import FAILED, LOOK


class Memory:
    """A tracker. ``on_log`` is called before each trial that it takes."""

    title = "memory"

    def __init__(self, on_log: Callable[[Trial], None] = lambda _trial: None) -> None:
        self.begun = 0
        self.trials: dict[int, Trial] = {}
        self.tables: Mapping[str, Table] = {}
        self._on_log = on_log

    def begin(self, about: About) -> None:
        self.begun += 1

    def log(self, trial: Trial) -> None:
        self._on_log(trial)
        assert trial.number not in self.trials
        self.trials[trial.number] = trial

    def finish(self, tables: Mapping[str, Table], exports: Sequence[Export]) -> None:
        self.tables = tables


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr("optimizer.tracking.track._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("optimizer.tracking.track._PAUSE_SECONDS", 0.0)


def away(turns: Iterator[bool]) -> Callable[[Trial], None]:
    """Out of reach whenever the next turn says so."""

    def on_log(_trial: Trial) -> None:
        if next(turns):
            raise TrackerError("no route to host")

    return on_log


def test_every_trial_is_told_in_the_order_in_which_it_was_kept(told_study: Store) -> None:
    memory = Memory()
    assert track(told_study, "tiny", memory) == len(memory.trials)
    measured = told_study.measured("tiny")
    assert set(memory.trials) == {*measured, FAILED, LOOK}
    assert memory.trials[FAILED].reason == "a worker died"
    assert [t.place for t in memory.trials.values() if t.measured] == list(range(len(measured) + 1))
    (uniform,) = (t for t in memory.trials.values() if t.baseline == "uniform" and t.number != LOOK)
    score = measured[uniform.number].scores["safety"]
    assert uniform.metrics["safety/mean"] == score.mean
    assert uniform.metrics["safety/stderr"] == score.stderr
    assert uniform.recipe["weight/alpha"] == pytest.approx(1 / 3)


def test_the_hypervolume_told_last_is_of_all_merges_beyond_the_worst_baseline(told_study: Store) -> None:
    story = Story(told_study, "tiny")
    story.read()
    found = results(told_study, "tiny")
    means = {r.trial: [r.objectives[o].mean for o in ("safety", "general")] for r in found.rows}
    worst = [min(means[r.trial][o] for r in found.baselines) for o in (0, 1)]
    merges = np.array([means[r.trial] for r in found.merges])
    expected = hypervolume(merges, worst, [StudyDirection.MAXIMIZE] * 2)
    last = [t for t in story.trials if t.measured is not None][-1]
    assert last.hypervolume == pytest.approx(expected)
    assert expected > 0


def test_the_tables_are_the_front_all_trials_fresh_scores_and_failures(told_study: Store) -> None:
    found = tables(told_study, "tiny")
    assert {row[0] for row in found["trials"].rows} == set(told_study.measured("tiny"))
    assert {row[0] for row in found["front"].rows} < set(told_study.measured("tiny"))
    assert "safety.posterior_mean" in found["trials"].columns
    assert {row[1] for row in found["fresh"].rows} == {"validation", "report"}
    assert [list(row) for row in found["failures"].rows] == [[FAILED, "a worker died"]]


def test_what_is_measured_while_it_follows_is_told_too(told_study: Store, at_once: None) -> None:
    told_study.hold("tiny", Holder.me())

    def goes_on(trial: Trial) -> None:
        """The last trial that there is brings two more, then the driver lets go."""
        if trial.number in (LOOK, LOOK + 1):
            told_study.add_measured(
                "tiny", replace(told_study.with_marks("tiny", 0), number=trial.number + 1, marks={})
            )
        if trial.number == LOOK + 2:
            told_study.release("tiny")

    memory = Memory(goes_on)
    track(told_study, "tiny", memory)
    assert list(memory.trials)[-2:] == [LOOK + 1, LOOK + 2]
    assert memory.begun == 1


def test_an_outage_is_said_once_and_everything_is_caught_up(
    told_study: Store, at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    told_study.hold("tiny", Holder.me())
    out = away(iter([False, True, True, True, *[False] * 20]))

    def on_log(trial: Trial) -> None:
        out(trial)
        if trial.number == LOOK:
            told_study.release("tiny")

    memory = Memory(on_log)
    track(told_study, "tiny", memory)
    assert len(memory.trials) == len(told_study.measured("tiny")) + 2
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert said == [
        "memory is out of reach; trials wait, the study goes on: no route to host",
        "memory is back, and holds every trial",
    ]
    assert memory.begun == 4


def test_a_tracker_that_stays_away_is_an_error_at_the_end_and_another_run_sends_the_rest(told_study: Store) -> None:
    memory = Memory(away(iter([False, True])))
    count = len(told_study.measured("tiny")) + 2
    with pytest.raises(TrackerError, match=f"still out of reach, and {count - 1} trials of tiny wait"):
        track(told_study, "tiny", memory)
    again = Memory()
    assert track(told_study, "tiny", again) == count == len(again.trials)


def test_a_study_that_is_made_again_is_another(told_study: Store) -> None:
    spec = from_document(dict(told_study.study("tiny").spec))
    before = about(told_study, "tiny")
    assert before == about(told_study, "tiny")
    told_study.delete("tiny")
    create_study(
        told_study,
        spec.model_copy(update={"search": spec.search.model_copy(update={"seed": 9})}),
        trials=3,
        fingerprints={},
    )
    assert about(told_study, "tiny").key != before.key


def test_nothing_that_is_told_of_a_study_names_a_place_on_this_machine(told_study: Store) -> None:
    directory = str(from_document(dict(told_study.study("tiny").spec)).base.rsplit("/", 2)[0])
    assert directory.startswith("/")
    assert directory not in str(about(told_study, "tiny"))
    assert directory not in str(tables(told_study, "tiny"))


def test_an_unknown_study_is_refused(told_study: Store) -> None:
    with pytest.raises(InputError, match="there is no 'other'"):
        track(told_study, "other", Memory())
