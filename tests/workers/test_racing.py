from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.racing import Gap, Rules, behind, dominated, lay_rungs, verdict
from workers.suites import Item

Array = npt.NDArray[np.float64]
RULES = Rules(confidence=0.9)
LOOKS = len(RULES.rungs)
SHARES = (*RULES.rungs, 1.0)


def items(kind: str, groups: int, labels: Sequence[str | None] = (None,)) -> list[Item]:
    """Groups in three languages each, labelled in turn."""
    return [
        Item(id=f"{kind}-{g}-{lang}", prompt="p", lang=lang, label=labels[g % len(labels)], group=f"{kind}-{g}")
        for g in range(groups)
        for lang in ("aa", "bb", "cc")
    ]


# Rungs ---------------------------------------------------------------------------------------------------------------

counts = st.integers(min_value=1, max_value=60)


@given(counts, counts, st.integers(min_value=0, max_value=2**32 - 1))
def test_rungs_are_nested_and_end_with_everything(first: int, second: int, seed: int) -> None:
    suites = {"a": items("a", first, ("harmful", "benign")), "b": items("b", second)}
    rungs = lay_rungs(suites, Rules(confidence=0.9, seed=seed))
    assert rungs[-1] == {key: list(range(len(found))) for key, found in suites.items()}
    for before, after in pairwise(rungs):
        assert before != after
        assert all(set(before[key]) <= set(after[key]) for key in suites)
        assert all(places == sorted(places) for places in after.values())


@given(counts, st.integers(min_value=0, max_value=9))
def test_every_rung_has_every_language_and_label_and_splits_no_group(groups: int, seed: int) -> None:
    suite = items("a", groups, ("harmful", "benign"))
    for rung in lay_rungs({"a": suite}, Rules(confidence=0.9, seed=seed)):
        asked = [suite[place] for place in rung["a"]]
        assert {(i.lang, i.label) for i in asked} == {(i.lang, i.label) for i in suite}
        assert set(Counter(i.group for i in asked).values()) == {3}


def test_every_rung_holds_its_share_of_every_suite_and_label() -> None:
    suites = {"a": items("a", 200, ("harmful", "benign")), "b": items("b", 40)}
    for share, rung in zip(SHARES, lay_rungs(suites, RULES), strict=True):
        labels = Counter(suites["a"][place].label for place in rung["a"])
        assert labels == {"harmful": 300 * share, "benign": 300 * share}
        assert len(rung["b"]) == 120 * share


def test_the_order_is_the_seeds_and_the_same_every_time() -> None:
    suites = {"a": items("a", 50)}
    first, again = (lay_rungs(suites, Rules(confidence=0.9, seed=1)) for _ in range(2))
    assert first == again
    assert first != lay_rungs(suites, Rules(confidence=0.9, seed=2))


def test_items_without_translations_are_spread_over_languages_too() -> None:
    suite = [Item(id=f"{lang}{i}", prompt="p", lang=lang) for lang in ("aa", "bb") for i in range(40)]
    first = lay_rungs({"a": suite}, RULES)[0]["a"]
    assert Counter(suite[place].lang for place in first) == {"aa": 4, "bb": 4}


def test_a_small_suite_has_fewer_rungs() -> None:
    assert len(lay_rungs({"a": items("a", 3)}, RULES)) == 2


# Tests ---------------------------------------------------------------------------------------------------------------


def gap(differences: Array) -> Gap:
    """Of per-cluster differences ``(..., clusters)`` of 0/1 values, one kind."""
    clusters = differences.shape[-1]
    return Gap(
        mean=differences.mean(axis=-1),
        parts=differences / clusters,
        kinds=np.zeros(clusters, dtype=np.intp),
        pseudo=(0.0, 1.0),
    )


differences = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=3, max_size=40).map(np.array)


@given(differences)
def test_a_p_value_and_its_mirror_image_add_up_to_one(found: Array) -> None:
    assert behind(gap(found)) + behind(gap(-found)) == pytest.approx(1.0)


@given(differences, st.randoms(use_true_random=False))
def test_the_order_of_clusters_does_not_matter(found: Array, random: object) -> None:
    shuffled = np.random.default_rng(0).permutation(found)
    assert behind(gap(shuffled)) == pytest.approx(behind(gap(found)))


