"""lm-evaluation-harness's tasks as suites: a task is built once, and its documents are items like any other.

A task's documents stand in the same queue as all other items; its own filters and metric mark them, one at a time.
Nothing of it is built again between trials, and lm-evaluation-harness's cache of answers is never used: it does not
know that the model has changed.
"""

import hashlib
import io
import json
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

from pydantic import Field

from search_spaces.errors import InputError
from workers.errors import TrialError
from workers.marks import Bounds, Mark, Needs
from workers.options import build
from workers.questions import Answer, Generated, Question
from workers.suites import Item, Prompt

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_REFUSED = ("class", "custom_dataset", "include", "process_docs", "process_results", "unsafe_code", "use_prompt")
"""Keys of an inline task that would run code, or that only a file can have."""

_BY_DOCUMENT = ("mean", "nanmean", "weighted_perplexity", "bits_per_byte")
"""Aggregations that a single document has a value by; the others (F1, BLEU ...) exist for a whole set only."""

_CODE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)
"""What the code of tasks, filters and metrics raises where their data is not as they expect."""


@final
@dataclass(frozen=True, kw_only=True)
class LmEval:
    """A task of lm-evaluation-harness: its documents are the items, its own filter and metric mark them.

    Attributes:
        task: a name that lm-evaluation-harness knows, or a task as a mapping of its own configuration keys.
        metric: what an item's value is; empty for the task's first that a document has a value by.
        filter: which of the task's filters reads the answers; empty for its first.
        num_fewshot: examples before each question; None for the task's own number.
        seed: from which those are drawn. lang: the documents' language.
        group: a document's key whose value its translations share; empty where there are none.
        chat: ask through the base's chat template, examples as turns.
        higher_is_better: direction of the metric; None for the task's word on it.
    """

    name: ClassVar[str] = "lm_eval"
    version: ClassVar[int] = 1

    task: Annotated[str, Field(min_length=1)] | dict[str, Any]
    metric: str = ""
    filter: str = ""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)] = 1234
    lang: Annotated[str, Field(min_length=1)] = "en"
    group: str = ""
    chat: bool = False
    higher_is_better: bool | None = None

    @classmethod
    def of(cls, task: str | Mapping[str, Any], options: Mapping[str, Any]) -> "LmEval":
        """With options as a study file gives them; raises InputError for one that it does not take."""
        return build(cls, cls.name, {"task": task, **options})

    def __post_init__(self) -> None:
        """Refuses an inline task that would run code."""
        if not isinstance(self.task, str):
            _check_inline(self.task)

    @property
    def needs(self) -> Needs:
        """Generation, or the log-likelihood of the answers."""
        generates = self._loaded.built.OUTPUT_TYPE == "generate_until"
        return "generation" if generates else "loglikelihood"

    @property
    def maximise(self) -> bool:
        """Whether more is better, as far as that is settled."""
        return self.higher_is_better is not False

    @property
    def bounds(self) -> Bounds:
        """0 and 1 for accuracies, matches and pass rates; None for other metrics."""
        counted = self.metric == "em" or self.metric.startswith(("acc", "exact_match", "pass@"))
        return (0.0, 1.0) if counted else None

    def settled(self) -> dict[str, Any]:
        """Metric, filter and direction by name, for results must not depend on a later default.

        Raises: InputError as :meth:`items` does.
        """
        loaded = self._loaded.task
        return {name: getattr(loaded, name) for name in ("metric", "filter", "higher_is_better")}

    def items(self) -> list[Item]:
        """Every document as an item, in the task's order.

        Raises: InputError where lm-evaluation-harness is missing, the task or its data set does not load, or the task
        asks for what an engine does not do (sampling, images).
        """
        return self._loaded.items

    def check(self, item: Item) -> str | None:
        """A document lacks nothing."""
        return None

    def ask(self, item: Item) -> Sequence[Question]:
        """One question an instance."""
        return self._loaded.questions(item)

    def mark(self, item: Item, answers: Sequence[Answer]) -> Mark:
        """The document's value of the metric. Raises TrialError where the task's code fails on it."""
        try:
            value = self._loaded.value(item, answers)
        except _CODE_ERRORS as e:
            raise TrialError(f"item {item.id} of {self.title}: {type(e).__name__} in the task's code: {e}") from e
        verdict = {0.0: "wrong", 1.0: "correct"}.get(value) if self.bounds and value is not None else None
        output = next((a.text for a in answers if isinstance(a, Generated)), None)
        return Mark(value=value, verdict=verdict, output=output)

    @property
    def title(self) -> str:
        """The task's name."""
        return self.task if isinstance(self.task, str) else str(self.task["task"])

    @cached_property
    def _loaded(self) -> "_Loaded":
        return _load(json.dumps({f.name: getattr(self, f.name) for f in fields(self)}))


