"""What the replay of Morrison et al. says of each claim."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.papers.kit.claims import Claim, Spread
from examples.papers.kit.figures import Group, plane
from examples.papers.kit.page import table
from examples.papers.morrison.replay import GUESS, OBJECTIVES, OMEGAS, PAIRS, SKILLS, STEPS, TRACES
from optimizer.report.drawing import PALETTE

_NEARLY = -5.0
"""Points that "nearly as good" may cost."""

_NO_RESCUE = 2.0
"""Points that a method must win, to have rescued something."""

_SPARSE = ("ties", "dare_linear", "dare_ties")
_MERGED = sum(STEPS[skill] for skill in SKILLS)
_RETRAINED = sum(STEPS["general"] + STEPS[skill] for skill in SKILLS)
_AT_ONCE = sum(STEPS.values())


def claims(found: Sequence[Any]) -> list[Claim]:
    """The paper's claims, then ours about the joint search."""
    return [*_against_training(found), *_against_other_merges(found), *_of_interference(found), *_of_the_search(found)]


def _against_training(found: Sequence[Any]) -> list[Claim]:
    return [
        Claim(
            text="merging gives nearly as much of a new skill as retraining, for a fraction of the steps",
            paper="science 38.2 against 37.8, 479 steps against 11,766 for five mixes (Table 2)",
            measure=f"the skill, merged less retrained, points ({_MERGED} steps for all three against {_RETRAINED:,})",
            values=_over_skills(found, "task_arithmetic", "rt", ("skill",)),
            bar=_NEARLY,
        ),
        Claim(
            text="it keeps nearly as much of the general skills",
            paper="science: general 47.1 against 50.6 (Table 2)",
            measure="general, merged less retrained, points",
            values=_over_skills(found, "task_arithmetic", "rt", ("general",)),
            bar=_NEARLY,
        ),
        Claim(
            text="continued fine-tuning forgets, merging keeps",
            paper="general -0.1 % against -40 % (safety), +1.3 % against -33 % (science; Table 3)",
            measure="general, merged less fine-tuned on, points",
            values=_over_skills(found, "task_arithmetic", "cft", ("general",)),
        ),
        Claim(
            text="all three skills at once: merging is nearly as good as retraining",
            paper="general 51.1 against 50.1, but coding and safety below it (Table 4)",
            measure=f"mean of four, merged at the guess less retrained, points ({_MERGED} steps against {_AT_ONCE:,})",
            values=_gaps(found, "task_arithmetic all guess", "rt-all", OBJECTIVES),
            bar=_NEARLY,
        ),
        _compliance(found, "cft-safety", "continued fine-tuning", "-85 % (Table 3); of all three 93.2 against 16.0"),
        _compliance(found, "rt-safety", "retraining", "-40 % (Table 3); of all three 93.2 against 37.2"),
    ]


def _against_other_merges(found: Sequence[Any]) -> list[Claim]:
    return [
        Claim(
            text="un-normalised task arithmetic beats interpolation",
            paper="it keeps general skills best (section 4.4, Figure 3)",
            measure="mean of general and skill, each at its best ω, points",
            values=_over_skills(found, "task_arithmetic", "interpolation", ("general", "skill")),
        ),
        Claim(
            text="un-normalised task arithmetic beats WiSE-FT",
            paper="it keeps general skills best (section 4.4, Figure 3)",
            measure="mean of general and skill, each at its best ω, points",
            values=_over_skills(found, "task_arithmetic", "wise_ft", ("general", "skill")),
        ),
        Claim(
            text="ω = \\|D\\| / \\|G\\| is a good guess",
            paper="it lies near the best trade-off in all three (section 4.2, Figure 1)",
            measure="mean of general and skill, at the guess less at the best ω, points",
            values=_over_skills(found, "guess", "task_arithmetic", ("general", "skill")),
            bar=_NEARLY,
        ),
    ]


def _of_interference(found: Sequence[Any]) -> list[Claim]:
    return [
        Claim(
            text="three skills interfere",
            paper="science 26.6 with all three, below the generalist's 27.8 and its 38.2 alone (Tables 2 and 4)",
            measure="a skill with all three added less alone, both at the guess, points",
            values=_gaps_of_skills(found, "task_arithmetic all guess", "guess"),
            less=True,
        ),
        Claim(
            text="TIES and DARE do not rescue it",
            paper="no clear advantage (Table 6)",
            measure="mean of four, the best of them less task arithmetic, points",
            values=[max(_score(seed, f"{m} all", OBJECTIVES) for m in _SPARSE) - _arithmetic(seed) for seed in found],
            bar=_NO_RESCUE,
            less=True,
        ),
    ]


