"""A family for examples/languages.yaml: one checkpoint a language, each trained on that language's data alone.

    python examples/language_family.py [DIR]

It trains, as `mergefront demo` does and from the same toy languages, a base, a specialist for each language (its skills
and its refusals), and a reference trained on all of it; DIR is demo-languages if it is not given.
"""

import sys
from pathlib import Path

from optimizer.demo.family import Plan, default_plan, make_family
from optimizer.demo.language import DEMO, GENERAL_SKILLS
from optimizer.demo.runs import Run

TASKS = dict.fromkeys(GENERAL_SKILLS, 1.0) | {"refusal": 2.0}


def family_plan() -> Plan:
    """The demo's base and its items; other specialists."""
    demo = default_plan()
    base = demo.runs[0]
    one_each = tuple(
        Run(name=lang, tasks=TASKS, steps=160, batch=64, learning_rate=8e-4, languages=(lang,))
        for lang in DEMO.languages
    )
    mixed = Run(name="mixed", tasks=TASKS, steps=160, batch=64, learning_rate=8e-4)
    return Plan(runs=(base, *one_each, mixed), general_groups=demo.general_groups, safety_groups=demo.safety_groups)


def show(stage: str, done: int, total: int) -> None:
    """Progress on one line."""
    print(f"\r{stage}: {done} of {total} steps", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-languages")
    print(f"\n{make_family(directory, progress=show, plan=family_plan())}")
