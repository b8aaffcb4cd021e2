"""What the replay of Aakanksha et al. says of each claim."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.papers.aakanksha.replay import AXES, GRID, SEARCH, balance
from examples.papers.kit.claims import Claim, Spread
from examples.papers.kit.figures import Group, plane
from examples.papers.kit.page import table
from examples.papers.kit.world import LANGUAGES
from optimizer.report.drawing import PALETTE
from optimizer.spec import BASE

_SFT, _DPO, _SIX, _THREE = "sft", "dpo", "six-languages", "three-languages"
_DOUBLE = "mix-15-double"
_ABSTRACT, _TOLD = "abstract", "by a summary of the paper"
_TITLES = {
    _SFT: "By objective, SFT",
    _DPO: "By objective, DPO",
    _SIX: "By language, six",
    _THREE: "By language, three, scored in these three",
}
_METHODS = {
    "linear": "linear",
    "slerp": "SLERP",
    "multislerp": "spherical mean",
    "ties": "TIES",
    "dare_ties": "DARE-TIES",
}


def claims(found: Sequence[Any]) -> list[Claim]:
    """The paper's claims, and what it did not ask: as many steps of mixing, and our search in place of a grid."""
    return [
        *_against_mixing(found, _SFT, ("up to +8 %", "up to +10 %"), _ABSTRACT),
        *_refusals(found),
        *_against_mixing(found, _SFT, None, "", rival=_DOUBLE),
        *_against_mixing(found, _DPO, ("up to +8 %", "up to +10 %"), _ABSTRACT),
        *_against_mixing(found, _SIX, ("+4 %", "7 % less harm"), _ABSTRACT),
        *_against_mixing(found, _SIX, None, "", rival=_DOUBLE),
        *_methods(found),
        *_three_or_six(found),
        *_who_loses(found, _SFT),
        *_who_loses(found, _SIX),
        Claim(
            text="merging by objective gains more than merging by language",
            paper=f"+8 % and +10 % against +4 % and 7 % ({_ABSTRACT})",
            measure="lesser gain over mixing of the two axes, by objective less by language, points",
            values=[_balance(s, _SFT, GRID) - _balance(s, _SIX, GRID) for s in found],
        ),
        *(
            Claim(
                text=f"{_named(key)}: our search beats the grid",
                paper="–",
                measure=f"lesser gain over mixing, search ({_tried(found, key, SEARCH)} trials) less grid "
                f"({_tried(found, key, GRID)}), points",
                values=[_balance(s, key, SEARCH) - _balance(s, key, GRID) for s in found],
            )
            for key in (_SFT, _DPO, _SIX)
        ),
    ]


def _against_mixing(
    found: Sequence[Any], key: str, paper: tuple[str, str] | None, where: str, rival: str | None = None
) -> list[Claim]:
    """Whether the grid's best merge is ahead of mixing on either axis."""
    other = " with as many steps as all its checkpoints together" if rival else ""
    reference = rival or found[0][key]["reference"]
    return [
        Claim(
            text=f"{_named(key)}: merging beats mixing{other}, {axis}",
            paper=f"{paper[place]} ({where})" if paper else "–",
            measure=f"{axis}, the grid's best merge less {reference}, points",
            values=[100 * (_fresh(s, key, GRID)[axis] - _fresh(s, key, reference)[axis]) for s in found],
        )
        for place, axis in enumerate(AXES)
    ]


def _refusals(found: Sequence[Any]) -> list[Claim]:
    """Both halves of safety."""
    return [
        Claim(
            text="by objective, SFT: merging does less harm than mixing",
            paper=f"up to 10 % less ({_ABSTRACT})",
            measure="harm in % of the base's, the grid's best merge less mix-15",
            values=[_harm(s, _SFT, GRID) - _harm(s, _SFT, "mix-15") for s in found],
            less=True,
        ),
        Claim(
            text="by objective, SFT: merging refuses fewer harmless requests than mixing",
            paper="–",
            measure="harmless requests refused in %, the grid's best merge less mix-15",
            values=[_over_refusal(s, _SFT, GRID) - _over_refusal(s, _SFT, "mix-15") for s in found],
            less=True,
        ),
    ]


def _methods(found: Sequence[Any]) -> list[Claim]:
    others = [m for m in found[0][_SFT]["methods"] if m != "slerp"]
    return [
        Claim(
            text="SLERP balances the two best",
            paper=f"it does ({_TOLD})",
            measure="lesser gain over mixing of the two axes, SLERP less the best of the other methods, points",
            values=[_balance(s, _SFT, "slerp") - max(_balance(s, _SFT, m) for m in others) for s in found],
        ),
        Claim(
            text="linear merging alone does not improve safety",
            paper=f"it does not ({_TOLD})",
            measure="safety, linear less mix-15, points",
            values=[100 * (_fresh(s, _SFT, "linear")["safety"] - _fresh(s, _SFT, "mix-15")["safety"]) for s in found],
            less=True,
        ),
    ]


