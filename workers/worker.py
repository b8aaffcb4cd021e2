"""One worker: opens everything once, then merges, asks and marks, trial after trial."""

import os
import platform
import traceback
from collections.abc import Mapping, Sequence
from time import perf_counter

import torch

from search_spaces.recipe import Recipe
from storage.checkpoints import Checkpoint
from storage.records import FURTHER, Assignment, Failed, Measured, Outcome
from workers.canary import Canary, canary_of, song_of
from workers.engine import Facts
from workers.engines import load
from workers.errors import TrialError
from workers.marks import open_all
from workers.prompts import load_tokenizer
from workers.racing import lay_rungs
from workers.referee import Referee
from workers.second_stage import SecondStage, Verdict
from workers.setup import Setup
from workers.sheet import Asked, Objective, Sheet


class Worker:
    """Measures recipes on one live engine. A trial writes nothing to disk and builds no model."""

    def __init__(self, setup: Setup) -> None:
        """Open checkpoints and engine; raises InputError where a file is missing or does not fit."""
        torch.set_num_threads(setup.threads)
        root = setup.family.root
        base = Checkpoint(root)
        self.name = f"{platform.node()}:{os.getpid()}"
        self._setup = setup
        self._tokenizer = load_tokenizer(base.path, trust_remote_code=root.trust_remote_code)
        self._objectives = {plan.name: plan.load() for plan in setup.objectives}
        searched = [suite for objective in self._objectives.values() for suite in objective["search"].suites]
        device = pick_device(setup.device)
        self._stage = SecondStage(device=device, verdicts=setup.verdicts)
        if device != "cpu":  # what second models leave free decides how much of it the engine takes
            open_all([suite.scorer for suite in searched], self._stage)
        self._engine = load(setup, self._tokenizer, device=device)
        self._gpus = setup.tensor_parallel if device.startswith("cuda") else 0
        self._sheets: dict[str, Sheet] = {}
        self._song = song_of(searched, self._tokenizer, self._engine.context)

    @property
    def facts(self) -> Facts:
        """What runs here, and how long it took to start."""
        return self._engine.facts

    def canary(self, recipe: Recipe) -> Canary:
        """What this worker makes of a recipe: the same every time, and the same as every other worker's."""
        digest = self._engine.swap(recipe)
        return canary_of(digest, self._engine, self._song)

    def learn(self, verdicts: Mapping[str, Verdict]) -> None:
        """Know what judges have said to other workers."""
        self._stage.learn(verdicts)

    def run(self, assignment: Assignment) -> Outcome:
        """Measure one recipe. The one place where an exception becomes a failed trial."""
        try:
            return self._measure(assignment)
        except (TrialError, RuntimeError, MemoryError) as e:
            return Failed(
                number=assignment.number,
                recipe=assignment.recipe,
                split=assignment.split,
                reason=str(e) or type(e).__name__,
                traceback="" if isinstance(e, TrialError) else traceback.format_exc(),
                worker=self.name,
            )

    def _measure(self, assignment: Assignment) -> Measured:
        started, forward = perf_counter(), self._engine.forward_seconds
        sheet = self._sheet(assignment.split)
        ready = perf_counter()
        digest = self._engine.swap(assignment.recipe)
        merged = perf_counter()
        result = sheet.ask(self._engine, self._referee(assignment))
        total = perf_counter() - started
        return Measured(
            number=assignment.number,
            recipe=assignment.recipe,
            split=assignment.split,
            scores=result.scores,
            breakdown=result.breakdown,
            marks=result.marks,
            verdicts=self._stage.new_verdicts(),
            stopped=result.stopped,
            digest=digest,
            seconds={
                "prepare": ready - started,
                "merge": merged - ready,
                "forward": self._engine.forward_seconds - forward,
                "total": total,
                "gpu": total * self._gpus,
            },
            worker=self.name,
        )

    def _sheet(self, split: str) -> Sheet:
        if split not in self._sheets:
            searched = split in ("search", FURTHER)
            asked = [plan.name for plan in self._setup.objectives if not (searched and plan.watched)]
            objectives = [self._objectives[name][split] for name in asked]
            self._sheets[split] = Sheet(
                objectives, self._tokenizer, self._engine.context, self._rungs(split, objectives), self._stage
            )
        return self._sheets[split]

    def _rungs(self, split: str, objectives: Sequence[Objective]) -> Sequence[Asked]:
        """Only the search races; who is not raced there meets the same rungs, and so the same batches."""
        if self._setup.racing is None or split != "search":
            return ()
        return lay_rungs({suite.key: suite.items for o in objectives for suite in o.suites}, self._setup.racing)

    def _referee(self, assignment: Assignment) -> Referee | None:
        if assignment.rivals is None or self._setup.racing is None or assignment.split != "search":
            return None
        return Referee(self._sheet("search"), assignment.rivals, self._setup.racing)


def pick_device(wanted: str) -> str:
    """``auto`` is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
