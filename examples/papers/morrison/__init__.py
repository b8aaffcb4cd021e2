"""Morrison et al. 2024, "Merge to Learn" (arXiv:2410.12937): skills added to a generalist by merging."""

from examples.papers.kit.paper import Paper
from examples.papers.morrison.account import claims, section
from examples.papers.morrison.replay import replay, runs

__all__ = ["PAPER"]

PAPER = Paper(
    key="morrison",
    title="Merge to learn (Morrison et al. 2024)",
    source=(
        "Jacob Morrison et al., *Merge to Learn: Efficiently Adding Skills to Language Models with Model Merging*, "
        "[arXiv:2410.12937](https://arxiv.org/abs/2410.12937). Its figures are from [a summary of its tables]"
        "(https://summary-of-some-paper-in-cuda.readthedocs.io/en/latest/training-methods/"
        "MergetoLearn-EfficientlyAddingSkillstoLanguageModelswithMode/)."
    ),
    runs=runs,
    replay=replay,
    claims=claims,
    section=section,
)
