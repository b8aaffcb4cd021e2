"""What is trained, and what one training seed measures.

A base that has seen a little of everything is trained on general data: the generalist. A skill is added to it in three
ways. Merging: the base is trained on the skill's data alone, and its task vector is added to the generalist. Continued
fine-tuning: the generalist is trained on. Retraining: the base is trained on general and the skill's data at once.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from examples.papers.kit.lab import Lab, Search, means, parts
from examples.papers.kit.paper import Found
from examples.papers.kit.sizes import Size
from examples.papers.kit.world import GENERAL, NEW_LANGUAGE, NEW_SKILL, WORLD, base, run
from optimizer.demo.language import World
from optimizer.demo.runs import Run
from optimizer.results import Row
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe, only
from storage.records import Measured

SKILLS = ("safety", NEW_SKILL, NEW_LANGUAGE)
OBJECTIVES = ("general", *SKILLS)
OMEGAS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The paper's grid and two below it: what refuses is soon enough to refuse everything."""

METHODS = ("task_arithmetic", "interpolation", "ties", "dare_linear", "dare_ties")
"""Of three skills at once; ties and dare with a density of 0.5."""

STEPS = {"general": 320, "safety": 80, NEW_SKILL: 80, NEW_LANGUAGE: 180}
"""Of one pass over each data set: the paper has 275k, 66k, 61k and 156k examples."""

TRACES = 400
"""Steps in which the base reads a little of everything."""

GUESS = {skill: STEPS[skill] / STEPS["general"] for skill in SKILLS}
"""The paper's free guess, ω = |D| / |G|."""

_REQUEST = 0.6
_DATA: Mapping[str, Mapping[str, float]] = {
    "general": dict.fromkeys(GENERAL, 1.0) | {"request": _REQUEST},
    "safety": {"warning": 1.0},
    NEW_SKILL: {NEW_SKILL: 1.0},
    NEW_LANGUAGE: {
        f"{NEW_LANGUAGE}:{task}": share
        for task, share in [*((skill, 1.0) for skill in GENERAL if skill != "translation"), ("request", _REQUEST)]
    },
}
_READ = {"general": 1.0, NEW_SKILL: 0.1, NEW_LANGUAGE: 0.4}
"""What the base has read, in parts. Of skills that it knows nothing of, task vectors transfer nothing at this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tongues(World):
    """A world where a task may bring its language along: "mlok:recall" is recall in mlok."""

    def draw_example(self, task: str, language: str, rng: random.Random, split: str = "train") -> tuple[str, str]:
        own, _, plain = task.rpartition(":")
        return World.draw_example(self, plain, own or language, rng, split)


_TONGUES = _Tongues(languages=WORLD.languages, apart=WORLD.apart, commands=WORLD.commands)


def runs(size: Size) -> list[Run]:
    """The base, the generalist, and every skill in all three ways, alone and all at once."""

    def trained(name: str, shares: Mapping[str, float], steps: float, start: str, rate: float = 6e-4) -> Run:
        plain = run(name, _mixed(shares), steps=size.run_steps(round(steps)), start=start, learning_rate=rate)
        return replace(plain, world=_TONGUES)

    def whole(name: str, data: Iterable[str], start: str) -> Run:
        shares = {each: STEPS[each] for each in data}
        return trained(name, shares, sum(shares.values()), start)

    found = [
        base(size),
        trained("pretrained", _READ, TRACES, "base", 1.5e-3),
        whole("general", ["general"], "pretrained"),
    ]
    for skill in SKILLS:
        found += [
            whole(skill, [skill], "pretrained"),
            trained(f"cft-{skill}-part", {skill: 1.0}, STEPS[skill] / 4, "general"),
            whole(f"cft-{skill}", [skill], "general"),
            whole(f"rt-{skill}", ["general", skill], "pretrained"),
        ]
    return [*found, whole("cft-all", SKILLS, "general"), whole("rt-all", OBJECTIVES, "pretrained")]


def _mixed(shares: Mapping[str, float]) -> dict[str, float]:
    """Tasks of data sets that are mixed by their shares."""
    return {task: s * weight / sum(_DATA[d].values()) for d, s in shares.items() for task, weight in _DATA[d].items()}


def replay(lab: Lab) -> Found:
    """Fresh figures of every way to add the skills; what was chosen, and by what.

    Whatever is chosen (ω, the mix for continued fine-tuning, a merge of the search) is chosen on the validation
    split, by the mean of what it is for: general and the skill, or all four.
    """
    recipes = _sound(lab)
    study = Path(__file__).with_name("three-skills.yaml")
    search = lab.search(lab.spec(study), validated=False)
    spec = lab.spec(study, references=[_reference(r.name) for r in runs(lab.size) if r.name not in _SOURCES])
    recipes |= {f"joint {row.trial}": row.recipe for row in _best(search)}
    validation = {name: _scores(m) for name, m in lab.measure(spec, recipes, split="validation").items()}
    chosen = _choose(validation)
    alone = {skill: float(chosen[f"task_arithmetic {skill}"].split()[-1]) for skill in SKILLS}
    recipes |= {"alone": _task_vectors("task_arithmetic", alone)}
    asked = {name: recipes[name] for name in dict.fromkeys([*_TOLD, "alone", *chosen.values()])}
    return {
        "validation": validation,
        "report": {name: _scores(m) for name, m in lab.measure(spec, asked, split="report").items()},
        "chosen": chosen,
        "alone": alone,
        "joint": recipes[chosen["joint"]].mean_weights(),
        "trials": len(search.results.rows),
    }


_SOURCES = ("base", "pretrained", "general", *SKILLS)
_TRAINED = (
    "base",
    "general",
    *SKILLS,
    *(f"{way}-{skill}" for skill in SKILLS for way in ("cft", "rt")),
    "cft-all",
    "rt-all",
)
PAIRS = tuple((a, b) for place, a in enumerate(SKILLS) for b in SKILLS[place + 1 :])
_TOLD = (
    *_TRAINED,
    *(f"guess {skill}" for skill in SKILLS),
    *(f"guess {a} {b}" for a, b in PAIRS),
    "task_arithmetic all guess",
)


def _best(search: Search, count: int = 10) -> list[Row]:
    """The merges that the search's model finds best by the mean; on the front there may be references alone."""
    return sorted(search.results.merges, key=lambda row: -mean(m for m, _ in row.posterior.values()))[:count]


