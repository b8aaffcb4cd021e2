"""The items on which one merge differs most from another, with what both said."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from optimizer.outcomes import Outcomes
from optimizer.spec import ObjectiveSpec
from storage.records import Marks
from workers.suites import Item

_MOST_TEXT = 1500
"""Characters of a prompt or an output that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a merge made of an item: its value, the scorer's word for it, and what it wrote, where that is kept."""

    value: float
    verdict: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """An item and what two merges made of it. ``label`` says harmful or benign where the item does."""

    objective: ObjectiveSpec
    item: str
    lang: str
    label: str
    prompt: str
    here: Said
    there: Said

    @property
    def better(self) -> bool:
        """Whether the first merge did better."""
        return (self.here.value > self.there.value) == self.objective.maximise


def changed_most(outcomes: Outcomes, here: int, there: int, most: int = 10) -> list[Changed]:
    """The items with the largest differences, gains and losses of every objective in turn, one of a group.

    Args:
        here, there: trials. Among equal differences a hash of the item's id decides.
    Raises: InputError where a suite is no longer the one that was measured.
    """
    kinds: dict[tuple[str, bool], list[Changed]] = defaultdict(list)
    both = outcomes.scores(here).keys() & outcomes.scores(there).keys()
    for objective in [o for o in outcomes.spec.objectives if o.name in both]:
        for found in _of(outcomes.items(objective), objective, outcomes.marks(here), outcomes.marks(there)):
            kinds[objective.name, found.better].append(found)
    queues = [sorted(found, key=_order) for found in kinds.values()]
    in_turn = [queue[place] for place in range(most) for queue in queues if place < len(queue)]
    return in_turn[:most]


def _of(
    items: Sequence[tuple[str, Item]], objective: ObjectiveSpec, here: Mapping[str, Marks], there: Mapping[str, Marks]
) -> list[Changed]:
    """The items of one objective that both scored and whose values differ; of each group the most different one."""
    first, second = _by_item(here), _by_item(there)
    found: dict[str, Changed] = {}
    for suite, item in items:
        a, b = first.get((suite, item.id)), second.get((suite, item.id))
        if a is None or b is None or a.value == b.value:
            continue
        changed = Changed(
            objective=objective,
            item=item.id,
            lang=item.lang,
            label=item.label or "",
            prompt=_shown(_prompt(item)),
            here=a,
            there=b,
        )
        group = item.group or item.id
        found[group] = min(found.get(group, changed), changed, key=_order)
    return list(found.values())


def _by_item(marks: Mapping[str, Marks]) -> dict[tuple[str, str], Said]:
    """What was said of every scored item, by suite and id."""
    return {
        (suite, name): Said(value=value, verdict=verdict or "", output=_shown(output or ""))
        for suite, found in marks.items()
        for name, value, verdict, output in zip(found.ids, found.values, found.verdicts, found.outputs, strict=True)
        if value is not None
    }


def _order(changed: Changed) -> tuple[float, str]:
    return -abs(changed.here.value - changed.there.value), sha256(changed.item.encode()).hexdigest()


def _prompt(item: Item) -> str:
    """What was asked; of a chat with several turns, who said what."""
    if isinstance(item.prompt, str):
        return item.prompt
    if len(item.prompt) == 1:
        return item.prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in item.prompt)


def _shown(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} …"
