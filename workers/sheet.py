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
from workers.scores import Across, Aggregation, plain_score
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
        self._parts = {objective.name: _Parts(objective) for objective in objectives}
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
        whole = {o.name: [m for suite in o.suites for m in marks[suite.key]] for o in self._objectives}
        return Result(
            scores={name: parts.score(whole[name]) for name, parts in self._parts.items()},
            breakdown={name: parts.breakdown(whole[name]) for name, parts in self._parts.items()},
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


class _Parts:
    """An objective's score, and those beside it: by language, by suite where there are several, named parts."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        items = [(suite.key, item) for suite in objective.suites for item in suite.items]
        self._whole = Aggregation(items, objective.across, objective.bounds)
        places: dict[str, list[int]] = defaultdict(list)
        for place, (suite, item) in enumerate(items):
            places[f"lang:{item.lang}"].append(place)
            if len(objective.suites) > 1:
                places[f"suite:{suite}"].append(place)
        self._places = {
            part: (found, Aggregation([items[p] for p in found], "mean", objective.bounds))
            for part, found in sorted(places.items())
        }

    def score(self, marks: Sequence[Mark]) -> Score:
        """The objective's score."""
        return self._whole.score([mark.value for mark in marks])

    def breakdown(self, marks: Sequence[Mark]) -> dict[str, Score]:
        """``lang:en``, ``suite:...``, and what the scorer names."""
        found = {
            part: aggregation.score([marks[p].value for p in places])
            for part, (places, aggregation) in self._places.items()
        }
        named: dict[str, list[float]] = defaultdict(list)
        for mark in marks:
            for part, value in mark.parts.items():
                named[part].append(value)
        return found | {part: plain_score(values) for part, values in named.items()}


def _columns(suite: Suite, marks: Sequence[Mark]) -> Marks:
    return Marks(
        ids=tuple(item.id for item in suite.items),
        values=tuple(mark.value for mark in marks),
        verdicts=tuple(mark.verdict for mark in marks),
        outputs=tuple(mark.output for mark in marks),
    )