@given(st.integers(min_value=2, max_value=200))
def test_equal_outcomes_are_never_behind(clusters: int) -> None:
    assert behind(gap(np.zeros(clusters))) == pytest.approx(0.5)


def test_a_few_items_that_all_agree_are_not_certainty() -> None:
    assert 0.01 < behind(gap(np.full(3, -1.0))) < 0.2
    assert behind(gap(np.full(30, -1.0))) < 1e-6


def test_differences_between_kinds_are_not_noise() -> None:
    """Ten clusters that lose half of what ten others lose: surely behind, as no kind varies within itself."""
    parts = np.repeat([-0.5, -1.0], 10) / 20
    kinds = np.repeat([0, 1], 10)
    told = Gap(mean=parts.sum(), parts=parts, kinds=kinds, pseudo=None)
    mixed = Gap(mean=parts.sum(), parts=parts, kinds=np.zeros(20, dtype=np.intp), pseudo=None)
    assert behind(told) < behind(mixed)


def test_unbounded_values_without_any_spread_decide_by_their_sign() -> None:
    flat = [Gap(mean=np.array(m), parts=np.full(4, m / 4), kinds=np.zeros(4, int), pseudo=None) for m in (-1, 0, 1)]
    assert [float(behind(g)) for g in flat] == [0.0, 1.0, 1.0]


p_tables = st.integers(min_value=1, max_value=6).flatmap(
    lambda rivals: st.lists(
        st.tuples(st.floats(min_value=0, max_value=1), st.floats(min_value=0, max_value=1)),
        min_size=rivals,
        max_size=rivals,
    )
)


@given(p_tables, st.permutations(range(6)))
def test_the_order_of_rivals_does_not_matter(table: list[tuple[float, float]], order: list[int]) -> None:
    p_values = np.array(table)
    turned = p_values[[i for i in order if i < len(table)]]
    assert dominated(turned, 0.1) == dominated(p_values, 0.1)


@given(p_tables)
def test_who_is_as_good_in_one_objective_is_not_dominated(table: list[tuple[float, float]]) -> None:
    p_values = np.array(table)
    p_values[:, 0] = np.maximum(p_values[:, 0], 0.5)
    assert not dominated(p_values, 0.1)


def test_many_rivals_of_a_kind_cost_little() -> None:
    """Twenty copies of a rival decide as the rival alone does."""
    one = np.array([[0.03, 0.01]])
    assert dominated(one, 0.033)
    assert dominated(np.repeat(one, 20, axis=0), 0.033)


def test_the_verdict_names_the_rival_or_the_constraint() -> None:
    worse, equal = np.full((2, 40), -1.0), np.zeros((2, 40))
    worse[0] = 0.0
    gaps = [gap(worse), gap(worse)]
    broken = {"safety at_least 0.9": gap(np.full(40, -1.0))}
    assert verdict(gaps, [3, 7], {}, rules=RULES, looks=LOOKS) == "dominated by trial 7"
    assert verdict([gap(worse), gap(equal)], [3, 7], {}, rules=RULES, looks=LOOKS) == ""
    assert verdict([], [], broken, rules=RULES, looks=LOOKS) == "safety at_least 0.9 not met"
    assert verdict([], [], {}, rules=RULES, looks=LOOKS) == ""


# Simulated races -----------------------------------------------------------------------------------------------------

CLUSTERS, RACES = 80, 4000


def outcomes(rates: Array, races: int, rng: np.random.Generator, likeness: float = 0.8) -> Array:
    """0/1 outcomes ``(races, models, clusters)`` with these success rates; models agree as similar merges do.

    Each cluster's difficulty is mostly shared: a normal copula with correlation ``likeness``.
    """
    from scipy.special import ndtri

    shared = rng.normal(size=(races, 1, CLUSTERS))
    own = rng.normal(size=(races, len(rates), CLUSTERS))
    latent = np.sqrt(likeness) * shared + np.sqrt(1 - likeness) * own
    return (latent < ndtri(rates)[:, None]).astype(float)


