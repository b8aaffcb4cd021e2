"""What a study asks of vLLM that can be refused before it is started."""

from collections.abc import Iterator, Mapping

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from optimizer.spec import BASE, Spec
from storage.checkpoints import Checkpoint
from workers.prompts import to_requests
from workers.setup import Setup
from workers.transformers_engine import context_of
from workers.vllm_plan import INSTALL, is_installed, refusal
from workers.worker import pick_device


def engine_problems(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Why vLLM cannot run this study here, in words; nothing where the engine is another."""
    if spec.workers.engine != "vllm":
        return
    if not is_installed():
        yield f"workers.engine is vllm, but vLLM is not installed here: {INSTALL}."
    device = pick_device(spec.workers.device)
    reason = refusal(checkpoints[BASE].config, device=device)
    if reason:
        yield reason
    there, wanted = torch.cuda.device_count(), spec.workers.tensor_parallel
    if device == "cuda" and 0 < there < wanted:
        yield f"workers.tensor_parallel must not exceed the GPUs there are, but it is {wanted} and there are {there}."


def length_problems(spec: Spec, base: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Items that the model could read and ``workers.max_model_len`` keeps out. Those too long for the model itself are
    *unscored*, as with every engine.
    """
    most = spec.workers.max_model_len
    if most is None:
        return
    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=base.trust_remote_code)
    context = context_of(config)
    for key, item, length in _lengths(spec.setup(device="cpu"), tokenizer, context):
        if most < length <= context:
            yield (
                f"items must fit into workers.max_model_len, but item {item} of {key} needs {length} tokens and it is "
                f"{most} (the model itself can read {context})."
            )
            return


def _lengths(setup: Setup, tokenizer: PreTrainedTokenizerBase, context: int) -> Iterator[tuple[str, str, int]]:
    """Suite, item and tokens of the longest request of every item."""
    for suite in (suite for plan in setup.objectives for o in plan.load().values() for suite in o.suites):
        for item in suite.items:
            asked = [r for q in suite.scorer.ask(item) for r in to_requests(tokenizer, q, context)]
            yield suite.key, item.id, max((r.length for r in asked), default=0)
