"""The vLLM engine: started once a worker, its weights swapped in place by merges made inside its own processes.

The only file that imports vLLM. What it works around, each with a test that fails without it:

- Nothing resets the prefix cache after a swap: it would answer out of the old model.
- A tied head on a CPU keeps its packed copy, and NaN of a broken merge stays in the key-value cache; see
  :mod:`workers.vllm_swap`.
- A swap that breaks on its way leaves weights that are neither model's: recipes are checked before it, and whatever
  breaks it ends the engine.
- Within Ray, vLLM would spread itself over Ray; an engine's processes are children of its worker instead.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from time import perf_counter
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from search_spaces.errors import InputError
from search_spaces.recipe import Recipe, digest_of
from storage.checkpoints import Checkpoint
from storage.errors import CheckpointError
from workers.endings import Endings
from workers.engine import Facts, Request
from workers.errors import EngineDied, EngineError, MergeError, TrialError
from workers.questions import Generated, LogLikelihood
from workers.setup import Setup
from workers.transformers_engine import context_of, empty_weights
from workers.vllm_plan import INSTALL, Cache, Needs, is_installed, plan_gpu, refusal

_ENVIRONMENT: Final = {
    # The scheduler runs in the worker's own process: whatever ends the worker ends it, and nothing is left behind.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # One token more than the model can attend to: the last one is written and never read.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_DEFAULTS: Final = {
    # Several workers share a machine: each binding its threads to the first cores would leave the others idle.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_FAULTS = (
    *(RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError, ImportError, OSError),
    *(MemoryError, TimeoutError, TrialError),
)
"""What breaks in vLLM: its own errors, torch's, those of its processes, and ours in the middle of a swap."""

_Answer = TypeVar("_Answer")