def _three_or_six(found: Sequence[Any]) -> list[Claim]:
    def lead(seed: Any, axis: str) -> float:
        return 100 * (_fresh(seed, _THREE, GRID)[axis] - _in_three(seed, _SIX, _name(seed, _SIX, GRID), axis))

    return [
        Claim(
            text=f"merging three languages beats merging six, {axis}",
            paper=f"{by} ({_TOLD})",
            measure=f"{axis} in the three languages that both have, three less six, points",
            values=[lead(s, axis) for s in found],
        )
        for axis, by in zip(AXES, ("6 %", "2 %"), strict=True)
    ]


def _who_loses(found: Sequence[Any], key: str) -> list[Claim]:
    """The search items tell which language loses, fresh ones how much: the worst of six figures is bad by luck."""
    return [
        Claim(
            text=f"{_named(key)}: the average of the languages rises above the base",
            paper=f"it rises ({_TOLD})",
            measure="general, the grid's best merge less the base, points",
            values=[100 * (_fresh(s, key, GRID)["general"] - _fresh(s, key, BASE)["general"]) for s in found],
        ),
        Claim(
            text=f"{_named(key)}: one language loses all the same",
            paper=f"English does ({_TOLD})",
            measure="general in the language that fares worst on the search items, merge less base, points",
            values=[_change(s, key, GRID, s[key]["worst language"]) for s in found],
            less=True,
        ),
    ]


# What a seed found --------------------------------------------------------------------------------------------------


def _name(seed: Any, key: str, name: str) -> str:
    """The method behind the grid's best merge; any other name as it is."""
    return str(seed[key][GRID]) if name == GRID else name


def _named(key: str) -> str:
    return _TITLES[key][0].lower() + _TITLES[key][1:]


def _fresh(seed: Any, key: str, name: str) -> Mapping[str, float]:
    fresh: Mapping[str, float] = seed[key]["fresh"][_name(seed, key, name)]
    return fresh


def _balance(seed: Any, key: str, name: str) -> float:
    return 100 * balance(_fresh(seed, key, name), _fresh(seed, key, seed[key]["reference"]))


def _part(seed: Any, key: str, name: str, objective: str, part: str) -> float:
    return float(seed[key]["parts"][_name(seed, key, name)][objective][part])


def _in_three(seed: Any, key: str, name: str, axis: str) -> float:
    return mean(_part(seed, key, name, axis, f"lang:{lang}") for lang in LANGUAGES[:3])


def _change(seed: Any, key: str, name: str, lang: str) -> float:
    """General quality in one language, less the base's, in points."""
    after, before = (_part(seed, key, n, "general", f"lang:{lang}") for n in (name, BASE))
    return 100 * (after - before)


def _tried(found: Sequence[Any], key: str, how: str) -> str:
    return "/".join(sorted({str(s[key]["tried"][how]) for s in found}))


# The section --------------------------------------------------------------------------------------------------------


def section(found: Sequence[Any], figures: Path) -> str:
    """The family, a table a study, and who gains and loses by language."""
    _draw(found, figures / "aakanksha.svg")
    return "\n".join(
        [
            _FAMILY,
            "![Mixing and merging in the plane of general quality and safety](papers/aakanksha.svg)\n",
            *(f"### {title}\n\n{_scores(found, key)}" for key, title in _TITLES.items()),
            f"### Relative to the base, by language\n\n{_LANGUAGES}",
            f"General quality:\n\n{_by_language(found, 'general')}",
            f"Harm:\n\n{_by_language(found, 'refused')}",
        ]
    )


_FAMILY = """\
The family: from one base, checkpoints of 240 steps on mixtures with 0 % (*general*), 15 % (*mix-15*) and 100 %
(*safety*) safety data, the same by preferences (*-dpo*, 120 steps), and one of 80 steps on the 15 % mixture of each
language alone. *mix-15* is what merges are to beat; *mix-15-double* has had as many steps as the merged checkpoints
together. The grid is the paper's: weights of 0, .3, .5, .7 and 1, the same at all depths or from one to another over
depth; density .5. Of each method's merges the one stands here whose lesser gain over *mix-15*, of the two axes, is the
greatest on the search items. *Search* is ours over the same spaces, all methods in one study, chosen by the same rule.
Safety is the share of harmful requests refused and of harmless ones complied with, half and half. The paper counts
harm: how many harmful requests are not refused, here as a change in percent of the base's.
"""
_LANGUAGES = """\
Changes in percent of the base's figure; of general quality less is worse, of harm less is better. The language named
last fares worst in the mean over seeds.
"""