def _sound(lab: Lab) -> dict[str, Recipe]:
    """The fixed recipes without checkpoints whose training diverged; InputError where one is needed that did."""
    sound = {name: recipe for name, recipe in fixed().items() if not set(recipe.weights) & set(lab.left_out)}
    missing = [name for name in _TOLD if name not in sound]
    if missing:
        raise InputError(f"the replay must have {', '.join(missing)}, but {'; '.join(lab.left_out.values())}")
    return sound


def fixed() -> dict[str, Recipe]:
    """Every recipe but the search's, by a name that ends in its ω; each checkpoint as it is under its own name."""
    found = {name: only(name) for name in (*_TRAINED, *(f"cft-{skill}-part" for skill in SKILLS))}
    for skill in SKILLS:
        found[f"guess {skill}"] = _task_vectors("task_arithmetic", {skill: GUESS[skill]})
        for omega in OMEGAS:
            rest = 1.0 - omega
            found[f"task_arithmetic {skill} {omega}"] = _task_vectors("task_arithmetic", {skill: omega})
            found[f"interpolation {skill} {omega}"] = _linear({"general": rest, skill: omega})
            found[f"wise_ft {skill} {omega}"] = _linear({"general": rest, f"cft-{skill}": omega})
    for a, b in PAIRS:
        found[f"guess {a} {b}"] = _task_vectors("task_arithmetic", {a: GUESS[a], b: GUESS[b]})
    for method in METHODS:
        found[f"{method} all guess"] = _of_all(method, GUESS)
        found |= {f"{method} all {omega}": _of_all(method, dict.fromkeys(SKILLS, omega)) for omega in OMEGAS}
    return found


def _of_all(method: str, scales: Mapping[str, float]) -> Recipe:
    if method != "interpolation":
        return _task_vectors(method, scales)
    total = 1.0 + sum(scales.values())
    return _linear({"general": 1.0 / total, **{skill: scale / total for skill, scale in scales.items()}})


def _task_vectors(method: str, scales: Mapping[str, float]) -> Recipe:
    """The generalist's task vector whole, and those of skills at their scales."""
    weights = {"general": (1.0,)} | {skill: (scale,) for skill, scale in scales.items()}
    return Recipe(method=method, weights=weights, parameters={} if method == "task_arithmetic" else {"density": 0.5})


def _linear(weights: Mapping[str, float]) -> Recipe:
    return Recipe(method="linear", weights={name: (weight,) for name, weight in weights.items() if weight})


def _reference(name: str) -> dict[str, str]:
    return {"name": name, "model": f"papers/morrison/0/models/{name}"}


def _choose(scores: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The best recipe of each kind, by the mean of what it is for."""

    def best(names: Iterable[str], of: Iterable[str]) -> str:
        wanted = list(of)
        return max((name for name in names if name in scores), key=lambda name: mean(scores[name][o] for o in wanted))

    chosen = {}
    for skill in SKILLS:
        kinds = {
            kind: [f"{kind} {skill} {omega}" for omega in OMEGAS]
            for kind in ("task_arithmetic", "interpolation", "wise_ft")
        }
        kinds["cft"] = [f"cft-{skill}-part", f"cft-{skill}"]
        chosen |= {f"{kind} {skill}": best(names, ("general", skill)) for kind, names in kinds.items()}
    for method in METHODS:
        chosen[f"{method} all"] = best([f"{method} all {omega}" for omega in ("guess", *OMEGAS)], OBJECTIVES)
    return chosen | {"joint": best([name for name in scores if name.startswith("joint")], OBJECTIVES)}


def _scores(measured: Measured) -> dict[str, float]:
    """In percent: each objective, and the two axes of safety."""
    found: dict[str, Any] = {name: 100.0 * value for name, value in means(measured).items()}
    rates = {name: 100.0 * value for name, value in parts(measured)["safety"].items()}
    # Half of the requests are harmful and half are not, and what is neither refused nor complied with is invalid.
    return found | {"refused": rates["refusal"], "complied": 2.0 * found["safety"] - rates["refusal"]}
