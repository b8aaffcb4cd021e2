"""An engine whose memory runs out, in a process whose memory is really limited."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, resource, sys
from pathlib import Path
import psutil, torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from workers.engine import Request
from workers.transformers_engine import TransformersEngine

logging.basicConfig(stream=sys.stderr, format="%(message)s")
torch.set_num_threads(1)
directory = Path(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=int(sys.argv[4]), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)
LlamaForCausalLM(config).save_pretrained(directory)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
engine = TransformersEngine(directory, tokenizer, dtype="float32", device="cpu")
requests = tuple(Request(prompt=(1, i), continuation=tuple(range(3, 43))) for i in range(3, 3 + int(sys.argv[5])))
engine.loglikelihood(requests[:1])
free = [a.total for a in engine.loglikelihood(requests)]
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + int(sys.argv[3]), -1))
engine.forget(requests)
again = tuple(Request(prompt=r.prompt, continuation=r.continuation) for r in requests)
scarce = [a.total for a in engine.loglikelihood(again)]
assert torch.allclose(torch.tensor(free), torch.tensor(scarce), atol=1e-3), (free[:3], scarce[:3])
print("same")
"""


def ask(tmp_path: Path, models: Path, *, spare: int, vocabulary: int, rows: int) -> subprocess.CompletedProcess[str]:
    numbers = map(str, (spare, vocabulary, rows))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "wide"), str(models / "base"), *numbers]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_batches_are_halved_until_they_fit_and_the_answers_stay(tmp_path: Path, models: Path) -> None:
    ended = ask(tmp_path, models, spare=150 * 2**20, vocabulary=40_000, rows=100)
    assert ended.stdout == "same\n", ended.stderr
    assert "memory ran out: batches have at most 2048 tokens from now on" in ended.stderr


def test_where_the_smallest_batch_does_not_fit_the_error_is_told(tmp_path: Path, models: Path) -> None:
    ended = ask(tmp_path, models, spare=2**20, vocabulary=250_000, rows=4)
    assert ended.returncode == 1
    assert "batches have at most 64 tokens from now on" in ended.stderr
    assert "can't allocate memory" in ended.stderr
