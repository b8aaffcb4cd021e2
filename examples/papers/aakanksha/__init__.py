"""Aakanksha et al. 2024 (arXiv:2410.10801): mix the data, or merge models that were trained apart."""

from examples.papers.aakanksha.account import claims, section
from examples.papers.aakanksha.replay import replay, runs
from examples.papers.kit.paper import Paper

PAPER = Paper(
    key="aakanksha",
    title="Mix data or merge models (Aakanksha et al. 2024)",
    source=(
        "Aakanksha et al., *Mix Data or Merge Models? Optimizing for Diverse Multi-Task Learning*, "
        "[arXiv:2410.10801](https://arxiv.org/abs/2410.10801)."
    ),
    runs=runs,
    replay=replay,
    claims=claims,
    section=section,
)
