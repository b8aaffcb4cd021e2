"""What the replay of Khalifa et al. says of each claim."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from optuna.study import StudyDirection

from examples.papers.khalifa.replay import AUTO, CMAES, SETTINGS
from examples.papers.kit.claims import Claim, Spread
from examples.papers.kit.figures import Group, plane
from examples.papers.kit.page import table
from optimizer.front import hypervolume, non_dominated
from optimizer.report.drawing import PALETTE
from optimizer.spec import BASE

_BEST = "best checkpoint"
_BASELINES = ("uniform", "best per task", "greedy soup")
_ABSTRACT = "abstract"
_BOTH = (CMAES, AUTO)
_NON_ZERO = 0.01
_NEARLY_ALL = 80.0
_MARGIN = -1.0
_NAMES = {CMAES: "CMA-ES", AUTO: "`auto`", "uniform": "the uniform average", "best per task": "the best of each task"}
_TITLES = {"two": "two tasks", "three": "three tasks"}


def claims(found: Sequence[Any]) -> list[Claim]:
    """The paper's claims in both settings, then ours about `auto`."""
    return [claim for setting in SETTINGS for claim in _of_setting([seed[setting] for seed in found], _TITLES[setting])]


def _of_setting(found: Sequence[Any], title: str) -> list[Claim]:
    return [
        Claim(
            text=f"{title}: the optimised merge beats every checkpoint",
            paper=f"it outperforms individual models ({_ABSTRACT})",
            measure="CMA-ES against the checkpoint with the best macro-average on fresh items, points",
            values=[_macro(s, CMAES) - max(_macro(s, name) for name in s["checkpoints"]) for s in found],
        ),
        *(
            Claim(
                text=f"{title}: the optimised merge beats {_named(rival)}",
                paper=f"it outperforms merge-based baselines ({_ABSTRACT})",
                measure="macro-average, CMA-ES less the baseline, points",
                values=[_macro(s, CMAES) - _macro(s, rival) for s in found],
            )
            for rival in _BASELINES
        ),
        Claim(
            text=f"{title}: no checkpoint and no baseline dominates the optimised merge",
            paper=f"it is Pareto-optimal ({_ABSTRACT})",
            measure="its best lead over the rival that comes nearest to dominating it, points",
            values=[_lead(s, CMAES) for s in found],
        ),
        Claim(
            text=f"{title}: nearly all checkpoints have a weight",
            paper=f"almost all of 16 are non-zero ({_ABSTRACT})",
            measure=f"checkpoints above {_NON_ZERO} in the CMA-ES merge, %",
            values=[_weighted(s, CMAES) for s in found],
            bar=_NEARLY_ALL,
        ),
        Claim(
            text=f"{title}: poor checkpoints contribute",
            paper=f"seemingly bad checkpoints can contribute to good merges ({_ABSTRACT})",
            measure="macro-average of the CMA-ES merge less that without its worst quarter of checkpoints, points",
            values=[_macro(s, CMAES) - _macro(s, f"{CMAES} without the poor") for s in found],
        ),
        Claim(
            text=f"{title}: held-out skills do not suffer",
            paper="no loss on tasks that were not optimised",
            measure="held-out skills, CMA-ES less the checkpoint that one would have shipped, points",
            values=[100 * (s["held out"][CMAES] - s["held out"][s["best checkpoint"]]) for s in found],
            bar=_MARGIN,
        ),
        Claim(
            text=f"{title}, not in the paper: `auto` finds a better mix in as many evaluations",
            paper="–",
            measure="macro-average, `auto` less CMA-ES, points",
            values=[_macro(s, AUTO) - _macro(s, CMAES) for s in found],
        ),
        Claim(
            text=f"{title}, not in the paper: `auto` finds a better front in as many evaluations",
            paper="–",
            measure="hypervolume, `auto` less CMA-ES, hundredths of a full one",
            values=[100 * (_volume(s, AUTO) - _volume(s, CMAES)) for s in found],
        ),
    ]


def section(found: Sequence[Any], figures: Path) -> str:
    """The family, a table a setting, and the plane of the first seed."""
    parts = [_FAMILY]
    for setting in SETTINGS:
        seeds = [seed[setting] for seed in found]
        parts += [f"### {_TITLES[setting].capitalize()}\n", _scores(seeds), _told(seeds)]
        if setting == "two":
            _draw(seeds[0], figures / "khalifa.svg")
            parts.append("![Checkpoints, baselines and searched merges of the first seed](papers/khalifa.svg)\n")
    return "\n".join(parts)


