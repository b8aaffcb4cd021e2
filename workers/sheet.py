"""A sheet: every question of one split, tokenised once and asked of each merge in the same order."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from storage.records import Marks, Score
from workers.engine import Engine, Request
from workers.errors import TrialError
from workers.marks import GOLD_NLL, MOST_UNSCORED, Mark, Scorer, mark_all
from workers.prompts import to_requests
from workers.questions import Answer, joined
from workers.scores import Across, Aggregation, plain_score
from workers.second_stage import SecondStage
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
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where its values must lie."""
        return self.suites[0].scorer.bounds

    @property
    def maximise(self) -> bool:
        """Whether more is better."""
        return self.suites[0].scorer.maximise


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a sheet gives for one merge; ``stopped`` says why it was not asked to the end."""

    scores: Mapping[str, Score]
    breakdown: Mapping[str, Mapping[str, Score]]
    marks: Mapping[str, Marks]
    stopped: str = ""


Asked = Mapping[str, Sequence[int]]
"""Places of the items that were asked so far, ascending, by suite key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a merge stands after a rung: by objective the values, in the order of ``asked``, and what scores them."""

    rung: int
    asked: Asked
    values: Mapping[str, Sequence[float | None]]
    aggregations: Mapping[str, Aggregation]


Stops = Callable[[Standing], str]
"""Asked after every rung but the last: why the merge shall stop here, empty where it goes on."""


class Sheet:
    """The questions of all objectives on one split.

    Items are asked rung after rung. Each rung has its own batches, which are prepared once, so every merge that a
    sheet is asked of meets the same batches, whether it is raced or not: the same recipe gives the same outcomes, on
    CPU bit for bit. (Another division into rungs pads other prompts together, which may change last bits of logits.)

    Args:
        context: tokens the model can attend to; an item that needs more is *unscored*, never cut.
        rungs: what has been asked when each rung ends, nested, the last being everything; one rung if empty.
        stage: what scorers that mark in batches share.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        rungs: Sequence[Asked] = (),
        stage: SecondStage | None = None,
    ) -> None:
        self.objectives = tuple(objectives)
        self._stage = stage or SecondStage()
        self._suites = [suite for objective in objectives for suite in objective.suites]
        self._places: dict[str, list[list[range] | None]] = {}
        requests: list[Request] = []
        for suite in self._suites:
            self._places[suite.key] = [_lay(suite, item, tokenizer, context, requests) for item in suite.items]
        self._requests = len(requests)
        self._rungs: list[_Rung] = []
        before: Asked = {suite.key: () for suite in self._suites}
        for asked in rungs or [{suite.key: range(len(suite.items)) for suite in self._suites}]:
            new = {key: sorted(set(places) - set(before[key])) for key, places in asked.items()}
            wanted = [p for key, places in new.items() for place in places for p in self._requested(key, place)]
            self._rungs.append(_Rung(objectives, asked, new, {p: requests[p] for p in wanted}))
            before = asked

    def ask(self, engine: Engine, referee: Stops | None = None) -> Result:
        """Ask everything, or rung after rung until the referee stops it, and mark it.

        Raises: TrialError where the answers cannot be used.
        """
        answers: list[Answer | None] = [None] * self._requests
        marks: dict[str, dict[int, Mark]] = {suite.key: {} for suite in self._suites}
        for number, rung in enumerate(self._rungs, 1):
            rung.ask(engine, answers)
            for suite in self._suites:
                places = rung.new[suite.key]
                marks[suite.key].update(self._mark(suite, places, answers))
                self._require_scored(suite, marks[suite.key])
            if referee and number < len(self._rungs) and (reason := referee(rung.standing(number, marks))):
                return replace(rung.result(marks), stopped=reason)
        return self._rungs[-1].result(marks)

    @property
    def looks(self) -> int:
        """How often a referee is asked at most."""
        return len(self._rungs) - 1

    def _requested(self, key: str, place: int) -> list[int]:
        """Where the requests of one item stand."""
        return [p for question in self._places[key][place] or () for p in question]

    def _mark(self, suite: Suite, places: Sequence[int], answers: Sequence[Answer | None]) -> dict[int, Mark]:
        fitting = [place for place in places if self._places[suite.key][place] is not None]
        asked = [(suite.items[place], self._given(suite, place, answers)) for place in fitting]
        found = dict(zip(fitting, mark_all(suite.scorer, asked, self._stage), strict=True))
        return {place: found.get(place, _TOO_LONG) for place in places}

    def _given(self, suite: Suite, place: int, answers: Sequence[Answer | None]) -> list[Answer]:
        questions = self._places[suite.key][place] or ()
        return [joined([a for a in answers[q.start : q.stop] if a is not None]) for q in questions]

    def _require_scored(self, suite: Suite, marks: Mapping[int, Mark]) -> None:
        """Raises TrialError where too many are unscored; those too long for the model are so for every merge."""
        fitting = sum(places is not None for places in self._places[suite.key])
        unscored = {p: m.verdict for p, m in marks.items() if m.value is None and m is not _TOO_LONG}
        if len(unscored) > MOST_UNSCORED * fitting:
            place, verdict = next(iter(unscored.items()))
            raise TrialError(
                f"at most {MOST_UNSCORED:.0%} of a suite's items may be unscored, but {len(unscored)} of {fitting} of "
                f"{suite.key} are, item {suite.items[place].id} as {verdict}."
            )