class _Loaded:
    """A task as it was built: documents as items, and the instances that each of them is asked by."""

    def __init__(self, task: LmEval) -> None:
        self.built = _build(task)
        self.task = _settled(task, self.built)
        self._filter = next(f for f in _filters(self.built) if f.name == self.task.filter)
        self._aggregate = self.built.aggregation()[self.task.metric]
        self._instances: dict[str, list[Instance]] = {}
        self.items = list(self._lay())
        self.questions(self.items[0])  # refuses here, and not in a worker, what no engine does

    def questions(self, item: Item) -> list[Question]:
        """What is asked about a document."""
        from workers.lm_eval_model import question_of

        return [question_of(instance) for instance in self._instances[item.id]]

    def value(self, item: Item, answers: Sequence[Answer]) -> float | None:
        """The metric's value; None where the task leaves it out for this document, or gives no number."""
        from workers.lm_eval_model import response_to

        instances = self._instances[item.id]
        for instance, answer in zip(instances, answers, strict=True):
            # A task may ask the same several times over; greedy decoding answers the same each time.
            instance.resps = [response_to(instance, answer)] * (instance.repeats or 1)
        self._filter.apply(instances)
        responses = [i.filtered_resps[self._filter.name] for i in instances]
        metrics = self.built.process_results(instances[0].doc, responses)
        if self.task.metric not in metrics:
            return None
        value = float(self._aggregate([metrics[self.task.metric]]))
        return value if isfinite(value) else None

    def _lay(self) -> Iterator[Item]:
        by_document: dict[int, list[Instance]] = defaultdict(list)
        for instance in _instances(self.task, self.built):
            by_document[instance.doc_id].append(instance)
        seen: Counter[str] = Counter()
        for place, asked in sorted(by_document.items()):
            asked.sort(key=lambda instance: instance.idx)
            item = _item(self.task, self.built, place, asked, seen)
            self._instances[item.id] = asked
            yield item


@lru_cache(maxsize=32)
def _load(document: str) -> _Loaded:
    """Cached, for a driver looks at its suites several times before it starts."""
    return _Loaded(LmEval(**json.loads(document)))


def _build(task: LmEval) -> "Task":
    manager = _manager(defaults=isinstance(task.task, str))
    if isinstance(task.task, str) and task.task not in manager.all_subtasks:
        raise InputError(_unknown(task.task, manager))
    if not isinstance(task.task, str):
        _check_metrics(task.task)
    try:
        with redirect_stderr(io.StringIO()):
            (built,) = manager.load([task.task if isinstance(task.task, str) else dict(task.task)])["tasks"].values()
    except _load_errors() as e:
        raise InputError(f"the lm-eval task {task.title} must load, but it does not: {_said(e)}") from e
    if getattr(built, "UNSAFE_CODE", False) or getattr(built, "MULTIMODAL", False):
        what = "runs code that models write" if getattr(built, "UNSAFE_CODE", False) else "shows more than text"
        raise InputError(f"an lm-eval task must be of text that is only read, but {task.title} {what}.")
    if task.num_fewshot is not None or built.get_config("num_fewshot") is None:
        built.set_config("num_fewshot", task.num_fewshot or 0)
    built.set_fewshot_seed(task.seed)
    return built


def _settled(task: LmEval, built: "Task") -> LmEval:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    usable = {AGGREGATION_REGISTRY[name] for name in _BY_DOCUMENT}
    metrics = [name for name, how in built.aggregation().items() if how in usable]
    # Perplexities of single documents have no useful mean; bits per byte have.
    metrics.sort(key=lambda name: "perplexity" in name)
    metric = task.metric or next(iter(metrics), "")
    if metric not in metrics:
        raise InputError(
            f"metric of {task.title} must be one that a document has a value by ({', '.join(metrics) or 'none has'}), "
            f"but got {metric or ', '.join(built.aggregation())}."
        )
    filters = [f.name for f in _filters(built)]
    if task.filter and task.filter not in filters:
        raise InputError(f"filter of {task.title} must be one of {', '.join(filters)}, but got {task.filter}.")
    better = built.higher_is_better().get(metric, True) if task.higher_is_better is None else task.higher_is_better
    return replace(task, metric=metric, filter=task.filter or filters[0], higher_is_better=bool(better))


def _instances(task: LmEval, built: "Task") -> Sequence["Instance"]:
    """Every question of the task, examples drawn and laid out once."""
    try:
        with redirect_stderr(io.StringIO()):
            built.build_all_requests(
                apply_chat_template=task.chat,
                fewshot_as_multiturn=task.chat,
                chat_template=_as_chat if task.chat else None,
            )
    except _load_errors() as e:
        raise InputError(f"the lm-eval task {task.title} must render its prompts, but it does not: {_said(e)}") from e
    found: Sequence[Instance] = built.instances
    return found


