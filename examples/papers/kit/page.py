"""docs/papers.md, written whole from what the replays found."""

from collections.abc import Sequence
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


def write_page(path: Path, replays: Sequence[tuple[Paper, Sequence[Found]]], *, short: bool) -> None:
    """Write the page to ``path`` and its figures below ``papers/`` beside it.

    Args:
        replays: each paper with what its training seeds gave.
    """
    seeds = ", ".join(sorted({str(len(found)) for _, found in replays}))
    head = _HEAD.format(seeds=seeds, short=_SHORT if short else "")
    claims = [(paper, list(paper.claims(found))) for paper, found in replays]
    sections = [
        _section(paper, found, of, path.parent / "papers")
        for (paper, found), (_, of) in zip(replays, claims, strict=True)
    ]
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


def _section(paper: Paper, found: Sequence[Found], claims: Sequence[Claim], figures: Path) -> str:
    rows = [[c.text, c.paper, f"{c.measure}: {c.spread.text(c.digits)}{_needed(c)}", _strong(c.word)] for c in claims]
    return "\n".join(
        [
            f"## {paper.title}\n\n{paper.source}\n",
            table(["claim", "the paper", "ours", "verdict"], rows),
            paper.section(found, figures),
        ]
    )


def _needed(claim: Claim) -> str:
    return f"; must be {'below' if claim.less else 'above'} {claim.bar:g}"


def _strong(word: str) -> str:
    return f"*{word}*" if word == "cannot be told" else f"**{word}**"
