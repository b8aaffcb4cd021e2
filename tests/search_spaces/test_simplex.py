from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.simplex import HIGH, LOW, coordinates_of, weights_of

coordinates = st.lists(st.floats(LOW, HIGH), min_size=1, max_size=12)


@given(coordinates)
def test_weights_are_positive_and_sum_to_one(xs: list[float]) -> None:
    weights = weights_of(xs)
    assert all(w >= 0 for w in weights)
    assert fsum(weights) == pytest.approx(1.0, abs=1e-12)


@given(coordinates)
def test_a_coordinate_in_the_dead_zone_is_exactly_zero(xs: list[float]) -> None:
    if max(xs) > 0:
        assert all((w == 0.0) == (x <= 0.0) or w < 1e-300 for x, w in zip(xs, weights_of(xs), strict=True))


@given(coordinates)
def test_weights_come_back_from_their_coordinates(xs: list[float]) -> None:
    weights = weights_of(xs)
    assert weights_of(coordinates_of(weights)) == pytest.approx(weights, abs=1e-12)
    assert [w == 0 for w in weights_of(coordinates_of(weights))] == [w == 0 for w in weights]


@given(coordinates)
def test_coordinates_lie_in_their_range(xs: list[float]) -> None:
    assert all(LOW <= x <= HIGH for x in coordinates_of(weights_of(xs)))


def test_without_a_positive_coordinate_the_largest_takes_all() -> None:
    assert weights_of([-0.4, -0.1, -0.3]) == (0.0, 1.0, 0.0)


def test_a_corner_is_exactly_one() -> None:
    assert weights_of(coordinates_of((0.0, 1.0, 0.0))) == (0.0, 1.0, 0.0)
