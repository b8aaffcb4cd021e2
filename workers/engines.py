"""The engines there are, by name. Each is imported where it is used: a study needs one of them."""

from transformers import PreTrainedTokenizerBase

from workers.engine import Engine
from workers.setup import Setup


def load(setup: Setup, tokenizer: PreTrainedTokenizerBase, *, device: str) -> Engine:
    """The engine that a setup asks for, with the base's weights in it.

    Raises: InputError where a checkpoint does not open, or the engine does not start on this model or machine.
    """
    if setup.engine == "vllm":
        from workers.vllm_engine import VllmEngine

        return VllmEngine(setup, tokenizer, device=device)
    from workers.transformers_engine import MergingEngine

    return MergingEngine(setup.family, tokenizer, dtype=setup.dtype, device=device)
