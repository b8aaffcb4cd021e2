"""Khalifa et al. 2024 (arXiv:2412.04144): merge what you have, the poor checkpoints too."""

from examples.papers.khalifa.account import claims, section
from examples.papers.khalifa.replay import replay, runs
from examples.papers.kit.paper import Paper

PAPER = Paper(
    key="khalifa",
    title="Recycling checkpoints (Khalifa et al. 2024)",
    source=(
        "Muhammad Khalifa et al., *If You Can't Use Them, Recycle Them: Optimizing Merging at Scale Mitigates "
        "Performance Tradeoffs*, [arXiv:2412.04144](https://arxiv.org/abs/2412.04144)."
    ),
    runs=runs,
    replay=replay,
    claims=claims,
    section=section,
)
