"""The study file: parsed strictly, every refusal with the rule, the values and the line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from optimizer import yaml_lines
from search_spaces.errors import InputError
from search_spaces.groups import Groups
from search_spaces.methods import CATALOGUE, METHODS, PARAMETERS, SIMPLEX_METHODS, takers
from search_spaces.recipe import digest_of
from search_spaces.space import Range, Space
from storage.checkpoints import Source
from workers.scorers import make_scorer, read_phrases
from workers.setup import ObjectivePlan, Setup, SuitePlan
from workers.suites import SuiteFiles

BASE = "base"
UNIFORM = "uniform"
MODEL_STOCK = "model_stock"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Name = Annotated[str, Field(pattern=_NAME)]
Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    """Unknown keys are refused and nothing is changed after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
    """A file of items, its scorer, and what that scorer takes."""

    path: Text
    scorer: Text
    validation: Text | None = None
    report: Text | None = None
    max_new_tokens: Annotated[int, Field(gt=0, le=32768)] | None = None
    phrases: Text | None = None
    normalise: Text | None = None
    teacher_forced: bool | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the scorer is made with."""
        given = {
            "max_new_tokens": self.max_new_tokens,
            "normalise": self.normalise,
            "teacher_forced": self.teacher_forced,
            "phrases": None if self.phrases is None else read_phrases(Path(self.phrases)),
        }
        return {name: value for name, value in given.items() if value is not None}


class ObjectiveSpec(_Strict):
    """One number to optimise or to watch."""

    name: Name
    suites: Annotated[list[SuiteSpec], Field(min_length=1)]
    across_languages: Literal["mean", "min", "softmin"] | dict[str, Annotated[float, Field(ge=0)]] = "mean"
    at_least: float | None = None
    at_most: float | None = None
    role: Literal["optimise", "watch"] = "optimise"

    @property
    def maximise(self) -> bool:
        """Whether more is better: its scorers say."""
        return make_scorer(self.suites[0].scorer, {}).maximise

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where its values lie, None where they have no bounds."""
        return make_scorer(self.suites[0].scorer, {}).bounds

    @model_validator(mode="after")
    def _one_direction(self) -> "ObjectiveSpec":
        kinds = {(s.maximise, s.bounds) for suite in self.suites for s in [make_scorer(suite.scorer, {})]}
        if len(kinds) > 1:
            names = ", ".join(suite.scorer for suite in self.suites)
            raise ValueError(f"the scorers of one objective must share direction and range, but got {names}")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least must not exceed at_most, but got {self.at_least} and {self.at_most}")
        return self

    def violations(self, mean: float) -> dict[str, float]:
        """One number a constraint, at most 0 where the constraint holds."""
        found = {}
        if self.at_least is not None:
            found[f"{self.name} at_least {self.at_least}"] = self.at_least - mean
        if self.at_most is not None:
            found[f"{self.name} at_most {self.at_most}"] = mean - self.at_most
        return found


class EvaluationSpec(_Strict):
    """How much of the search split each trial answers."""

    items: Annotated[int, Field(gt=1)] | None = None
    racing: bool = False


class SearchSpec(_Strict):
    """How long, with which sampler, and from where the search starts."""

    trials: Annotated[int, Field(gt=0)] = 60
    sampler: Text = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    parallel: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    evaluation: EvaluationSpec = EvaluationSpec()
    start_from: list[dict[str, Annotated[float, Field(ge=0)]]] = []


class WorkersSpec(_Strict):
    """What the workers run on."""

    engine: Literal["transformers"] = "transformers"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = "auto"
    count: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    tensor_parallel: Literal[1] = 1
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


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
        _refuse_twice("a checkpoint's or reference's name", [BASE, UNIFORM, MODEL_STOCK, *names])
        _refuse_twice("an objective's name", [o.name for o in self.objectives])
        if not self.optimised:
            raise ValueError("at least one objective must have role: optimise, but all are watched")
        for method in self.search_space.methods:
            _check_count(method, len(self.checkpoints))
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
        return (Source(name=BASE, model=self.base), *merged, *(c.source for c in self.references))

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
                key=f"{objective.name}/{i}:{Path(suite.path).name}",
                files=SuiteFiles(
                    path=Path(suite.path),
                    validation=None if suite.validation is None else Path(suite.validation),
                    report=None if suite.report is None else Path(suite.report),
                ),
                scorer=suite.scorer,
                options=suite.options,
                items=self.search.evaluation.items,
            )
            for i, suite in enumerate(objective.suites)
        )
        across = objective.across_languages
        return ObjectivePlan(name=objective.name, suites=suites, across=across, watched=objective.role == "watch")


def load_spec(path: Path) -> Spec:
    """Read a study file. Raises InputError naming the file, the line, the rule and the values."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"a study file must be a text file that opens, but {path} is not: {e}.") from e
    document, lines = yaml_lines.load(text, str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path}: a study file must be a mapping, but got {type(document).__name__}.")
    resolved = _resolve(document, path.parent.absolute())
    try:
        spec = Spec.model_validate(resolved)
    except ValidationError as e:
        raise InputError("\n".join(_explain(e, lines, str(path)))) from e
    _check_files(spec, lines, str(path))
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
                    lambda s: _paths(s, ("path", "validation", "report", "phrases"), root, _file),
                )
            }
        ),
    )
    return {key: value for key, value in found.items() if value is not _ABSENT}


_ABSENT: Any = object()


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


def _model(text: str, root: Path) -> str:
    """A directory beside the study file, or a hub id as it is."""
    path = Path(text).expanduser()
    here = root / path
    looks_like_a_path = path.is_absolute() or text.startswith((".", "~")) or text.partition("@")[0].count("/") != 1
    return str(here) if here.is_dir() or looks_like_a_path else text


def _file(text: str, root: Path) -> str:
    return str(root / Path(text).expanduser())


def _check_files(spec: Spec, lines: dict[yaml_lines.Path, int], name: str) -> None:
    for i, objective in enumerate(spec.objectives):
        for j, suite in enumerate(objective.suites):
            make = ("objectives", i, "suites", j)
            for key in ("path", "validation", "report", "phrases"):
                value = getattr(suite, key)
                if value is not None and not Path(value).is_file():
                    line = _line(lines, (*make, key))
                    raise InputError(f"{name}, line {line}: {key} must be a file, but there is no {value}.")
            try:
                make_scorer(suite.scorer, suite.options)
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
    return (
        f"{where} must {rule if rule.startswith('be') else rule[:1].lower() + rule[1:]}, but got {detail['input']!r}."
    )


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
        taken = f"{BASE}, {UNIFORM} and {MODEL_STOCK} are taken"
        raise ValueError(f"{what} must stand once ({taken}), but {twice[0]!r} stands twice")


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
