"""A tiny family of real models, trained on the spot, that shows what a search over merges finds."""

from optimizer.demo.family import Plan, default_plan, make_family
from optimizer.demo.runs import Run

__all__ = ["Plan", "Run", "default_plan", "make_family"]
