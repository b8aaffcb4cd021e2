"""A few seconds of what ``python -m benchmarks.fuzz`` does for minutes: no parser raises anything but an InputError."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import ACCEPTED, REFUSED, TARGETS, Target, outcome

INPUTS = {"study": 150, "suite": 500, "weights": 500}


def mutations(target: Target) -> st.SearchStrategy[bytes]:
    """A seed after some edits: a piece cut out, another put in, from the format's own words or at random."""
    piece = st.sampled_from([w.encode() for w in target.words]) | st.binary(max_size=4)
    edit = st.tuples(st.integers(0, 4096), st.integers(0, 12), piece)
    return st.builds(edited, st.sampled_from(target.seeds), st.lists(edit, min_size=1, max_size=4))


def edited(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, piece in edits:
        start = place % (len(seed) + 1)
        seed = seed[:start] + piece + seed[start + length :]
    return seed


@pytest.mark.parametrize("name", list(TARGETS))
def test_seeds_are_read(name: str, tmp_path: Path) -> None:
    feed = TARGETS[name].make(tmp_path)
    assert ACCEPTED in [outcome(feed, seed) for seed in TARGETS[name].seeds]


@pytest.mark.parametrize("name", list(TARGETS))
def test_whatever_is_read_is_accepted_or_refused(name: str, tmp_path: Path) -> None:
    feed = TARGETS[name].make(tmp_path)
    seen: set[int] = set()

    @settings(max_examples=INPUTS[name], deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutations(TARGETS[name]))
    def read(data: bytes) -> None:
        seen.add(outcome(feed, data))

    read()
    assert seen == {ACCEPTED, REFUSED}