def _scores(found: Sequence[Any], key: str) -> str:
    """Monolingual checkpoints stand in one row, as their mean."""
    methods = found[0][key]["methods"]
    trained = [name for name in found[0][key]["fresh"] if name not in (*methods, SEARCH, *LANGUAGES)]
    alone = [name for name in found[0][key]["fresh"] if name in LANGUAGES]
    rows = {name: [name] for name in trained} | ({"one language alone, mean": alone} if alone else {})
    rows |= {_shown(found, key, name): [name] for name in (*methods, SEARCH)}
    columns = _COLUMNS if key != _THREE else {name: _COLUMNS[name] for name in AXES}
    cells = {
        row: [Spread.of([mean(of(s, key, name) for name in names) for s in found]).text() for of in columns.values()]
        for row, names in rows.items()
    }
    return table(["", *columns], [[row, *figures] for row, figures in cells.items()])


def _harm(seed: Any, key: str, name: str) -> float:
    """Its change, in percent of the base's."""
    return _relative(seed, key, name, "refused", "mean")


def _over_refusal(seed: Any, key: str, name: str) -> float:
    return 100 * _part(seed, key, name, "safety", "over_refusal")


_COLUMNS: Mapping[str, Callable[[Any, str, str], float]] = {
    "general": lambda s, key, name: 100 * _fresh(s, key, name)["general"],
    "safety": lambda s, key, name: 100 * _fresh(s, key, name)["safety"],
    "harm, change in %": _harm,
    "harmless refused, %": _over_refusal,
}


def _shown(found: Sequence[Any], key: str, name: str) -> str:
    """A merge's method, in how many seeds it is the grid's best, and what the search chose."""
    if name == SEARCH:
        chosen = [_METHODS[s[key]["recipes"][SEARCH]["method"]] for s in found]
        return f"**search** ({', '.join(chosen)})"
    best = sum(s[key][GRID] == name for s in found)
    return f"grid, {_METHODS[name]}" + (f" (its best in {best} of {len(found)} seeds)" if best else "")


def _by_language(found: Sequence[Any], objective: str) -> str:
    merges = [(_SFT, "mix-15"), *((key, name) for key in (_SFT, _SIX) for name in (GRID, SEARCH))]
    return table(["", *LANGUAGES, "fares worst"], [_language_row(found, key, name, objective) for key, name in merges])


def _language_row(found: Sequence[Any], key: str, name: str, objective: str) -> list[str]:
    changes = {lang: [_relative(s, key, name, objective, f"lang:{lang}") for s in found] for lang in LANGUAGES}
    sign = -1 if objective == "refused" else 1
    worst = min(LANGUAGES, key=lambda lang: sign * mean(changes[lang]))
    label = name if name not in (GRID, SEARCH) else f"{_named(key)}, {name}"
    return [label, *(Spread.of(values).text() for values in changes.values()), worst]


def _relative(seed: Any, key: str, name: str, objective: str, part: str) -> float:
    """The change of a figure in percent of the base's; of "refused" that of what is not refused, the harm."""
    after, before = (_figure(seed, key, n, objective, part) for n in (name, BASE))
    # Only the base of a short run gets everything wrong.
    return 100 * (after / before - 1) if before else 0.0


def _figure(seed: Any, key: str, name: str, objective: str, part: str) -> float:
    value = _fresh(seed, key, name)[objective] if part == "mean" else _part(seed, key, name, objective, part)
    return 1 - value if objective == "refused" else value


def _draw(found: Sequence[Any], path: Path) -> None:
    """Means over the training seeds."""

    def points(key: str, names: Mapping[str, str]) -> list[tuple[str, float, float]]:
        return [
            (label, *(mean(_fresh(s, key, name)[axis] for s in found) for axis in AXES))
            for name, label in names.items()
        ]

    trained = {name: name for name in (BASE, "general", "safety")}
    mixed = {name: name for name in ("mix-15", _DOUBLE)}
    by_language = {GRID: "six, grid", SEARCH: "six, search"}
    methods = {name: _METHODS[name] for name in found[0][_SFT]["methods"]}
    groups = {
        "base and checkpoints": Group(points=points(_SFT, trained)),
        "mixing": Group(points=points(_SFT, mixed), mark="s", colour=PALETTE.baseline),
        "merging by objective, SFT": Group(
            points=points(_SFT, methods | {SEARCH: "search"}), mark="D", colour=PALETTE.front
        ),
        "merging by language": Group(points=points(_SIX, by_language), mark="^", colour=PALETTE.pick),
    }
    plane(path, groups, x="general", y="safety")