_FAMILY = """The family: 16 runs from one base. Four mixtures of addition, refusing and sorting (new to the base); each
of them again on other data, at three times the learning rate, or stopped after a quarter; and two second stages. No run
trains on reversal, recall or translation: these are the held-out skills. *CMA-ES* is the paper's protocol: a linear
merge whose weights sum to 1, searched by the macro-average of the search items; the best of the search is shipped.
*auto* searches for a front in as many evaluations; here stands the merge of its front with the best macro-average by
posterior mean. A greedy soup joins checkpoints from the best down while the search items say that it is no worse.
"""


def _scores(found: Sequence[Any]) -> str:
    objectives = found[0]["objectives"]

    def row(name: str) -> list[str]:
        keys = [s[_BEST] if name == _BEST else name for s in found]
        fresh = [s["fresh"][key] for s, key in zip(found, keys, strict=True)]
        held_out = [100 * s["held out"][key] for s, key in zip(found, keys, strict=True)]
        return [
            _named(name),
            Spread.of([100 * mean(scores[o] for o in objectives) for scores in fresh]).text(),
            *(Spread.of([100 * scores[o] for scores in fresh]).text() for o in objectives),
            Spread.of(held_out).text(),
            Spread.of([_weighted(s, name) for s in found]).text(0) if name in _BOTH else "",
        ]

    head = ["merge", "macro-average", *objectives, "held-out", f"checkpoints above {_NON_ZERO}, %"]
    return table(head, [row(name) for name in (BASE, _BEST, *_BASELINES, *_BOTH)])


def _told(found: Sequence[Any]) -> str:
    """What one must know to read the claims: how the checkpoints trade off, and whether anything was mixed at all."""
    traded = [100 * len(_undominated(s)) / len(s["checkpoints"]) for s in found]
    alone = sum(max(s["weights"][CMAES].values()) > 1 - _NON_ZERO for s in found)
    return (
        f"Of the checkpoints {Spread.of(traded).text(0)} % are dominated by no other on fresh items. Each search had "
        f"{found[0]['trials']} evaluations, baselines included. CMA-ES shipped a checkpoint unmixed in {alone} "
        f"of {len(found)} training seeds; there it neither gains nor loses anything.\n"
    )


def _undominated(seed: Any) -> list[int]:
    values = np.array([[seed["fresh"][name][o] for o in seed["objectives"]] for name in seed["checkpoints"]])
    return non_dominated(values, [StudyDirection.MAXIMIZE] * len(seed["objectives"]))


def _draw(seed: Any, path: Path) -> None:
    x, y = seed["objectives"]
    front = [("", *point[1:]) for point in _points(seed, _front(seed, AUTO))]
    groups = {
        "checkpoints": Group(points=_points(seed, seed["checkpoints"])),
        "base and baselines": Group(points=_points(seed, [BASE, *_BASELINES]), mark="s", colour=PALETTE.baseline),
        "front by auto": Group(points=front, colour=PALETTE.front, joined=True),
        "CMA-ES": Group(points=_points(seed, [CMAES]), mark="D", colour=PALETTE.pick),
    }
    plane(path, groups, x=x, y=y)


def _points(seed: Any, names: Sequence[str]) -> list[tuple[str, float, float]]:
    x, y = seed["objectives"]
    return [(name, seed["fresh"][name][x], seed["fresh"][name][y]) for name in names]


def _named(name: str) -> str:
    return _NAMES.get(name, f"the {name}")


def _macro(seed: Any, name: str) -> float:
    return 100 * mean(seed["fresh"][name][o] for o in seed["objectives"])


def _lead(seed: Any, name: str) -> float:
    """How far a merge is ahead where it is most so, of the rival that comes nearest to dominating it."""
    ours = seed["fresh"][name]
    rivals = [seed["fresh"][r] for r in (*seed["checkpoints"], BASE, *_BASELINES)]
    return 100 * min(max(ours[o] - rival[o] for o in seed["objectives"]) for rival in rivals)


def _weighted(seed: Any, name: str) -> float:
    weights = seed["weights"][name]
    return 100 * sum(weights[c] > _NON_ZERO for c in seed["checkpoints"]) / len(seed["checkpoints"])


def _front(seed: Any, sampler: str) -> list[str]:
    return [name for name in seed["fresh"] if name.startswith(f"{sampler} ") and name.split()[1].isdigit()]


def _volume(seed: Any, sampler: str) -> float:
    """The hypervolume that a search's front covers on fresh items, seen from the worst score of either front."""
    values = {s: np.array([[seed["fresh"][n][o] for o in seed["objectives"]] for n in _front(seed, s)]) for s in _BOTH}
    worst = np.vstack(list(values.values())).min(axis=0)
    return hypervolume(values[sampler], list(worst), [StudyDirection.MAXIMIZE] * len(worst))