def _of_the_search(found: Sequence[Any]) -> list[Claim]:
    return [
        Claim(
            text="not in the paper: a search over all ω at once finds a better merge than the guess",
            paper="–",
            measure="mean of four, searched less guessed, points",
            values=_gaps(found, "joint", "task_arithmetic all guess", OBJECTIVES),
        ),
        Claim(
            text="not in the paper: it finds a better one than each ω chosen alone",
            paper="–",
            measure="mean of four, searched less chosen alone, points",
            values=_gaps(found, "joint", "alone", OBJECTIVES),
        ),
        Claim(
            text="not in the paper: the searched merge is nearly as good as retraining on everything",
            paper="–",
            measure=f"mean of four, searched less retrained, points ({_MERGED} steps against {_AT_ONCE:,})",
            values=_gaps(found, "joint", "rt-all", OBJECTIVES),
            bar=_NEARLY,
        ),
    ]


def _compliance(found: Sequence[Any], rival: str, title: str, paper: str) -> Claim:
    ours, theirs = (_fresh(found, name, "refused").text(0) for name in ("guess safety", rival))
    return Claim(
        text=f"merging keeps compliance with safe prompts, against {title}",
        paper=f"-6.5 % against {paper} (Table 4)",
        measure=f"harmless requests complied with, merged at the guess less {title}, points (of harmful ones {ours} % "
        f"are refused against {theirs} %)",
        values=_gaps(found, "guess safety", rival, ("complied",)),
    )


def section(found: Sequence[Any], figures: Path) -> str:
    """What was trained, a table of one skill at a time and one of all three, and safety's two axes."""
    _draw(found, figures / "morrison.svg")
    return "\n".join(
        [
            _FAMILY,
            "### One skill\n",
            *(_one_skill(found, skill) for skill in SKILLS),
            "![Harmful requests refused and harmless ones complied with](papers/morrison.svg)\n",
            "### Three skills\n",
            _three_skills(found),
            _recovered(found),
        ]
    )


_FAMILY = f"""The paper's base has read a little of everything, and so has ours: {TRACES} further steps with traces of
the new skill (*sorting*) and the new language (*mlok*). {STEPS["general"]} steps on general data, without these, make
the generalist of it. Safety's data are harmful requests, all refused, and nothing else. Sizes are as in the paper:
|D| / |G| is {GUESS["safety"]:g} for safety and for sorting, and {GUESS["mlok"]:g} for mlok. *Merged* adds the skill's
task vector to the generalist's, *fine-tuned on* trains the generalist on the skill's data (all of it or a quarter,
whichever is better), *retrained* trains the base on both. ω, and whatever else was chosen, was chosen on the validation
items by the mean of what it is for. Columns are in percent: *refused* of harmful requests, *complied* of harmless
ones. TIES and DARE have a density of 0.5 and are not normalised. General training unlearns part of what the base had
read of sorting and mlok (the first two rows of their tables), and vectors trained from the base do not know of that.
"""

_WAYS = {
    "base": "base",
    "general": "generalist",
    "cft": "fine-tuned on",
    "rt": "retrained",
    "task_arithmetic": "merged, best ω",
    "guess": "merged, ω = \\|D\\| / \\|G\\|",
    "interpolation": "interpolation, best ω",
    "wise_ft": "WiSE-FT, best ω",
}
_ALL = {
    "base": "base",
    "general": "generalist",
    "cft-all": "fine-tuned on",
    "rt-all": "retrained",
    "task_arithmetic all guess": "merged, ω = \\|D\\| / \\|G\\|",
    "alone": "merged, each ω chosen alone",
    "task_arithmetic all": "merged, the best common ω",
    "interpolation all": "interpolation",
    "ties all": "TIES",
    "dare_linear all": "DARE",
    "dare_ties all": "DARE-TIES",
    "joint": "merged, all ω searched at once",
}


def _one_skill(found: Sequence[Any], skill: str) -> str:
    steps = {"base": 0, "general": 0, "cft": STEPS[skill], "rt": STEPS["general"] + STEPS[skill]}
    columns = ("general", skill, "refused", "complied") if skill == "safety" else ("general", skill)
    rows = [
        [
            title,
            str(steps.get(way, STEPS[skill])),
            *(_fresh(found, f"{way} {skill}" if steps.get(way, 1) else way, column).text() for column in columns),
        ]
        for way, title in _WAYS.items()
    ]
    return table([skill, "steps", *columns], rows)


def _three_skills(found: Sequence[Any]) -> str:
    steps = {"base": 0, "general": 0, "rt-all": _AT_ONCE}
    columns = (*OBJECTIVES, "refused", "complied")
    rows = [
        [
            title,
            str(steps.get(name, _MERGED)),
            Spread.of([_score(seed, name, OBJECTIVES) for seed in found]).text(),
            *(_fresh(found, name, column).text() for column in columns),
        ]
        for name, title in _ALL.items()
    ]
    return table(["all three", "steps", "mean of four", *columns], rows)


