"""Trains one tiny Llama on examples of a toy world and saves it like any other checkpoint.

Runs in child processes, which keeps torch out of the parent until the work begins (see `side_by_side`).
"""

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from optimizer.demo import language
from optimizer.demo.language import World
from optimizer.demo.runs import Run

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} <end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
RECORD = "training.json"
ITEMS = 400
IGNORED = -100
REPORT_EVERY = 5
Drawn = TypeVar("Drawn")


def train(run: Run, *, start: Path | None, out: Path, seed: int, report: Callable[[int], None]) -> None:
    """Train `run` from the checkpoint in `start` and save it as `out`, with what came of it in `RECORD`.

    `report` gets the steps done since its last call.
    """
    logging.disable_progress_bar()
    # More threads than free cores cost far more than they bring at this size.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(f"{run.name} {seed}")
    tokenizer = make_tokenizer(run.world)
    model = LlamaForCausalLM(_config(tokenizer, run.heads)) if start is None else load(start)
    before = solved(model, run, seed)
    _fit(model, _losses(model, run, rng), run, report)
    save(model, tokenizer, out)
    record = {"before": before, "after": solved(model, run, seed), "items": ITEMS, "steps": run.steps}
    (out / RECORD).write_text(json.dumps(record), encoding="utf-8")


def solved(model: LlamaForCausalLM, run: Run, seed: int) -> float:
    """The share of fresh examples of what `run` trains on to which the model's likeliest answer is wholly right."""
    rng = random.Random(f"{run.name} {seed} solved")
    tasks, weights = list(run.tasks), list(run.tasks.values())
    ids = run.world.vocabulary()
    chats = [
        encode(*run.world.draw_example(task, rng.choice(run.languages), rng, "validation"), ids)
        for task in rng.choices(tasks, weights, k=ITEMS)
    ]
    tokens, labels = _pad(chats, ids[language.PAD])
    with torch.inference_mode():
        likeliest = model(input_ids=tokens[:, :-1]).logits.argmax(-1)
    right = (likeliest == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
    return float(right.all(-1).double().mean())


def make_tokenizer(world: World = language.DEMO) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of a world's languages, with the chat template that the checkpoints are trained on."""
    words = Tokenizer(models.WordLevel(world.vocabulary(), unk_token=language.UNKNOWN))
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


def load(directory: Path) -> LlamaForCausalLM:
    """The checkpoint in a directory, in float32."""
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _losses(model: LlamaForCausalLM, run: Run, rng: random.Random) -> Iterator[Tensor]:
    """The loss of each of the run's batches, by the model as it is then."""
    if run.beta is not None:
        yield from _preference_losses(model, run, run.beta, rng)
        return
    ids = run.world.vocabulary()
    for batch in _batches(run, rng, run.world.draw_example):
        yield _loss(model, *_pad([encode(*example, ids) for example in batch], ids[language.PAD]))


def _preference_losses(model: LlamaForCausalLM, run: Run, beta: float, rng: random.Random) -> Iterator[Tensor]:
    """Direct preference optimisation: preferred answers shall gain more on the start's likelihoods than others do."""
    ids = run.world.vocabulary()
    before = copy.deepcopy(model).eval()
    for batch in _batches(run, rng, run.world.draw_pair):
        preferred = [encode(prompt, good, ids) for prompt, good, _ in batch]
        avoided = [encode(prompt, bad, ids) for prompt, _, bad in batch]
        tokens, labels = _pad(preferred + avoided, ids[language.PAD])
        with torch.no_grad():
            known = _likelihoods(before, tokens, labels)
        good, bad = (_likelihoods(model, tokens, labels) - known).chunk(2)
        yield -torch.nn.functional.logsigmoid(beta * (good - bad)).mean()


def _batches(run: Run, rng: random.Random, draw: Callable[[str, str, random.Random], Drawn]) -> Iterator[list[Drawn]]:
    """One list of `run.batch` examples a step; where data is limited, all of it is seen before any is seen again."""
    tasks, weights = list(run.tasks), list(run.tasks.values())

    def some(count: int) -> list[Drawn]:
        return [draw(task, rng.choice(run.languages), rng) for task in rng.choices(tasks, weights, k=count)]

    if run.data is None:
        for _ in range(run.steps):
            yield some(run.batch)
    else:
        again = _shuffled_for_ever(some(run.data), rng)
        for _ in range(run.steps):
            yield list(islice(again, run.batch))


def _shuffled_for_ever(examples: Sequence[Drawn], rng: random.Random) -> Iterator[Drawn]:
    while True:
        yield from rng.sample(examples, len(examples))


def _pad(chats: Sequence[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    # Padding on the right needs no attention mask: no real position can see it.
    length = max(len(chat) for chat, _ in chats)
    ids = [chat + [pad] * (length - len(chat)) for chat, _ in chats]
    labels = [[IGNORED] * start + chat[start:] + [IGNORED] * (length - len(chat)) for chat, start in chats]
    return torch.tensor(ids), torch.tensor(labels)


def _fit(model: LlamaForCausalLM, losses: Iterator[Tensor], run: Run, report: Callable[[int], None]) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    warm = max(1, run.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.02 + 0.98 * (1 - step / run.steps))
    )
    model.train()
    waiting = 0
    for loss in losses:
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


def _likelihoods(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of each chat's answer, ``(batch,)``."""
    logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets = labels[:, 1:]
    asked = targets != IGNORED
    of_token = logits.log_softmax(-1).gather(-1, targets.where(asked, 0).unsqueeze(-1)).squeeze(-1)
    likelihoods: Tensor = (of_token * asked).sum(-1)
    return likelihoods
