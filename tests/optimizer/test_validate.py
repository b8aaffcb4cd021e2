"""Finalists on fresh items: with a real worker where something is measured, with known outcomes where it is said."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optimizer import loop
from optimizer.results import Results, Row, results
from optimizer.spec import load_spec
from optimizer.study import DriverStudy, create_study
from optimizer.validate import Validation, finalists, validate
from optimizer.watcher import NOBODY
from search_spaces.recipe import Recipe
from storage.records import SPLITS, Outcome, Score
from storage.store import Store
from tests.conftest import Counting
from workers.pool import LocalPool
from workers.suites import Item
from workers.worker import Worker

Known = Callable[..., Store]
WATCHED = [
    {
        "name": "safety",
        "suites": [{"path": "suites/safety.jsonl", "scorer": "refusal", "phrases": "suites/phrases.json"}],
    },
    {"name": "general", "suites": [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]},
    {"name": "exact", "role": "watch", "suites": [{"path": "suites/exact.jsonl", "scorer": "exact_match"}]},
]


class Nobody(LocalPool):
    """No worker: everything must have been measured before."""

    def __init__(self) -> None:
        super().__init__(lambda: None)  # type: ignore[arg-type, return-value]

    def finished(self) -> list[Outcome]:
        raise AssertionError("nothing may be measured again")


@pytest.fixture
def worker(study_file: Callable[..., Path]) -> Worker:
    return Worker(load_spec(study_file()).setup(device="cpu"))


@pytest.fixture
def store(study_file: Callable[..., Path], storage: str, worker: Worker) -> Iterator[Store]:
    """A searched study of real merges."""
    store = Store.open(storage, create=True)
    search(store, study_file(), worker)
    yield store
    store.close()


def search(store: Store, path: Path, worker: Worker) -> None:
    spec = load_spec(path)
    create_study(store, spec, trials=12, fingerprints={})
    loop.search(DriverStudy(store, spec.study), LocalPool(lambda: worker), lambda _: None)


def row(
    trial: int, safety: float, general: float, stderr: float = 0.02, *, on_front: bool = False, **more: object
) -> Row:
    recipe = Recipe(method="linear", weights={"alpha": (1.0,)})
    posterior = {"safety": (safety, stderr), "general": (general, stderr)}
    scores = {name: Score(mean=mean, stderr=stderr, n=100) for name, (mean, _) in posterior.items()}
    settings = {"feasible": True, "baseline": None} | more
    return Row(trial=trial, recipe=recipe, objectives=scores, posterior=posterior, on_front=on_front, **settings)  # type: ignore[arg-type]


def test_finalists_are_the_front_what_is_within_one_standard_error_and_the_baselines(
    study_file: Callable[..., Path],
) -> None:
    rows = (
        row(0, 0.2, 0.2, baseline="uniform"),
        row(1, 0.9, 0.5, on_front=True),
        row(2, 0.5, 0.9, on_front=True),
        row(3, 0.89, 0.45),  # behind trial 1 by .01 on safety
        row(4, 0.85, 0.45),  # behind by more than a standard error on both
        row(5, 0.88, 0.48, 0.005),  # as near, but known better
        row(6, 0.89, 0.49, feasible=False),
        row(7, 0.89, 0.49, stopped="dominated after 20 of 96 items"),
    )
    found = Results(spec=load_spec(study_file()), rows=rows, fallback=None)
    assert [r.trial for r in finalists(found)] == [1, 2, 3, 0]


def test_validation_measures_what_is_missing_and_nothing_twice(store: Store, worker: Worker) -> None:
    pool = Counting(worker)
    found = validate(store, "tiny", pool, NOBODY)
    chosen = {r.trial for r in finalists(results(store, "tiny"))}
    assert {a.number for a in pool.asked if a.split == "validation"} == chosen
    baselines = {f.trial for f in found.finalists if f.baseline is not None}
    assert {a.number for a in pool.asked if a.split == "report"} == set(found.picked) | baselines
    assert found.picked
    assert found.warnings == ()
    again = validate(store, "tiny", Nobody(), NOBODY)
    assert again.to_json() == found.to_json()


def test_the_json_keeps_its_form_and_adds_to_it(store: Store, worker: Worker) -> None:
    document = json.loads(json.dumps(validate(store, "tiny", LocalPool(lambda: worker), NOBODY).to_json()))
    assert set(document) >= {"picked", "finalists"}
    for finalist in document["finalists"]:
        assert set(finalist) >= {"trial", "baseline", "splits"}
        assert set(finalist["splits"]) <= set(SPLITS)
        figures = [f for split in finalist["splits"].values() for f in split.values()]
        assert all(set(f) == {"mean", "stderr", "n", "low", "high"} for f in figures)
        assert all(f["low"] <= f["mean"] <= f["high"] for f in figures)
        assert {g["split"] for g in finalist["optimism"].values()} <= {"report", "validation"}
    assert len(document["claims"]) == len({(c["trial"], c["objective"], c["against"]) for c in document["claims"]})


def test_report_items_that_another_study_used_are_said_aloud(
    store: Store, worker: Worker, study_file: Callable[..., Path]
) -> None:
    validate(store, "tiny", LocalPool(lambda: worker), NOBODY)
    search(store, study_file(study="second"), worker)
    second = validate(store, "second", LocalPool(lambda: worker), NOBODY)
    assert len(second.warnings) == 2
    assert all("were used before, by tiny at 20" in w for w in second.warnings)
    assert validate(store, "second", Nobody(), NOBODY).warnings == second.warnings
    assert validate(store, "tiny", Nobody(), NOBODY).warnings == ()


def test_other_picks_on_the_same_report_items_are_said_aloud(store: Store, worker: Worker) -> None:
    validate(store, "tiny", LocalPool(lambda: worker), NOBODY)
    store.note("tiny", "report_picks", [[99], *store.notes("tiny")["report_picks"]])
    (warning,) = validate(store, "tiny", Nobody(), NOBODY).warnings
    assert "this study has used its report items before, for other picks (99)" in warning


def measured_study(known_study: Known, rule: Callable[..., float], merges: dict[str, dict[str, float]]) -> Validation:
    store = known_study(rule, merges=merges, objectives=WATCHED)
    return validate(store, "tiny", Nobody(), NOBODY)


def pick_wins(name: str, split: str, objective: str, place: int, item: Item) -> float:
    """Trial 6 is better on safety; on the watched objective it has lost what every other model can do."""
    if objective == "safety":
        return float(name == "pick" or place % 2)
    if objective == "exact":
        return float(place % 10 == 0) if name == "pick" else float(place % 10 != 0)
    return float(place % 5 != 0)


def test_a_pick_is_held_against_every_source_checkpoint(known_study: Known) -> None:
    found = measured_study(known_study, pick_wins, {"pick": {"alpha": 0.6, "beta": 0.4}})
    assert 6 in found.picked
    mine = [c for c in found.claims if c.trial == 6]
    assert {c.rival for c in mine} == {"alpha", "beta", "gamma"}
    verdicts = {(c.objective.name, c.verdict) for c in mine}
    assert verdicts == {("safety", "better"), ("general", "open"), ("exact", "worse")}
    assert all(c.p >= c.difference.p for c in mine)
    text = found.to_text()
    assert "safety: beats every source checkpoint (5 %, Holm over" in text
    assert "exact: loses to alpha, beta, gamma (5 %, Holm over" in text
    assert "general: cannot be told from alpha, beta, gamma" in text
    assert "optimism gap, search minus report: safety " in text


def test_a_loss_on_a_watched_objective_is_said_aloud(known_study: Known) -> None:
    found = measured_study(known_study, pick_wins, {"pick": {"alpha": 0.6, "beta": 0.4}})
    assert {c.objective.name for c in found.watched} == {"exact"}
    losses = [w for w in found.warnings if w.startswith("trial 6 has lost on the watched objective exact: ")]
    assert len(losses) == 2
    assert "worse than base (95 % interval" in losses[0]
    assert found.to_json()["warnings"] == list(found.warnings)


def test_the_gap_is_between_what_the_search_said_and_what_fresh_items_say(known_study: Known) -> None:
    def flattered(name: str, split: str, objective: str, place: int, item: Item) -> float:
        return float(place % (10 if split == "search" and name == "pick" else 4) != 0)

    found = measured_study(known_study, flattered, {"pick": {"alpha": 0.6, "beta": 0.4}})
    by_name = {f.trial: f.optimism for f in found.finalists}
    assert by_name[6]["safety"].value == pytest.approx(0.15, abs=0.03)
    assert by_name[6]["safety"].low > 0
    assert abs(by_name[0]["safety"].value) < 0.03


def test_neighbours_on_the_front_say_how_many_items_would_tell_them_apart(known_study: Known) -> None:
    def trade(name: str, split: str, objective: str, place: int, item: Item) -> float:
        better = {"left": "safety", "right": "general"}.get(name)
        return float(place % 60 != 0) if objective == better else float(place % 61 > 1 if better else place % 2)

    merges = {"left": {"alpha": 0.6, "beta": 0.4}, "right": {"alpha": 0.4, "beta": 0.6}}
    found = measured_study(known_study, trade, merges)
    pairs = {n.trials for n in found.neighbours}
    assert (6, 7) in pairs or (7, 6) in pairs
    assert "cannot be told apart on safety with " in found.to_text()
    needed = [n.difference.items_needed for n in found.neighbours if set(n.trials) == {6, 7}]
    assert all(n is None or n > 0 for n in needed)