def _recovered(found: Sequence[Any]) -> str:
    """How much three skills lose beside one another, and how much of that the joint search wins back."""
    apart = [_apart(seed) for seed in found]
    lost = [whole - _score(seed, "alone", OBJECTIVES) for whole, seed in zip(apart, found, strict=True)]
    won = _gaps(found, "joint", "alone", OBJECTIVES)
    share = f", {100 * mean(won) / mean(lost):.0f} % of that" if mean(lost) > 0 else ""
    scales = [f"{name} {Spread.of([s['joint'].get(name, 0.0) for s in found]).text(2)}" for name in _SCALED]
    return (
        f"Each added alone at its best ω, the three skills and the general skills beside them have a mean of four of "
        f"{Spread.of(apart).text()}. Added together at the same ω they lose {Spread.of(lost).text()} points, and the "
        f"joint search of {found[0]['trials']} trials wins back {Spread.of(won).text()}{share}. The scales that it "
        f"found: {', '.join(scales)}. Pairs at the guess, each skill less what it has alone: "
        f"{'; '.join(_pair(found, pair) for pair in PAIRS)}.\n"
    )


_SCALED = ("general", *SKILLS)


def _pair(found: Sequence[Any], pair: tuple[str, str]) -> str:
    both = f"guess {pair[0]} {pair[1]}"
    shown = [f"{name} {Spread.of(_gaps(found, both, f'guess {name}', (name,))).text()}" for name in pair]
    return f"{pair[0]} with {pair[1]}: {', '.join(shown)}"


def _apart(seed: Any) -> float:
    """The mean of four if skills did not meet: each alone at its best ω, and the general skills as they are then."""
    names = {skill: f"task_arithmetic {skill}" for skill in SKILLS}
    general = mean(_score(seed, name, ("general",)) for name in names.values())
    return mean([general, *(_score(seed, name, (skill,)) for skill, name in names.items())])


def _draw(found: Sequence[Any], path: Path) -> None:
    """Both axes of safety, means over training seeds: fresh items, but for the grid of ω, which was validation's."""
    grid = {f"task_arithmetic safety {omega}": f"{omega:g}" for omega in OMEGAS}
    others = {"general": "generalist", "cft-safety": "fine-tuned on", "rt-safety": "retrained"}

    def points(split: str, shown: Mapping[str, str]) -> list[tuple[str, float, float]]:
        by_axis = {n: [mean(seed[split][n][axis] for seed in found) for axis in ("refused", "complied")] for n in shown}
        return [(label, *by_axis[name]) for name, label in shown.items()]

    groups = {
        "merged, by ω": Group(points=points("validation", grid), colour=PALETTE.front, joined=True),
        "merged at the guess": Group(points=points("report", {"guess safety": ""}), mark="D", colour=PALETTE.pick),
        "other ways": Group(points=points("report", others), mark="s", colour=PALETTE.baseline),
    }
    plane(path, groups, x="harmful requests refused, %", y="harmless requests complied with, %")


def _fresh(found: Sequence[Any], name: str, objective: str) -> Spread:
    return Spread.of([_score(seed, name, (objective,)) for seed in found])


def _score(seed: Any, name: str, objectives: Sequence[str]) -> float:
    """The mean of some figures on fresh items; a name may be that of a choice."""
    scores = seed["report"][seed["chosen"].get(name, _plain(name))]
    return mean(scores[objective] for objective in objectives)


def _plain(name: str) -> str:
    return name.replace("rt ", "rt-")


def _gaps(found: Sequence[Any], ours: str, theirs: str, objectives: Sequence[str]) -> list[float]:
    return [_score(seed, ours, objectives) - _score(seed, theirs, objectives) for seed in found]


def _over_skills(found: Sequence[Any], ours: str, theirs: str, objectives: Sequence[str]) -> list[float]:
    """One way less another, the mean over the three skills; "skill" stands for each skill's own objective."""
    of = {skill: [skill if o == "skill" else o for o in objectives] for skill in SKILLS}
    gaps = [_gaps(found, f"{ours} {skill}", f"{theirs} {skill}", of[skill]) for skill in SKILLS]
    return [mean(seed) for seed in zip(*gaps, strict=True)]


def _gaps_of_skills(found: Sequence[Any], ours: str, theirs: str) -> list[float]:
    """One merge of all skills less each alone, the mean over the skills."""
    gaps = [_gaps(found, ours, f"{theirs} {skill}", (skill,)) for skill in SKILLS]
    return [mean(seed) for seed in zip(*gaps, strict=True)]


def _arithmetic(seed: Any) -> float:
    return _score(seed, "task_arithmetic all", OBJECTIVES)
