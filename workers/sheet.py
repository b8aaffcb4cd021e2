"""A sheet: every question of one split, tokenised once and asked of each merge in the same order."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from storage.records import Marks, Score
from workers.engine import Engine, Request
from workers.prompts import to_request
from workers.questions import Answer
from workers.scorers import Mark, Scorer
from workers.scores import Across, Valued, objective_score, plain_score
from workers.suites import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Items of one split with their scorer; ``key`` is unique in a study."""

    key: str
    scorer: Scorer
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Suites whose scores make one number."""

    name: str
    suites: tuple[Suite, ...]
    across: Across = "mean"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where its values must lie."""
        return self.suites[0].scorer.bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a sheet gives for one merge."""

    scores: Mapping[str, Score]
    breakdown: Mapping[str, Mapping[str, Score]]
    marks: Mapping[str, Marks]


class Sheet:
    """The questions of all objectives on one split.

    Args:
        context: tokens the model can attend to; an item that needs more is *unscored*, never cut.
    """

    def __init__(self, objectives: Sequence[Objective], tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self._objectives = objectives
        self._places: dict[str, list[list[int] | None]] = {}
        requests: list[Request] = []
        for suite in (s for o in objectives for s in o.suites):
            self._places[suite.key] = [_lay(suite, item, tokenizer, context, requests) for item in suite.items]
        # One queue an engine and kind: batches run across suites.
        self._scored = tuple(r for r in requests if r.continuation)
        self._written = tuple(r for r in requests if not r.continuation)
        self._kinds = [bool(r.continuation) for r in requests]

    def ask(self, engine: Engine) -> Result:
        """Ask everything and mark it. Raises TrialError where the answers cannot be used."""
        scored = iter(engine.loglikelihood(self._scored) if self._scored else ())
        written = iter(engine.generate(self._written) if self._written else ())
        answers: list[Answer] = [next(scored) if kind else next(written) for kind in self._kinds]
        marks = {suite.key: self._mark(suite, answers) for objective in self._objectives for suite in objective.suites}
        return Result(
            scores={o.name: objective_score(_valued(o, marks), o.across, o.bounds) for o in self._objectives},
            breakdown={o.name: _breakdown(o, marks) for o in self._objectives},
            marks={suite.key: _columns(suite, marks[suite.key]) for o in self._objectives for suite in o.suites},
        )

    def _mark(self, suite: Suite, answers: Sequence[Answer]) -> list[Mark]:
        return [
            Mark(value=None, verdict="too_long")
            if places is None
            else suite.scorer.mark(item, [answers[p] for p in places])
            for item, places in zip(suite.items, self._places[suite.key], strict=True)
        ]


def _lay(
    suite: Suite, item: Item, tokenizer: PreTrainedTokenizerBase, context: int, requests: list[Request]
) -> list[int] | None:
    """Add the item's requests; returns their places, or None where one of them is too long for the model."""
    lack = suite.scorer.check(item)
    if lack:
        raise InputError(f"item {item.id} of {suite.key}: the scorer {suite.scorer.name} needs {lack}.")
    try:
        wanted = [to_request(tokenizer, question) for question in suite.scorer.ask(item)]
    except InputError as e:
        raise InputError(f"item {item.id} of {suite.key}: {e}") from e
    if any(request.length > context for request in wanted):
        return None
    requests.extend(wanted)
    return list(range(len(requests) - len(wanted), len(requests)))


def _valued(objective: Objective, marks: Mapping[str, Sequence[Mark]]) -> list[Valued]:
    return [
        Valued(suite=suite.key, item=item, value=mark.value)
        for suite in objective.suites
        for item, mark in zip(suite.items, marks[suite.key], strict=True)
    ]


def _breakdown(objective: Objective, marks: Mapping[str, Sequence[Mark]]) -> dict[str, Score]:
    """Scores by language (``lang:en``), by suite where there are several, and of every named part."""
    valued = _valued(objective, marks)
    by_part: dict[str, list[Valued]] = defaultdict(list)
    for v in valued:
        by_part[f"lang:{v.item.lang}"].append(v)
        if len(objective.suites) > 1:
            by_part[f"suite:{v.suite}"].append(v)
    found = {part: objective_score(vs, "mean", objective.bounds) for part, vs in sorted(by_part.items())}
    parts: dict[str, list[float]] = defaultdict(list)
    for suite in objective.suites:
        for mark in marks[suite.key]:
            for part, value in mark.parts.items():
                parts[part].append(value)
    return found | {part: plain_score(values) for part, values in parts.items()}


def _columns(suite: Suite, marks: Sequence[Mark]) -> Marks:
    return Marks(
        ids=tuple(item.id for item in suite.items),
        values=tuple(mark.value for mark in marks),
        verdicts=tuple(mark.verdict for mark in marks),
        outputs=tuple(mark.output for mark in marks),
    )
