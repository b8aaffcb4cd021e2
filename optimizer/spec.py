"""The study file: parsed strictly, every refusal with the rule, the values and the line."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from optimizer import yaml_lines
from search_spaces.errors import InputError
from search_spaces.groups import Groups
from search_spaces.methods import CATALOGUE, METHODS, PARAMETERS, SIMPLEX_METHODS, takers
from search_spaces.recipe import digest_of
from search_spaces.space import Range, Space
from storage.checkpoints import Source
from storage.staging import is_url
from workers.judge import Judge
from workers.lm_eval_suites import LmEval, with_data_files
from workers.marks import Prepares, Scorer
from workers.racing import Rules
from workers.scorers import make_scorer, path_options
from workers.scores import Across
from workers.setup import EngineName, ObjectivePlan, Setup, SuitePlan
from workers.suites import SuiteFiles

BASE = "base"
UNIFORM = "uniform"
MODEL_STOCK = "model_stock"
GREEDY_SOUP = "greedy_soup"
BEST_SLIDER = "best_slider"
_TAKEN = (BASE, UNIFORM, MODEL_STOCK, GREEDY_SOUP, BEST_SLIDER)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Name = Annotated[str, Field(pattern=_NAME)]
_MOST_BYTES = 1_000_000
_SHOWN = 200


def _printable(text: str) -> str:
    """No control characters: texts end up in paths, messages and logs."""
    if not text.isprintable():
        raise ValueError(f"texts must be printable, but got {text[:_SHOWN]!r}")
    return text


Text = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_printable)]


class _Strict(BaseModel):
    """Unknown keys are refused and nothing is changed after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CheckpointSpec(_Strict):
    """One checkpoint: a full model, or a base model and a LoRA adapter."""

    name: Name
    model: Text
    adapter: Text | None = None
    examples: Annotated[int, Field(gt=0)] | None = None

    @property
    def source(self) -> Source:
        """Where its weights come from."""
        return Source(name=self.name, model=self.model, adapter=self.adapter)