class VllmEngine:
    """One vLLM engine for the worker's whole life.

    Args:
        setup: base, checkpoints, type of the weights and the engine's size. device: ``cpu`` or ``cuda``.
        tokenizer: the base's.
    Raises: InputError where vLLM is not there, does not take the model, or has too little memory; see also ``load``.
    """

    exact = False
    """Which prompts run together depends on vLLM's scheduler, and last bits depend on which do."""

    def __init__(self, setup: Setup, tokenizer: PreTrainedTokenizerBase, *, device: str) -> None:
        started = perf_counter()
        root = setup.family.root
        base = Checkpoint(root)
        # Before vLLM is imported: it exchanges parts of some of transformers' model classes.
        like = empty_weights(base.path, setup.dtype, trust_remote_code=root.trust_remote_code)
        config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=root.trust_remote_code)
        _require_known(base, device)
        self.context = min(setup.max_model_len or context_of(config), context_of(config))
        memory, resident = _memory(setup, config, like, device)
        self._endings = Endings.of(_generation_config(base, config), tokenizer)
        arguments = {
            "dtype": setup.dtype,
            "max_model_len": self.context + 1,
            "tensor_parallel_size": setup.tensor_parallel,
            "distributed_executor_backend": "uni" if setup.tensor_parallel == 1 else "mp",
            "enforce_eager": device == "cpu",
            "trust_remote_code": root.trust_remote_code,
            **memory,
        }
        self._llm = _start(str(base.path), arguments, device)
        self._clean = True
        self._open(setup, like, resident)
        self.forward_seconds = 0.0
        self.facts = Facts(engine="vllm", version=_version(), seconds=perf_counter() - started, arguments=arguments)

    def swap(self, recipe: Recipe) -> str:
        """See :class:`workers.engine.Engine`."""
        found = self._call("mergefront_plan", recipe)
        for fault in (fault for fault, _ in found if fault):
            raise MergeError(fault)
        plans = {name: todo for _, owned in found for name, todo in owned.items()}
        digests = self._call("mergefront_swap", plans, not self._clean)
        self._clean = True
        if not _guarded(self._llm.reset_prefix_cache):
            raise EngineDied("vLLM must drop its prefix cache after a swap, but it did not.")
        for changed in filter(None, self._call("mergefront_changed")):
            raise CheckpointError(changed)
        return digest_of({name: digest for owned in digests for name, digest in owned.items()})

    def loglikelihood(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood]:
        """One prefill a request, all of them in one queue.

        All but the last token of a continuation are read as part of the prompt; the last one is the only token that
        may be written, and its probability is the model's own all the same. So no more is read than must be, and
        what requests share with others is read once where nothing else of it is asked for.
        """
        ending = self._endings.first
        outputs = self._ask([(r.fed(ending), _scoring(r.wanted(ending))) for r in requests])
        found = [_Scored.of(r, r.wanted(ending), output) for r, output in zip(requests, outputs, strict=True)]
        _require_spread(requests, [s.top for s in found])
        self._clean = True
        return [self._scored(r, s) for r, s in zip(requests, found, strict=True)]

    def generate(self, requests: tuple[Request, ...]) -> Sequence[Generated]:
        """Greedy decoding, all requests in one queue."""
        outputs = self._ask([(list(r.prompt), self._writing(r)) for r in requests])
        written = [output.outputs[0] for output in outputs]
        logs = [
            [_finite(step[token].logprob) for token, step in zip(w.token_ids, w.logprobs, strict=True)] for w in written
        ]
        _require_spread(requests, [steps[0] for steps in logs])
        self._clean = True
        return [
            self._endings.generated(list(w.token_ids), steps, r.stop)
            for r, w, steps in zip(requests, written, logs, strict=True)
        ]

    def _scored(self, request: Request, scored: "_Scored") -> LogLikelihood:
        *before, last = scored.best
        wanted = request.wanted(self._endings.first)
        right = last in self._endings.tokens if request.ends else last == wanted[-1]
        greedy = right and before == wanted[:-1]
        return LogLikelihood(total=sum(scored.logs), tokens=len(wanted), greedy=greedy)

    def _writing(self, request: Request) -> Any:
        return _sampling(
            max_tokens=request.max_new_tokens,
            logprobs=0,
            stop=list(request.stop),
            detokenize=bool(request.stop),
            # Ours are the ends: vLLM's own would be those of another reading of the generation config.
            ignore_eos=True,
            stop_token_ids=sorted(self._endings.tokens),
        )

    def _ask(self, asked: Sequence[tuple[list[int], Any]]) -> Sequence[Any]:
        """The outputs in order. Until they have been looked at, the cache may hold what is not finite."""
        prompts = [{"prompt_token_ids": tokens} for tokens, _ in asked]
        self._clean = False
        with self._timed():
            return _guarded(lambda: self._llm.generate(prompts, [s for _, s in asked], use_tqdm=False))

    def _open(self, setup: Setup, like: Mapping[str, Tensor], resident: int) -> None:
        forms = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in like.items()}
        faults = [f for f in self._call("mergefront_open", setup.family, forms, resident) if f]
        if faults:
            raise InputError(faults[0])

    def _call(self, method: str, *args: object) -> list[Any]:
        """What each of the engine's processes answers."""
        return _guarded(lambda: self._llm.collective_rpc(method, args=args))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = perf_counter()
        yield
        self.forward_seconds += perf_counter() - started


class _Scored:
    """What vLLM says about one continuation: each token's log-probability, the likeliest token in its place,
    and the first of these tokens' log-probability."""

    def __init__(self, logs: list[float], best: list[int], top: float) -> None:
        self.logs, self.best, self.top = logs, best, top

    @classmethod
    def of(cls, request: Request, wanted: Sequence[int], output: Any) -> "_Scored":
        """Raises EngineError where a log-probability is not finite."""
        read = (output.prompt_logprobs or [])[len(request.prompt) :] if len(wanted) > 1 else []
        places = [*read, output.outputs[0].logprobs[0]]
        logs = [_finite(place[token].logprob) for place, token in zip(places, wanted, strict=True)]
        best = [_likeliest(place) for place in places]
        return cls(logs, best, _finite(places[0][best[0]].logprob))


