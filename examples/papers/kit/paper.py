"""What a replay consists of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.papers.kit.claims import Claim
from examples.papers.kit.lab import Lab
from examples.papers.kit.sizes import Size
from optimizer.demo.runs import Run

Found = Any
"""What one training seed gave: anything that JSON holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A paper and its replay.

    Attributes:
        key: the folder's name, and that of its directory below the work directory. title: the section's. source: the
            paper, as a reference in Markdown.
        runs: what is trained, the base first, each start before the runs that go on from it.
        replay: measures one training seed. claims: what all seeds say of each of the paper's claims.
        section: the section's text in Markdown but for the claims; figures go below the directory that it is given,
            which is ``papers/`` beside the page.
    """

    key: str
    title: str
    source: str
    runs: Callable[[Size], Sequence[Run]]
    replay: Callable[[Lab], Found]
    claims: Callable[[Sequence[Found]], Sequence[Claim]]
    section: Callable[[Sequence[Found], Path], str]
