"""A family of Llamas of random weights, as large as a benchmark likes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "tiny": (64, 128, 2, 2),
    "10M": (256, 1024, 8, 4),
    "0.1B": (768, 2048, 8, 12),
    "0.4B": (1024, 4096, 24, 16),
}
"""Hidden width, inner width, layers, heads."""


def write_random_llamas(directory: Path, names: Iterable[str], size: str, tokenizer: Any) -> None:
    """Write a bfloat16 model below ``directory`` for each name, each a little longer than the one before."""
    hidden, inner, layers, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    for name in names:
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(1.01)