_TOO_LONG = Mark(value=None, verdict="too_long")


class _Rung:
    """One rung's requests, and the scores of all that has been asked when it ends."""

    def __init__(
        self, objectives: Sequence[Objective], asked: Asked, new: Asked, requests: Mapping[int, Request]
    ) -> None:
        self._asked = asked
        self.new = new
        self._objectives = [_only(objective, asked) for objective in objectives]
        self._parts = {objective.name: _Parts(objective) for objective in self._objectives}
        # One queue an engine and kind: batches run across suites.
        self._scored_at = [p for p, request in requests.items() if request.continuation]
        self._written_at = [p for p, request in requests.items() if not request.continuation]
        self._scored = tuple(requests[p] for p in self._scored_at)
        self._written = tuple(requests[p] for p in self._written_at)

    def ask(self, engine: Engine, answers: list[Answer | None]) -> None:
        """Put the answers in their places."""
        found = [
            *(zip(self._scored_at, engine.loglikelihood(self._scored), strict=True) if self._scored else ()),
            *(zip(self._written_at, engine.generate(self._written), strict=True) if self._written else ()),
        ]
        for place, answer in found:
            answers[place] = answer

    def standing(self, number: int, marks: Mapping[str, Mapping[int, Mark]]) -> Standing:
        """The values so far."""
        whole = self._whole(marks)
        return Standing(
            rung=number,
            asked=self._asked,
            values={name: [mark.value for mark in found] for name, found in whole.items()},
            aggregations={name: parts.whole for name, parts in self._parts.items()},
        )

    def result(self, marks: Mapping[str, Mapping[int, Mark]]) -> Result:
        """The scores so far."""
        whole = self._whole(marks)
        return Result(
            scores={name: parts.score(whole[name]) for name, parts in self._parts.items()},
            breakdown={name: parts.breakdown(whole[name]) for name, parts in self._parts.items()},
            marks={s.key: _columns(s, self._of(s, marks)) for o in self._objectives for s in o.suites},
        )

    def _whole(self, marks: Mapping[str, Mapping[int, Mark]]) -> dict[str, list[Mark]]:
        return {o.name: [m for suite in o.suites for m in self._of(suite, marks)] for o in self._objectives}

    def _of(self, suite: Suite, marks: Mapping[str, Mapping[int, Mark]]) -> list[Mark]:
        return [marks[suite.key][place] for place in self._asked[suite.key]]


def _only(objective: Objective, asked: Asked) -> Objective:
    """The objective on the items that are asked."""
    suites = tuple(replace(s, items=tuple(s.items[p] for p in asked[s.key])) for s in objective.suites)
    return replace(objective, suites=suites)


def _lay(
    suite: Suite, item: Item, tokenizer: PreTrainedTokenizerBase, context: int, requests: list[Request]
) -> list[range] | None:
    """Add the item's requests; returns each question's places, or None where one is too long for the model."""
    lack = suite.scorer.check(item)
    if lack:
        raise InputError(f"item {item.id} of {suite.key}: the scorer {suite.scorer.name} needs {lack}.")
    try:
        wanted = [to_requests(tokenizer, question, context) for question in suite.scorer.ask(item)]
    except InputError as e:
        raise InputError(f"item {item.id} of {suite.key}: {e}") from e
    if any(request.length > context for question in wanted for request in question):
        return None
    places = []
    for question in wanted:
        places.append(range(len(requests), len(requests) + len(question)))
        requests.extend(question)
    return places


class _Parts:
    """An objective's score, and those beside it: by language, by suite where there are several, named parts."""

    def __init__(self, objective: Objective) -> None:
        items = [(suite.key, item) for suite in objective.suites for item in suite.items]
        self.whole = Aggregation(items, objective.across, objective.bounds, maximise=objective.maximise)
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
        return self.whole.score([mark.value for mark in marks])

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
        bounds = {GOLD_NLL: None}
        return found | {part: plain_score(v, bounds.get(part, (0.0, 1.0))) for part, v in named.items()}


def _columns(suite: Suite, marks: Sequence[Mark]) -> Marks:
    return Marks(
        ids=tuple(item.id for item in suite.items),
        values=tuple(mark.value for mark in marks),
        verdicts=tuple(mark.verdict for mark in marks),
        outputs=tuple(mark.output for mark in marks),
    )
