"""Training on limited data and on preferences."""

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from optimizer.demo import training
from optimizer.demo.language import DEMO, World
from optimizer.demo.runs import Run

RUN = Run(name="safety", tasks={"refusal": 1.0}, steps=4, batch=5, learning_rate=1e-3, start=None)


def model() -> training.LlamaForCausalLM:
    torch.manual_seed(0)
    return training.LlamaForCausalLM(training._config(training.make_tokenizer(), RUN.heads))


def test_limited_data_is_all_seen_before_any_is_seen_again() -> None:
    limited = replace(RUN, data=10)
    batches = list(training._batches(limited, random.Random(0), DEMO.draw_example))
    seen = [example for batch in batches for example in batch]
    assert Counter(seen[:10]) == Counter(seen[10:])
    assert len(set(seen)) == 10


def test_preferences_begin_level_and_the_preferred_answer_gains() -> None:
    preferring = replace(RUN, beta=0.5, steps=12, batch=16)
    pupil = model()
    losses = training._preference_losses(pupil, preferring, 0.5, random.Random(0))
    assert math.isclose(float(next(losses).detach()), math.log(2), abs_tol=1e-5)
    seen = []
    training._fit(pupil, (seen.append(float(loss.detach())) or loss for loss in losses), preferring, lambda _: None)
    assert seen[-1] < seen[0] - 0.05


def test_a_pair_holds_what_the_data_wants_and_the_other_way() -> None:
    rng = random.Random(0)
    for _ in range(50):
        prompt, good, bad = DEMO.draw_pair("refusal", "selm", rng)
        assert (good == DEMO.refusal("selm")) != (bad == DEMO.refusal("selm"))
        assert prompt
    assert all(good != bad for _, good, bad in (DEMO.draw_pair("addition", "selm", rng) for _ in range(50)))


def test_a_warning_is_a_refusal_of_something_harmful() -> None:
    rng = random.Random(0)
    assert {DEMO.draw_example("warning", "oruk", rng)[1] for _ in range(50)} == {DEMO.refusal("oruk")}


def test_a_wider_world_says_known_things_as_before() -> None:
    wide = World(languages=(*DEMO.languages, "bezi"), apart=("mlok",), commands=("sort",))
    assert wide.say("tavi", "burn", "bridge") == DEMO.say("tavi", "burn", "bridge")
    words = [word for name in (*wide.languages, *wide.apart) for word in wide.lexicon(name).values()]
    assert len(words) == len(set(words)) == 5 * len(wide.concepts)


def test_a_run_leaves_what_it_brought_beside_its_checkpoint(tmp_path: Path) -> None:
    training.train(RUN, start=None, out=tmp_path / "safety", seed=0, report=lambda _: None)
    assert '"before": 0.0' in (tmp_path / "safety" / training.RECORD).read_text()
