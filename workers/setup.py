"""All that a worker needs to know before its first trial: plain values that travel to any machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from search_spaces.errors import InputError
from storage.checkpoints import Source
from storage.file_records import FileRecords
from storage.records import FURTHER, SPLITS
from workers.family import Family
from workers.lm_eval_suites import LmEval
from workers.racing import Rules
from workers.scorers import make_scorer
from workers.scores import Across
from workers.sheet import Objective, Suite
from workers.suites import SuiteFiles, choose, read_splits, split_items

EngineName = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuitePlan:
    """A suite's files, its scorer by name, and at most how many items are asked: ``items`` of the search split and as
    many further ones of a second look, ``fresh_items`` of each of the others.

    A task of lm-evaluation-harness has no files: its documents are the items.
    """

    key: str
    files: SuiteFiles | None
    scorer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    items: int | None = None
    fresh_items: int | None = None

    def load(self) -> dict[str, Suite]:
        """The suite of each split, and of the search split's further items, of which there may be none.

        Raises: InputError for files that are missing, broken or overlapping.
        """
        scorer = make_scorer(self.scorer, self.options)
        most = dict.fromkeys(SPLITS, self.fresh_items) | {"search": self.items and 2 * self.items}
        if isinstance(scorer, LmEval):
            every = split_items(scorer.items(), scorer.title)
            splits = {split: choose(items, most[split]) for split, items in every.items()}
        elif self.files is not None:
            splits = read_splits(self.files, most)
        else:
            raise InputError(f"a suite must have a path, but {self.key} has none.")
        first = choose(splits["search"], self.items)
        asked = {item.id for item in first}
        splits |= {"search": first, FURTHER: [item for item in splits["search"] if item.id not in asked]}
        return {split: Suite(key=self.key, scorer=scorer, items=tuple(items)) for split, items in splits.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectivePlan:
    """An objective's suites; a watched one is asked of finalists only, not in the search."""

    name: str
    suites: tuple[SuitePlan, ...]
    across: Across = "mean"
    watched: bool = False
    at_least: float | None = None
    at_most: float | None = None

    def load(self) -> dict[str, Objective]:
        """The objective on each split."""
        loaded = [plan.load() for plan in self.suites]
        return {
            split: Objective(
                name=self.name,
                suites=tuple(suite[split] for suite in loaded),
                across=self.across,
                at_least=self.at_least,
                at_most=self.at_most,
            )
            for split in loaded[0]
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker opens once: models, objectives, and how to hold them.

    Attributes:
        sources: base, checkpoints and references, in the order in which sums run. base: the base's name.
        dtype: of the live weights. device: ``cpu``, ``cuda`` or ``auto``. threads: torch threads of one worker.
        seed: the study's, from which the masks of DARE and DELLA are drawn.
        verdicts: what judges have said already, by the digest of what they were asked.
        racing: how trials race on the search split; None where each answers all its items.
        fingerprints, files: of the sources when the study began, by name; see :class:`workers.family.Family`.
        engine: what runs the model. tensor_parallel: processes, and GPUs, over which one vLLM engine spreads it.
        max_model_len: tokens that fit into a vLLM engine; None for as many as the model can attend to.
    """

    sources: tuple[Source, ...]
    base: str
    objectives: tuple[ObjectivePlan, ...]
    dtype: str
    device: str = "auto"
    threads: int = 1
    seed: int = 0
    verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    racing: Rules | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecords] = field(default_factory=dict)
    engine: EngineName = "transformers"
    tensor_parallel: int = 1
    max_model_len: int | None = None

    @property
    def family(self) -> Family:
        """What its merges are made of."""
        return Family(
            sources=self.sources, base=self.base, seed=self.seed, fingerprints=self.fingerprints, files=self.files
        )
