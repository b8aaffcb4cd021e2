"""docs/papers.md, written whole from what the replays found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.papers.kit.claims import Claim
from examples.papers.kit.files import write
from examples.papers.kit.paper import Found, Paper

_HEAD = """# The three papers, replayed

mergefront exists to put three papers into people's hands. Here each is replayed on models small enough to train on two
cores: a base of 0.4 million parameters with five skills in six toy languages, and families trained from it by the
paper's protocol. This page is written by

    make papers

which trains all models, runs all studies and measures every figure below: {seeds} training seeds, each with a base,
items and studies of its own. Ours are figures on fresh items that neither search nor choice has seen: the mean over
training seeds, and Student's 95 % interval of that mean in brackets. **holds** means that all of the interval is beyond
what the claim needs, **does not** that none of it is, and *cannot be told* neither. What a model of this size shows
need not hold for one of 8B; what it can show is that the comparison can be run, and what to look for.
{short}
To replay one on checkpoints of your own, copy a study file from [examples/papers](../examples/papers), change the paths
under `base`, `checkpoints`, `references` and `suites`, and run `mergefront check`, `launch` and `validate` on it; the
README in each paper's folder says which file asks which question.
"""
_SHORT = """
**This is a short run, to see that everything works. Its models have learnt next to nothing: its figures mean nothing.**
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A paper, what each training seed gave, and why checkpoints were left out, one sentence each."""

    paper: Paper
    found: Sequence[Found]
    left_out: Sequence[str]


def write_page(path: Path, replays: Sequence[Replayed], *, short: bool) -> None:
    """Write the page to ``path`` and its figures below ``papers/`` beside it."""
    seeds = " or ".join(sorted({str(len(r.found)) for r in replays}))
    head = _HEAD.format(seeds=seeds, short=_SHORT if short else "")
    claims = [(r.paper, list(r.paper.claims(r.found))) for r in replays]
    sections = [_section(r, of, path.parent / "papers") for r, (_, of) in zip(replays, claims, strict=True)]
    write(path, "\n".join([head, _verdicts(claims), *sections]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with an empty line behind it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _verdicts(claims: Sequence[tuple[Paper, Sequence[Claim]]]) -> str:
    rows = [
        [paper.title, str(len(of)), *(str(sum(c.word == word for c in of)) for word in _WORDS)] for paper, of in claims
    ]
    return "## At a glance\n\n" + table(["paper", "claims", *_WORDS], rows)


_WORDS = ("holds", "does not", "cannot be told")


def _section(replayed: Replayed, claims: Sequence[Claim], figures: Path) -> str:
    paper = replayed.paper
    rows = [[c.text, c.paper, f"{c.measure}: {c.spread.text(c.digits)}{_needed(c)}", _strong(c.word)] for c in claims]
    parts = [f"## {paper.title}\n\n{paper.source}\n", table(["claim", "the paper", "ours", "verdict"], rows)]
    if replayed.left_out:
        parts.append("Left out of its seed's merges:\n\n" + "".join(f"- {reason}\n" for reason in replayed.left_out))
    return "\n".join([*parts, paper.section(replayed.found, figures)])


def _needed(claim: Claim) -> str:
    return f"; must be {'below' if claim.less else 'above'} {claim.bar:g}"


def _strong(word: str) -> str:
    return f"*{word}*" if word == "cannot be told" else f"**{word}**"
