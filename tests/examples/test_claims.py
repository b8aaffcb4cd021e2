"""A claim's word follows from its interval and its bar."""

from collections.abc import Sequence

import pytest

from examples.papers.kit.claims import Claim, Spread


def claim(values: Sequence[float], *, bar: float = 0.0, less: bool = False) -> Claim:
    return Claim(text="", paper="", measure="", values=values, bar=bar, less=less)


def test_the_interval_is_students() -> None:
    spread = Spread.of([1.0, 2.0, 3.0])
    assert spread.mean == 2.0
    assert spread.high - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # 2 degrees of freedom, from a table
    assert spread.text() == "2.0 [-0.5, 4.5]"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((2.0, 2.1, 1.9), "holds"),
        ((-2.0, -2.1, -1.9), "does not"),
        ((2.0, -1.0, 0.5), "cannot be told"),
        ((0.0, 0.0, 0.0), "does not"),  # "better" is not met by what is the same
        ((5.0,), "cannot be told"),  # one training seed tells nothing of others
    ],
)
def test_the_word_says_on_which_side_of_the_bar_all_of_the_interval_lies(values: Sequence[float], word: str) -> None:
    assert claim(values).word == word


def test_a_margin_makes_a_claim_of_no_loss() -> None:
    assert claim((-0.2, -0.3, -0.1), bar=-1.0).word == "holds"
    assert claim((-0.2, -0.3, -0.2)).word == "does not"


def test_a_claim_of_less_turns_the_sides() -> None:
    assert claim((6.0, 6.1, 5.9), bar=10.0, less=True).word == "holds"
    assert claim((16.0, 16.1, 15.9), bar=10.0, less=True).word == "does not"
