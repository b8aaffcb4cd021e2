"""One worker: opens everything once, then merges, asks and marks, trial after trial."""

import os
import platform
import traceback
from collections.abc import Mapping
from time import perf_counter

import torch
from torch import Tensor

from storage.checkpoints import Checkpoint
from storage.records import Assignment, Failed, Measured, Outcome
from workers.errors import TrialError
from workers.merger import Merger
from workers.prompts import load_tokenizer
from workers.setup import Setup
from workers.sheet import Sheet
from workers.transformers_engine import TransformersEngine


class Worker:
    """Measures recipes on one live engine. A trial writes nothing to disk and builds no model."""

    def __init__(self, setup: Setup) -> None:
        """Open checkpoints and engine; raises InputError where a file is missing or does not fit."""
        torch.set_num_threads(setup.threads)
        checkpoints = {source.name: Checkpoint(source) for source in setup.sources}
        base = checkpoints[setup.base]
        self.name = f"{platform.node()}:{os.getpid()}"
        self._setup = setup
        self._tokenizer = load_tokenizer(base.path)
        self._engine = TransformersEngine(
            base.path, self._tokenizer, dtype=setup.dtype, device=pick_device(setup.device)
        )
        self._targets = self._engine.weights()
        resident = {n: _resident(c.tensors, self._targets) for n, c in checkpoints.items()}
        self._merger = Merger(resident, setup.base, seed=setup.seed)
        self._objectives = {plan.name: plan.load() for plan in setup.objectives}
        self._sheets: dict[str, Sheet] = {}

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
        digest = self._merger.merge_into(assignment.recipe, self._targets)
        merged = perf_counter()
        result = sheet.ask(self._engine)
        return Measured(
            number=assignment.number,
            recipe=assignment.recipe,
            split=assignment.split,
            scores=result.scores,
            breakdown=result.breakdown,
            marks=result.marks,
            digest=digest,
            seconds={
                "prepare": ready - started,
                "merge": merged - ready,
                "forward": self._engine.forward_seconds - forward,
                "total": perf_counter() - started,
            },
            worker=self.name,
        )

    def _sheet(self, split: str) -> Sheet:
        if split not in self._sheets:
            asked = [plan.name for plan in self._setup.objectives if split != "search" or not plan.watched]
            objectives = [self._objectives[name][split] for name in asked]
            self._sheets[split] = Sheet(objectives, self._tokenizer, self._engine.context)
        return self._sheets[split]


def pick_device(wanted: str) -> str:
    """``auto`` is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _resident(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors where the targets live: mapped files on CPU, copied once to a GPU."""
    device = next(iter(targets.values())).device
    return tensors if device.type == "cpu" else {n: t.to(device) for n, t in tensors.items() if n in targets}