def _as_chat(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> Prompt:
    """Where lm-evaluation-harness renders a chat we keep its messages, which the base's template renders later."""
    del add_generation_prompt
    return tuple(dict(m) for m in messages)


def _item(task: LmEval, built: "Task", place: int, asked: Sequence["Instance"], seen: Counter[str]) -> Item:
    """A document as an item: its id is a digest of its content, and documents that ask the same are one group."""
    document = asked[0].doc
    digest = _digest(json.dumps(document, sort_keys=True, default=str))
    seen[digest] += 1
    question = _question(built, document)
    if task.group and task.group not in document:
        keys = ", ".join(document)
        raise InputError(f"group of {task.title} must be a key of its documents ({keys}), but got {task.group}.")
    return Item(
        id=digest if seen[digest] == 1 else f"{digest}-{seen[digest]}",
        prompt=asked[0].args[0] or "".join(map(str, asked[0].args[1:])),
        lang=task.lang,
        group=str(document[task.group]) if task.group else _digest(question) if question else digest,
        meta={"doc_id": place},
    )


def _question(built: "Task", document: Mapping[str, Any]) -> str:
    """What tells documents apart: two that ask the same belong together, whatever their other keys hold."""
    text = built.doc_to_text(document)
    if isinstance(text, int):  # the contexts are the choices, and the text says which of them is right
        text = built.doc_to_choice(document)[0]
    return " ".join(unicodedata.normalize("NFKC", str(text)).casefold().split())


def _check_inline(task: Mapping[str, Any]) -> None:
    """Refuses what would run code, or fetch code to run."""
    if not isinstance(task.get("task"), str):
        raise InputError("an inline lm_eval task must have a name (task: NAME), but it has none.")
    if isinstance(task.get("doc_to_choice"), dict):
        # A database may keep a mapping's keys in another order, and the order is what the gold index counts in.
        raise InputError(
            f"doc_to_choice of an inline lm_eval task must be a list or a text, but {task['task']} has keys."
        )
    metrics = [m for m in task.get("metric_list") or [] if isinstance(m, dict)]
    refused = [key for key in _REFUSED if task.get(key)] + ["hf_evaluate" for m in metrics if m.get("hf_evaluate")]
    if refused:
        raise InputError(f"an inline lm_eval task must not run code, but {task['task']} has {refused[0]}.")


def _check_metrics(task: Mapping[str, Any]) -> None:
    """Refuses metrics that lm-evaluation-harness would look for, and run, on the hub."""
    from lm_eval.api.registry import METRIC_REGISTRY

    named = [m.get("metric") if isinstance(m, dict) else m for m in task.get("metric_list") or []]
    unknown = [name for name in named if name not in METRIC_REGISTRY]
    if unknown:
        known = ", ".join(sorted(METRIC_REGISTRY))
        raise InputError(f"a metric must be one of {known}, but {task['task']} has {unknown[0]!r}.")


def _filters(built: "Task") -> Sequence[Any]:
    # The task's own verb filters all documents at once; an item must be marked alone.
    return built._filters  # type: ignore[no-any-return]  # lm-eval's tasks have no types


@cache
def _manager(*, defaults: bool) -> "TaskManager":
    try:
        import datasets
        from lm_eval import utils
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise InputError(
            f"lm_eval suites need lm-eval, but it is not installed ({e}): pip install 'mergefront[lm-eval]'."
        ) from e
    from jinja2.sandbox import SandboxedEnvironment

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # A study file may come from elsewhere: its templates must not reach Python's own objects.
    sandbox = SandboxedEnvironment(loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox
    return TaskManager(include_defaults=defaults)


def with_data_files(task: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """An inline task with the paths of its local data files changed; addresses (``https://...``) stay."""
    options = task.get("dataset_kwargs")
    if not isinstance(options, dict) or "data_files" not in options:
        return dict(task)

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return value if "://" in value else change(value)
        if isinstance(value, dict):
            return {key: changed(v) for key, v in value.items()}
        return [changed(v) for v in value] if isinstance(value, list) else value

    return {**task, "dataset_kwargs": {**options, "data_files": changed(options["data_files"])}}


def _load_errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError
    from jinja2 import TemplateError

    return (*_CODE_ERRORS, DatasetsError, HfHubHTTPError, TemplateError)


def _unknown(name: str, manager: "TaskManager") -> str:
    if name in manager.all_groups or name in manager.all_tags:
        return f"lm_eval must name one task, but {name} is a group of tasks: name them as suites of their own."
    from difflib import get_close_matches

    near = ", ".join(get_close_matches(name, manager.all_subtasks, n=3))
    return f"lm_eval must name a task that lm-eval knows, but it knows no {name!r}{f' (near: {near})' if near else ''}."


def _said(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