class SearchSpaceSpec(_Strict):
    """What may be proposed. A method parameter is a number, which fixes it, or [low, high], which searches it."""

    model_config = ConfigDict(serialize_by_alias=True)

    method: str | Annotated[list[str], Field(min_length=1)] = "linear"
    groups: str = "model"
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 1.2]
    density: list[float] | None = None
    gamma: list[float] | None = None
    epsilon: list[float] | None = None
    lambda_: list[float] | None = Field(default=None, alias="lambda")

    @property
    def parameters(self) -> dict[str, Range]:
        """The range of each method parameter that the file names; low = high where it is fixed."""
        given = {"density": self.density, "gamma": self.gamma, "epsilon": self.epsilon, "lambda": self.lambda_}
        return {name: (pair[0], pair[1]) for name, pair in given.items() if pair is not None}

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods as a tuple."""
        return (self.method,) if isinstance(self.method, str) else tuple(self.method)

    @field_validator("method")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        unknown = [n for n in names if n not in METHODS]
        if unknown:
            hint = " (it has no weights to search: it is a baseline of every study)" * (unknown[0] in CATALOGUE)
            raise ValueError(f"a merge method must be one of {', '.join(METHODS)}, but got {unknown[0]!r}{hint}")
        _refuse_twice("a method", names)
        return value

    @field_validator("density", "gamma", "epsilon", "lambda_", mode="before")
    @classmethod
    def _pair(cls, value: object, info: ValidationInfo) -> list[float] | None:
        """A number becomes a pair of equals."""
        name = str(info.field_name).rstrip("_")
        rule = PARAMETERS[name]
        pair = value if isinstance(value, list) else [value, value]
        numbers = [float(x) for x in pair if isinstance(x, int | float) and not isinstance(x, bool) and rule.holds(x)]
        if value is None or (len(numbers) == len(pair) == 2 and numbers[0] <= numbers[1]):
            return None if value is None else numbers
        raise ValueError(f"{name} must be a number in {rule.interval} or [low, high] of such, but got {value!r}")

    @property
    def idle(self) -> list[str]:
        """Parameters that the file names and none of its methods takes."""
        return [name for name in self.parameters if not set(takers(name)) & set(self.methods)]

    @model_validator(mode="after")
    def _spread(self) -> "SearchSpaceSpec":
        if "della" in self.methods:
            _check_della(self.parameters)
        return self

    @field_validator("groups")
    @classmethod
    def _parsed(cls, value: str) -> str:
        Groups.parse(value)
        return value

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if not -10 <= value[0] < value[1] <= 10:
            raise ValueError(f"scale must be [low, high] with -10 <= low < high <= 10, but got {value}")
        return value


class SuiteSpec(_Strict):
    """A file of items, its scorer, and what that scorer takes: further keys are the scorer's options.

    ``lm_eval: TASK`` stands for a scorer that brings its items along.
    """

    model_config = ConfigDict(extra="allow")

    path: Text | None = None
    scorer: Text
    validation: Text | None = None
    report: Text | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the scorer is made with."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}

    @property
    def suite_files(self) -> SuiteFiles | None:
        """Where its items lie; None where its scorer brings them along."""
        if self.path is None:
            return None
        own = {"validation": self.validation, "report": self.report}
        return SuiteFiles(path=Path(self.path), **{k: None if v is None else Path(v) for k, v in own.items()})

    @property
    def files(self) -> dict[str, str]:
        """The files that the suite and its scorer name, by their keys."""
        own = {key: value for key in _SUITE_FILES if (value := getattr(self, key)) is not None}
        kinds = path_options(self.scorer)
        return own | {key: value for key, value in self.options.items() if kinds.get(key) == "file"}

    @property
    def made(self) -> Scorer:
        """The scorer; it has opened no file yet."""
        return make_scorer(self.scorer, self.options)

    @property
    def title(self) -> str:
        """The file's name, or the task's."""
        made = self.made
        return made.title if isinstance(made, LmEval) else Path(self.path or "").name

    @model_validator(mode="before")
    @classmethod
    def _task(cls, value: object) -> object:
        """``lm_eval: TASK`` in the form of all other suites."""
        if not isinstance(value, dict) or "lm_eval" not in value:
            return value
        others = [key for key in (*_SUITE_FILES, "scorer", "task") if key in value]
        if others:
            raise ValueError(f"a suite with lm_eval has items and scorer from its task, but it names {others[0]}")
        return {"scorer": LmEval.name, "task": value["lm_eval"]} | {k: v for k, v in value.items() if k != "lm_eval"}

    @model_validator(mode="after")
    def _makes(self) -> "SuiteSpec":
        brings = isinstance(make_scorer(self.scorer, self.options), LmEval)
        if brings == bool(self.path or self.validation or self.report):
            rule = "must not have a path, but has one" if brings else "must have a path, but has none"
            raise ValueError(f"a suite with the scorer {self.scorer} {rule}")
        return self


class ObjectiveSpec(_Strict):
    """One number to optimise or to watch."""

    name: Name
    suites: Annotated[list[SuiteSpec], Field(min_length=1)]
    across_languages: Literal["mean", "min", "softmin", "cvar"] | dict[str, Annotated[float, Field(ge=0)]] = "mean"
    at_least: float | None = None
    at_most: float | None = None
    role: Literal["optimise", "watch"] = "optimise"

    @property
    def maximise(self) -> bool:
        """Whether more is better: its scorers say."""
        return self.suites[0].made.maximise

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where its values lie, None where they have no bounds."""
        return self.suites[0].made.bounds

    @model_validator(mode="after")
    def _one_direction(self) -> "ObjectiveSpec":
        kinds = {(s.maximise, s.bounds) for s in (suite.made for suite in self.suites)}
        if len(kinds) > 1:
            names = ", ".join(suite.scorer for suite in self.suites)
            raise ValueError(f"the scorers of one objective must share direction and range, but got {names}")
        share = self.across_languages.get("cvar") if isinstance(self.across_languages, dict) else None
        if share is not None and not (len(self.across_languages) == 1 and 0 < share <= 1):
            raise ValueError(
                f"across_languages must be {{cvar: SHARE}} with one share in (0, 1], but got {self.across_languages}"
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least must not exceed at_most, but got {self.at_least} and {self.at_most}")
        return self

    @property
    def across(self) -> Across:
        """How languages count, as a worker reads it."""
        if isinstance(self.across_languages, str) or "cvar" not in self.across_languages:
            return self.across_languages
        return f"cvar:{self.across_languages['cvar']}"

    def violations(self, mean: float) -> dict[str, float]:
        """One number a constraint, at most 0 where the constraint holds."""
        found = {}
        if self.at_least is not None:
            found[f"{self.name} at_least {self.at_least}"] = self.at_least - mean
        if self.at_most is not None:
            found[f"{self.name} at_most {self.at_most}"] = mean - self.at_most
        return found


class EvaluationSpec(_Strict):
    """How many items of each suite a trial answers in the search, how many finalists do on fresh ones, racing, and the
    share of trials that may be second looks.
    """

    items: Annotated[int, Field(gt=1)] | None = None
    fresh_items: Annotated[int, Field(gt=1)] | None = None
    racing: bool = False
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    remeasure: Annotated[float, Field(ge=0, le=0.5)] = 0.15


class BudgetSpec(_Strict):
    """What a study may cost."""

    gpu_hours: Annotated[float, Field(gt=0)]


class SearchSpec(_Strict):
    """How long, with which sampler, and from where the search starts."""

    trials: Annotated[int, Field(gt=0)] = 60
    sampler: Text = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    parallel: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    evaluation: EvaluationSpec = EvaluationSpec()
    start_from: list[dict[str, Annotated[float, Field(ge=0)]]] = []
    stop: Annotated[int, Field(gt=0)] | None = None
    budget: BudgetSpec | None = None
    warm_start: Name | None = None

    @model_validator(mode="after")
    def _foretold(self) -> "SearchSpec":
        if self.stop is not None and self.sampler != "auto":
            raise ValueError(f"stop needs the sampler auto, which foretells gains, but the sampler is {self.sampler}")
        return self


class WorkersSpec(_Strict):
    """What the workers run on."""

    engine: EngineName = "transformers"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = "auto"
    count: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    tensor_parallel: Annotated[int, Field(gt=0, le=64)] = 1
    max_model_len: Annotated[int, Field(gt=0)] | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("quantization") is not None:
            raise ValueError(
                f"quantization must not be set, since merges are of whole weights, but it is {value['quantization']!r}"
            )
        return value

    @model_validator(mode="after")
    def _of_the_engine(self) -> "WorkersSpec":
        if self.engine != "vllm" and (self.tensor_parallel > 1 or self.max_model_len is not None):
            name = "tensor_parallel" if self.tensor_parallel > 1 else "max_model_len"
            raise ValueError(f"{name} is for engine: vllm, but the engine is {self.engine}")
        return self


class Spec(_Strict):
    """A study file as parsed, its paths resolved against the file's directory."""

    study: Name
    base: Text
    checkpoints: Annotated[list[CheckpointSpec], Field(min_length=1)]
    references: list[CheckpointSpec] = []
    search_space: SearchSpaceSpec = SearchSpaceSpec()
    objectives: Annotated[list[ObjectiveSpec], Field(min_length=1)]
    search: SearchSpec = SearchSpec()
    workers: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _consistent(self) -> "Spec":
        names = [c.name for c in [*self.checkpoints, *self.references]]
        _refuse_twice("a checkpoint's or reference's name", [*_TAKEN, *names])
        _refuse_twice("an objective's name", [o.name for o in self.objectives])
        if not self.optimised:
            raise ValueError("at least one objective must have role: optimise, but all are watched")
        for method in self.search_space.methods:
            _check_count(method, len(self.checkpoints))
        if self.search.warm_start == self.study:
            raise ValueError(f"search.warm_start must name another study, but names {self.study}")
        for i, weights in enumerate(self.search.start_from):
            self._check_start(i, weights)
        return self

    def _check_start(self, place: int, weights: dict[str, float]) -> None:
        known = [c.name for c in self.checkpoints]
        unknown = [name for name in weights if name not in known]
        if unknown:
            raise ValueError(
                f"search.start_from[{place}] must name checkpoints ({', '.join(known)}), but names {unknown[0]}"
            )
        if self.search_space.methods[0] in SIMPLEX_METHODS and not sum(weights.values()) > 0:
            raise ValueError(f"search.start_from[{place}] must have a weight above zero, but has {weights}")

    @property
    def optimised(self) -> list[ObjectiveSpec]:
        """The objectives that the search sees, in the file's order."""
        return [o for o in self.objectives if o.role == "optimise"]

    @property
    def judged(self) -> bool:
        """Whether a judge marks some of it, whose verdicts are kept in the database."""
        return any(suite.scorer == Judge.name for objective in self.objectives for suite in objective.suites)

    @property
    def space(self) -> Space:
        """The search space."""
        low, high = self.search_space.scale
        return Space(
            methods=self.search_space.methods,
            checkpoints=tuple(c.name for c in self.checkpoints),
            groups=self.search_space.groups,
            scale=(low, high),
            parameters=self.search_space.parameters,
        )

    @property
    def sources(self) -> tuple[Source, ...]:
        """Base, checkpoints and references, in the order in which sums run."""
        merged = [c.source for c in self.checkpoints]
        base = Source(name=BASE, model=self.base, trust_remote_code=self.workers.trust_remote_code)
        return (base, *merged, *(c.source for c in self.references))

    def setup(self, *, device: str, threads: int = 1) -> Setup:
        """What a worker of this study opens."""
        return Setup(
            sources=self.sources,
            base=BASE,
            objectives=tuple(self._plan(o) for o in self.objectives),
            dtype=self.workers.dtype,
            device=device,
            threads=threads,
            seed=self.search.seed,
            racing=self._racing,
            engine=self.workers.engine,
            tensor_parallel=self.workers.tensor_parallel,
            max_model_len=self.workers.max_model_len,
        )

    def document(self) -> dict[str, Any]:
        """The spec as plain JSON values; :func:`from_document` reads it back."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the document."""
        return digest_of(self.document())

    def _plan(self, objective: ObjectiveSpec) -> ObjectivePlan:
        suites = tuple(
            SuitePlan(
                key=f"{objective.name}/{i}:{suite.title}",
                files=suite.suite_files,
                scorer=suite.scorer,
                options=suite.options,
                items=self.search.evaluation.items,
                fresh_items=self.search.evaluation.fresh_items,
            )
            for i, suite in enumerate(objective.suites)
        )
        watched = objective.role == "watch"
        return ObjectivePlan(
            name=objective.name,
            suites=suites,
            across=objective.across,
            watched=watched,
            at_least=objective.at_least,
            at_most=objective.at_most,
        )

    @property
    def _racing(self) -> Rules | None:
        asked = self.search.evaluation
        return Rules(confidence=asked.confidence, seed=self.search.seed) if asked.racing else None


def load_spec(path: Path) -> Spec:
    """Read a study file. Raises InputError naming the file, the line, the rule and the values."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"a study file must be a text file that opens, but {path} is not: {e}.") from e
    if len(text) > _MOST_BYTES:
        raise InputError(f"a study file must have at most {_MOST_BYTES:,} bytes, but {path} has more.")
    document, lines = yaml_lines.load(text, str(path))
    return read_spec(document, lines, name=str(path), root=path.parent.absolute())


def read_spec(
    document: object,
    lines: dict[yaml_lines.Path, int],
    *,
    name: str,
    root: Path,
    screen: Callable[[dict[str, Any]], dict[str, Any]] = lambda document: document,
) -> Spec:
    """The spec of a study file's content.

    Args:
        lines: of its places, for messages. name: what messages call the file. root: what relative paths start from.
        screen: sees the document once its paths are absolute, before any of them is looked at, and may refuse or
            change it.
    Raises: InputError naming the file, the line, the rule and the values.
    """
    if not isinstance(document, dict):
        raise InputError(f"{name}: a study file must be a mapping, but got {type(document).__name__}.")
    resolved = screen(_resolve(document, root))
    _settle(resolved, lines, name)
    try:
        spec = Spec.model_validate(resolved)
    except ValidationError as e:
        raise InputError("\n".join(_explain(e, lines, name))) from e
    _check_files(spec, lines, name)
    return spec


def from_document(document: dict[str, Any]) -> Spec:
    """The spec that a study keeps in its database."""
    return Spec.model_validate(document)


def _resolve(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """The document with relative paths made absolute. What has no such shape is left for the validation to name."""
    found = dict(document)
    if isinstance(found.get("base"), str):
        found["base"] = _model(found["base"], root)
    for key in ("checkpoints", "references"):
        found[key] = _each(found.get(key), lambda c: _paths(c, ("model", "adapter"), root, _model))
    found["objectives"] = _each(
        found.get("objectives"),
        lambda o: (
            o
            | {
                "suites": _each(
                    o.get("suites"),
                    lambda s: _suite_paths(s, root),
                )
            }
        ),
    )
    return {key: value for key, value in found.items() if value is not _ABSENT}


_ABSENT: Any = object()
_SUITE_FILES = ("path", "validation", "report")


def _each(value: Any, change: Any) -> Any:
    if value is None:
        return _ABSENT
    if not isinstance(value, list):
        return value
    return [_present(change(v)) if isinstance(v, dict) else v for v in value]


def _present(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not _ABSENT}


def _paths(document: dict[str, Any], keys: Sequence[str], root: Path, change: Any) -> dict[str, Any]:
    return document | {k: change(document[k], root) for k in keys if isinstance(document.get(k), str) and document[k]}


def _suite_paths(suite: dict[str, Any], root: Path) -> dict[str, Any]:
    """The suite's own files, and whatever files and models its scorer's options name."""
    if isinstance(suite.get("lm_eval"), dict):
        suite = suite | {"lm_eval": with_data_files(suite["lm_eval"], lambda text: _file(text, root))}
    kinds = path_options(suite["scorer"]) if isinstance(suite.get("scorer"), str) else {}
    files = [name for name, kind in kinds.items() if kind == "file"]
    models = [name for name, kind in kinds.items() if kind == "model"]
    return _paths(_paths(suite, (*_SUITE_FILES, *files), root, _file), models, root, _model)


def _settle(document: dict[str, Any], lines: dict[yaml_lines.Path, int], name: str) -> None:
    """Writes down what tasks of lm-evaluation-harness settle: metric and direction. Broken shapes are left alone."""
    for i, objective in enumerate(_dicts(document.get("objectives"))):
        for j, suite in enumerate(_dicts(objective.get("suites"))):
            if "lm_eval" not in suite or {*_SUITE_FILES, "scorer", "task"} & set(suite):
                continue
            try:
                made = LmEval.of(suite["lm_eval"], {k: v for k, v in suite.items() if k != "lm_eval"})
                suite |= made.settled()
            except InputError as e:
                raise InputError(f"{name}, line {_line(lines, ('objectives', i, 'suites', j))}: {e}") from e


def _dicts(value: object) -> list[dict[str, Any]]:
    """The list, where it is one of mappings."""
    return value if isinstance(value, list) and all(isinstance(v, dict) for v in value) else []


def _model(text: str, root: Path) -> str:
    """A directory beside the study file; a hub id or a URL as it is."""
    if is_url(text):
        return text
    path = _expanded(text)
    here = root / path
    looks_like_a_path = path.is_absolute() or text.startswith((".", "~")) or text.partition("@")[0].count("/") != 1
    return str(here) if looks_like_a_path or _is(here, Path.is_dir) else text


def _file(text: str, root: Path) -> str:
    return str(root / _expanded(text))


def _expanded(text: str) -> Path:
    """With ``~`` replaced, where it names a home directory."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return Path(text)


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether it is a file or directory; a name that no file system takes is neither."""
    try:
        return kind(path)
    except OSError:
        return False


def _check_files(spec: Spec, lines: dict[yaml_lines.Path, int], name: str) -> None:
    for i, objective in enumerate(spec.objectives):
        for j, suite in enumerate(objective.suites):
            make = ("objectives", i, "suites", j)
            for key, value in suite.files.items():
                if not _is(Path(value), Path.is_file):
                    line = _line(lines, (*make, key))
                    raise InputError(f"{name}, line {line}: {key} must be a file, but there is no {value}.")
            try:
                if isinstance(scorer := suite.made, Prepares):
                    scorer.prepare()
            except InputError as e:
                raise InputError(f"{name}, line {_line(lines, make)}: {e}") from e


def _explain(error: ValidationError, lines: dict[yaml_lines.Path, int], name: str) -> Iterator[str]:
    for detail in error.errors()[:10]:
        place = tuple(p for p in detail["loc"] if (p in ("str",) or _is_place(p)))
        path = tuple(p for p in place if not (isinstance(p, str) and re.match(r"^(list|dict|literal|constrained)", p)))
        yield f"{name}, line {_line(lines, path)}: {_message(detail, path)}"


def _is_place(part: str | int) -> bool:
    return isinstance(part, int) or not re.match(r"^(list|dict|literal|constrained|function)\[?", part)


def _message(detail: ErrorDetails, path: tuple[str | int, ...]) -> str:
    where = _dotted(path)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"keys must be known, but {where} is not (keys here: {', '.join(_keys_at(path[:-1]))})."
    if kind == "missing":
        return f"{where} is required, but it is missing."
    if kind == "value_error":
        text = str(detail["ctx"]["error"]).rstrip(".")
        return f"{text}." if not where else f"{where}: {text}."
    if kind == "too_short":
        least, length = detail["ctx"]["min_length"], detail["ctx"]["actual_length"]
        return f"{where} must have at least {least} entries, but has {length}."
    rule = detail["msg"].removeprefix("Input should ").rstrip(".")
    rule = rule if rule.startswith("be") else rule[:1].lower() + rule[1:]
    return f"{where} must {rule}, but got {_shown(detail['input'])}."


def _shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _keys_at(path: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Spec
    nested: dict[str, type[BaseModel]] = {
        "checkpoints": CheckpointSpec,
        "references": CheckpointSpec,
        "search_space": SearchSpaceSpec,
        "objectives": ObjectiveSpec,
        "suites": SuiteSpec,
        "search": SearchSpec,
        "evaluation": EvaluationSpec,
        "workers": WorkersSpec,
    }
    for part in path:
        model = nested.get(str(part), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def _line(lines: dict[yaml_lines.Path, int], path: tuple[str | int, ...]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    twice = [n for i, n in enumerate(names) if n in names[:i]]
    if twice:
        raise ValueError(f"{what} must stand once ({', '.join(_TAKEN)} are taken), but {twice[0]!r} stands twice")


def _check_count(method: str, count: int) -> None:
    """Whether a method merges so many checkpoints."""
    least, most = CATALOGUE[method].least, CATALOGUE[method].most
    if count < least:
        raise ValueError(f"{method} merges at least {least} checkpoints, but there is {count}")
    if most is not None and count > most:
        others = {"slerp": "multislerp merges more", "wise_ft": "linear and task_arithmetic merge more"}[method]
        raise ValueError(f"{method} merges {'two' if most == 2 else 'one'}, but there are {count} ({others})")


def _check_della(parameters: Mapping[str, Range]) -> None:
    low, high = parameters.get("density", (PARAMETERS["density"].default,) * 2)
    epsilon = parameters.get("epsilon", (PARAMETERS["epsilon"].default,) * 2)[1]
    if low - epsilon <= 0 or high + epsilon > 1:
        raise ValueError(
            "della keeps elements with probabilities from density - epsilon to density + epsilon, which must lie in "
            f"(0, 1], but density is {low if low == high else [low, high]} and epsilon {epsilon} (set both)"
        )
