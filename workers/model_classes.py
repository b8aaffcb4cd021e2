"""Which class of transformers drives a checkpoint: one that answers a text prompt with text."""

from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

from search_spaces.errors import InputError

_CAUSAL = frozenset(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_SEEING = frozenset(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())


def auto_class(config: Any) -> Any:
    """AutoModelForCausalLM, or AutoModelForImageTextToText where the config names a class of that kind.

    The config's own word counts: many a vision-language config would also load as its text part alone, and an export
    would lose the rest. Raises InputError where it names a class of transformers that answers no prompt.
    """
    name = (config.architectures or [""])[0]
    if name in _CAUSAL:
        return AutoModelForCausalLM
    if name in _SEEING:
        return AutoModelForImageTextToText
    if name and hasattr(transformers, name):
        raise InputError(f"the base must be a model that answers prompts with text, but it is a {name}.")
    return AutoModelForCausalLM