def stopped_at(tables: Sequence[Array], bound: float | None = None) -> npt.NDArray[np.int_]:
    """The look at which each race stops, or ``LOOKS``.

    Args:
        tables: per objective ``(races, 1 + rivals, clusters)``, the candidate first. bound: on the first objective.
    """
    level = (1 - RULES.confidence) / LOOKS / (1 if bound is None else 2)
    found = np.full(len(tables[0]), LOOKS)
    for look in reversed(range(LOOKS)):
        seen = int(RULES.rungs[look] * CLUSTERS)
        p_values = [behind(gap(t[:, :1, :seen] - t[:, 1:, :seen])) for t in tables]
        stops = dominated(np.stack(p_values, axis=-1), level)
        if bound is not None:
            stops |= behind(_above(tables[0][:, 0, :seen], bound)) <= level
        found[stops] = look
    return found


def _above(values: Array, bound: float) -> Gap:
    met = gap(values - bound)
    return Gap(mean=met.mean, parts=met.parts, kinds=met.kinds, pseudo=(1 - 2 * bound, (1 - bound) ** 2 + bound**2))


FRONT = np.array([[0.99, 0.6], [0.97, 0.7], [0.94, 0.78], [0.9, 0.84], [0.84, 0.88], [0.75, 0.9]])
"""True rates of six members in two objectives."""

ON_THE_FRONT = {
    "between two members": (0.955, 0.74),
    "equal to a member": (0.94, 0.78),
    "a hair above one and far below in the other": (0.94, 0.3),
    "the best of one objective": (0.995, 0.3),
    "the best of the other": (0.3, 0.91),
}


@pytest.mark.parametrize("likeness", [0.0, 0.8, 0.98])
@pytest.mark.parametrize("candidate", ON_THE_FRONT.values(), ids=ON_THE_FRONT.keys())
def test_who_belongs_on_the_front_is_stopped_less_often_than_stated(
    candidate: tuple[float, float], likeness: float
) -> None:
    rng = np.random.default_rng(5)
    models = np.vstack([candidate, FRONT])
    tables = [outcomes(models[:, j], RACES, rng, likeness) for j in range(2)]
    assert (stopped_at(tables) < LOOKS).mean() <= 1 - RULES.confidence


@pytest.mark.parametrize("clones", [1, 20])
@pytest.mark.parametrize("likeness", [0.0, 0.8])
def test_a_candidate_equal_to_its_rivals_is_stopped_less_often_than_stated(clones: int, likeness: float) -> None:
    """The worst case of both tests at once: equal in one objective to every rival, hopeless in the other."""
    rng = np.random.default_rng(6)
    equal = outcomes(np.full(1 + clones, 0.7), RACES, rng, likeness)
    hopeless = outcomes(np.array([0.1, *[0.9] * clones]), RACES, rng, likeness)
    assert (stopped_at([equal, hopeless]) < LOOKS).mean() <= 1 - RULES.confidence


@pytest.mark.parametrize("rate", [0.9, 0.95])
def test_a_feasible_candidate_is_stopped_less_often_than_stated(rate: float) -> None:
    rng = np.random.default_rng(7)
    models = np.array([[rate, 0.9], [0.95, 0.8]])
    tables = [outcomes(models[:, j], RACES, rng) for j in range(2)]
    assert (stopped_at(tables, bound=0.9) < LOOKS).mean() <= 1 - RULES.confidence


def test_who_is_clearly_dominated_stops_early() -> None:
    rng = np.random.default_rng(8)
    models = np.vstack([(0.5, 0.3), FRONT])
    looks = stopped_at([outcomes(models[:, j], RACES, rng) for j in range(2)])
    asked = np.array(SHARES)[looks]
    assert (looks < LOOKS).mean() > 0.95
    assert asked.mean() < 0.35


def test_who_breaks_a_constraint_by_far_stops_early() -> None:
    rng = np.random.default_rng(9)
    models = np.array([[0.5, 0.9], [0.95, 0.8]])
    looks = stopped_at([outcomes(models[:, j], RACES, rng) for j in range(2)], bound=0.9)
    assert np.array(SHARES)[looks].mean() < 0.3


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(1, 7)))
def test_the_order_of_rivals_changes_no_race(order: list[int]) -> None:
    rng = np.random.default_rng(10)
    models = np.vstack([(0.8, 0.6), FRONT])
    tables = [outcomes(models[:, j], 200, rng) for j in range(2)]
    turned = [table[:, [0, *order]] for table in tables]
    assert (stopped_at(turned) == stopped_at(tables)).all()
