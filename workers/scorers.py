"""The scorers by their short names.

A scorer is a small final class with a name, a version (a change of meaning is a new one), what it needs, a direction
and bounds. It says what to ask about an item and marks the answers. A value of None is *unscored*, which is not zero.
"""

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import InputError
from workers.answers import ExactMatch, GoldNll, Perplexity
from workers.choices import ChoiceLetter, MultipleChoice
from workers.classifiers import Classifier
from workers.guards import Guard
from workers.judge import Judge
from workers.lm_eval_suites import LmEval
from workers.marks import Bounds, InBatches, Mark, OneByOne, Prepares, Scorer, mark_all
from workers.options import build, paths
from workers.plugins import PREFIX, PythonFunction
from workers.refusals import Refusal, read_phrases, shipped_phrases

__all__ = [
    "SCORERS",
    "Bounds",
    "InBatches",
    "Mark",
    "OneByOne",
    "Prepares",
    "Scorer",
    "make_scorer",
    "mark_all",
    "path_options",
    "read_phrases",
    "shipped_phrases",
]

_SCORERS: dict[str, Any] = {
    kind.name: kind
    for kind in (
        ExactMatch,
        MultipleChoice,
        ChoiceLetter,
        GoldNll,
        Perplexity,
        Refusal,
        Classifier,
        Guard,
        Judge,
        LmEval,
    )
}
SCORERS = tuple(name for name in _SCORERS if name != LmEval.name)
"""Those that a suite of one's own items can have; a task of lm-evaluation-harness marks its own."""


def make_scorer(name: str, options: Mapping[str, Any]) -> Scorer:
    """The scorer of that short name, or of ``python:module:function``. Opens no file and imports nothing.

    Raises: InputError for an unknown name or option, or a value that an option does not take.
    """
    if name.startswith(PREFIX):
        if "function" in options:
            raise InputError(f"the scorer {name} takes max_new_tokens, maximise, bounds, but got function.")
        return build(PythonFunction, name, {"function": name.removeprefix(PREFIX), **options})
    if name not in _SCORERS:
        raise InputError(f"a scorer must be one of {', '.join(SCORERS)}, {PREFIX}module:function, but got {name!r}.")
    scorer: Scorer = build(_SCORERS[name], name, options)
    return scorer


def path_options(name: str) -> dict[str, str]:
    """Which options of a scorer name a ``file`` or a ``model``; they are relative to the study file."""
    return paths(_SCORERS[name]) if name in _SCORERS else {}
