"""Trains one tiny Llama on examples of the toy world and saves it like any other checkpoint.

Runs in child processes of `family`, which keeps torch out of the parent until the work begins.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from optimizer.demo import language
from optimizer.demo.runs import Run

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} <end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
IGNORED = -100
REPORT_EVERY = 5


def train(run: Run, models_directory: Path, seed: int, report: Callable[[int], None]) -> None:
    """Train `run` and save it as `models_directory/<run.name>`; `report` gets the steps done since its last call."""
    logging.disable_progress_bar()
    # More threads than free cores cost far more than they bring at this size.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(f"{run.name} {seed}")
    tokenizer = make_tokenizer()
    model = _load(models_directory / run.start) if run.start else LlamaForCausalLM(_config(tokenizer, run.heads))
    batches = _batches(run, rng)
    _fit(model, batches, run, report)
    save(model, tokenizer, models_directory / run.name)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the three languages, with the chat template that the checkpoints are trained on."""
    words = Tokenizer(models.WordLevel(language.vocabulary(), unk_token=language.UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=language.UNKNOWN,
        pad_token=language.PAD,
        eos_token=language.END,
        additional_special_tokens=[language.USER, language.ASSISTANT],
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write an ordinary model directory: weights, configurations, tokenizer and chat template."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def encode(prompt: str, answer: str, ids: Mapping[str, int]) -> tuple[list[int], int]:
    """Token ids of a chat with its answer, and where the answer starts; the same ids as the chat template gives."""
    question = [language.USER, *prompt.split(), language.ASSISTANT]
    words = [*question, *answer.split(), language.END]
    return [ids[word] for word in words], len(question)


def _config(tokenizer: PreTrainedTokenizerFast, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        # The usual 0.02 is for wide models: at this width, training stands still for hundreds of steps.
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def _load(directory: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _batches(run: Run, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (ids, labels), each ``(batch, length)`` int64; labels are IGNORED outside the answers."""
    ids = language.vocabulary()
    tasks, weights = list(run.tasks), list(run.tasks.values())
    for _ in range(run.steps):
        drawn = rng.choices(tasks, weights, k=run.batch)
        chats = [encode(*language.draw_example(task, rng.choice(run.languages), rng), ids) for task in drawn]
        yield _pad(chats, ids[language.PAD])


def _pad(chats: Sequence[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    # Padding on the right needs no attention mask: no real position can see it.
    length = max(len(chat) for chat, _ in chats)
    ids = [chat + [pad] * (length - len(chat)) for chat, _ in chats]
    labels = [[IGNORED] * start + chat[start:] + [IGNORED] * (length - len(chat)) for chat, start in chats]
    return torch.tensor(ids), torch.tensor(labels)


def _fit(
    model: LlamaForCausalLM, batches: Iterator[tuple[Tensor, Tensor]], run: Run, report: Callable[[int], None]
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    warm = max(1, run.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.02 + 0.98 * (1 - step / run.steps))
    )
    model.train()
    waiting = 0
    for ids, labels in batches:
        loss = _loss(model, ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        waiting += 1
        if waiting == REPORT_EVERY:
            report(waiting)
            waiting = 0
    report(waiting)
    model.eval()


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the answers' tokens; logits are made for these positions only."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    asked = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[asked]), targets[asked])