def _likeliest(place: Mapping[int, Any]) -> int:
    """Of several equals the first, as argmax has it."""
    return max(place, key=lambda token: (place[token].logprob, -token))


def _scoring(wanted: Sequence[int]) -> Any:
    return _sampling(
        max_tokens=1,
        logprobs=1,
        allowed_token_ids=[wanted[-1]],
        prompt_logprobs=1 if len(wanted) > 1 else None,
        detokenize=False,
        ignore_eos=True,
    )


def _sampling(**options: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, **options)


def _finite(value: float) -> float:
    if not isfinite(value):
        raise EngineError("logits must be finite, but the merge gives NaN or infinity.")
    return value


def _require_spread(requests: Sequence[Request], tops: Sequence[float]) -> None:
    """Raises EngineError where the likeliest token is equally likely after different prompts. A probability that rounds
    to 1 says nothing: that sure may a model be of several prompts.
    """
    if len(set(tops)) == 1 and tops[0] < 0.0 and len({r.prompt for r in requests}) > 1:
        raise EngineError("logits must depend on the prompt, but the merge gives the same ones to every prompt.")


def _guarded(call: Callable[[], _Answer]) -> _Answer:
    """The call's answer. Whatever breaks in vLLM leaves requests in its queue, or half a model: it is not asked again.

    Raises: EngineDied.
    """
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        return call()
    except (*_FAULTS, EngineDeadError, EngineGenerateError) as e:
        raise EngineDied(f"vLLM broke: {_first_line(e)}") from e


def _require_known(base: Checkpoint, device: str) -> None:
    """Raises InputError where vLLM is missing or does not run such a model."""
    if not is_installed():
        raise InputError(f"workers.engine is vllm, but vLLM is not installed here: {INSTALL}.")
    os.environ.update(_ENVIRONMENT)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    reason = refusal(base.config, device=device)
    if reason:
        raise InputError(reason)
    from vllm import ModelRegistry

    if base.architecture not in ModelRegistry.get_supported_archs():
        raise InputError(f"vLLM must know the model, but vLLM {_version()} does not know {base.architecture}.")


def _memory(setup: Setup, config: Any, like: Mapping[str, Tensor], device: str) -> tuple[dict[str, Any], int]:
    """Arguments that share out the memory, and bytes of the checkpoints that each process has resident on its GPU."""
    cache = Cache.of(config, dtype=setup.dtype, processes=setup.tensor_parallel, longest=setup.max_model_len)
    if device == "cpu":
        return {"kv_cache_memory_bytes": cache.on_host}, 0
    if torch.cuda.device_count() < setup.tensor_parallel:
        raise InputError(
            f"workers.tensor_parallel must not exceed the GPUs there are, but it is {setup.tensor_parallel} and there "
            f"are {torch.cuda.device_count()}."
        )
    free, total = min(torch.cuda.mem_get_info(i) for i in range(setup.tensor_parallel))
    sources = {name: c.tensors for name, c in setup.family.opened().items()}
    needs = Needs.of(like, cache, sources=sources, processes=setup.tensor_parallel)
    plan = plan_gpu(needs, total=total, free=free)
    return {"gpu_memory_utilization": plan.utilization}, plan.resident


def _start(model: str, arguments: Mapping[str, Any], device: str) -> Any:
    """vLLM itself; raises InputError in one line where it does not start."""
    from vllm import LLM
    from vllm.platforms import current_platform

    if device == "cpu":
        # The one kernel that vLLM compiles to rank log-probabilities would keep a compiler busy for half a minute.
        current_platform.simple_compile_backend = "eager"
    try:
        return LLM(
            model,
            worker_extension_cls="workers.vllm_swap.Swap",
            generation_config="vllm",
            seed=0,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **arguments,
        )
    except _FAULTS as e:
        raise InputError(f"vLLM must start on the base, but: {_first_line(e)}") from e


def _generation_config(base: Checkpoint, config: Any) -> Any:
    """As transformers reads it: its file, else what the config says."""
    if (base.path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(base.path, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def _version() -> str:
    import vllm

    return str(vllm.__version__)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
