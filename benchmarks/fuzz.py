"""Fuzzing of the three parsers: study files, suite lines, safetensors headers with their index and adapter configs.

    pip install --group fuzz
    python -m benchmarks.fuzz [--seconds 600] [--target study|suite|weights] [--findings DIR]

Coverage-guided (atheris, which is libFuzzer for Python), from valid seeds that are edited with words of the format.
Every input is written to a file and read by the functions that read a user's. Right is: it is accepted, or refused
with an InputError. Whatever else it raises counts as *other*: the input is kept below ``--findings``, and the exit
code is 1.
"""

import argparse
import json
import mmap
import random
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InputError

_INSTRUMENTED = ("storage", "optimizer.spec", "optimizer.yaml_lines", "workers.suites")
_LARGEST = 4096
_MEMORY = 4096
_HANG = 30
ACCEPTED, REFUSED, OTHER = range(3)

Feed = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser: ``make`` prepares a directory and returns what reads one input; ``words`` are pieces of the format."""

    seeds: Sequence[bytes]
    words: Sequence[str]
    make: Callable[[Path], Feed]


def study(directory: Path) -> Feed:
    """Study files, beside a suite that they may name."""
    from optimizer.spec import from_document, load_spec

    (directory / "a.jsonl").write_bytes(SUITE)
    (directory / "p.json").write_text('{"en": ["no"]}')
    path = directory / "study.yaml"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        spec = load_spec(path)
        json.dumps(spec.document(), allow_nan=False).encode()
        assert from_document(spec.document()).digest == spec.digest

    return feed


def suite(directory: Path) -> Feed:
    """Suite lines, then their splits."""
    from workers.suites import SuiteFiles, choose, read_items, read_splits

    path = directory / "a.jsonl"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        assert len(choose(read_items(path), 2)) <= 2
        read_splits(SuiteFiles(path=path))

    return feed


def weights(directory: Path) -> Feed:
    """By the first byte: a whole safetensors file, a header before 64 bytes of data, an index, an adapter's config."""
    from storage.adapters import apply_adapter
    from storage.checkpoints import Checkpoint, Source
    from storage.tensor_files import open_tensors

    model, adapter, loose = (directory / name for name in ("model", "adapter", "x.safetensors"))
    for path in (model, adapter):
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "llama"}')
    (model / "a.safetensors").write_bytes(_file(HEADER))
    (adapter / "adapter_model.safetensors").write_bytes(_file(ADAPTER))

    def feed(data: bytes) -> None:
        kind, body = data[:1], data[1:]
        if kind in (b"f", b"h"):
            loose.write_bytes(body if kind == b"f" else _file(body))
            for tensor in open_tensors(loose).values():
                tensor.tolist()
        elif kind == b"i":
            (model / "model.safetensors.index.json").write_bytes(body)
            assert Checkpoint(Source(name="x", model=str(model))).fingerprint
        else:
            (adapter / "adapter_config.json").write_bytes(body)
            apply_adapter(open_tensors(model / "a.safetensors"), adapter)

    return feed


def _file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(64)


STUDY = b"""study: tiny
base: org/base
checkpoints:
  - {name: alpha, model: org/alpha, examples: 100}
  - {name: beta, model: org/beta@main, adapter: org/lora}
references:
  - {name: mix, model: org/mix}
search_space: {method: [linear, ties], groups: depth:3, scale: [0.0, 1.2], density: [0.3, 1.0], lambda: 1.0}
objectives:
  - name: safety
    suites: [{path: a.jsonl, scorer: refusal, phrases: p.json, max_new_tokens: 8, validation: a.jsonl}]
    across_languages: {en: 1.0, de: 0.5}
    at_least: 0.9
  - name: general
    suites: [{path: a.jsonl, scorer: exact_match, teacher_forced: true}]
    role: watch
search: {trials: 60, sampler: auto, seed: 0, parallel: 2, evaluation: {items: 200, racing: false}}
workers: {engine: transformers, device: cpu, count: 1, tensor_parallel: 1, dtype: float32}
"""
SMALL = b"""study: s
base: a/b
checkpoints: [{name: a, model: a/b}, {name: b, model: a/b}]
objectives: [{name: o, suites: [{path: a.jsonl, scorer: gold_nll}]}]
"""
SUITE = b"".join(
    json.dumps(
        {"id": str(i), "lang": "en", "prompt": f"w{i}", "choices": ["a", "b"], "gold": 1, "group": f"{i}"}
    ).encode()
    + b"\n"
    for i in (1, 3, 14, 16, 2, 5)  # two of each split
)
CHAT = (
    b'{"id": "1", "lang": "de", "prompt": [{"role": "user", "content": "\\u00e9"}], "target": "t", "meta": {"k": 1.5}}'
    b'\n\n{"id": "2", "lang": "aa", "prompt": "p", "label": "harmful"}\n'
)
HEADER = (
    b'{"__metadata__":{"format":"pt"},"m.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},'
    b'"b":{"dtype":"BF16","shape":[16],"data_offsets":[32,64]}}'
)
ADAPTER = (
    b'{"base_model.model.m.lora_A.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},'
    b'"base_model.model.m.lora_B.weight":{"dtype":"F64","shape":[2,2],"data_offsets":[32,64]}}'
)
INDEX = b'{"metadata":{"total_size":64},"weight_map":{"m.weight":"a.safetensors","b":"a.safetensors"}}'
CONFIG = b'{"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":{"m":4},"use_rslora":true,"bias":"none"}'

JSON_WORDS = (
    '{"',
    '":',
    "[",
    "]",
    "{",
    "}",
    ",",
    "null",
    "true",
    "NaN",
    "Infinity",
    "-1",
    "1e999",
    "\\ud800",
    "\\u0000",
)
TARGETS = {
    "study": Target(
        seeds=[STUDY, SMALL, b"study: x\nbase: 1\n"],
        words=(
            *("&a ", "*a", "!!", "<<: ", "? ", "- ", "---", "%TAG", "'", '"', "|", ".nan", ".inf", "0x", "~", "/", "@"),
            *("depth:", "layers:", "modules", "della", "slerp", "min", "softmin", "at_most", "exact_match", "gold_nll"),
        ),
        make=study,
    ),
    "suite": Target(seeds=[SUITE, CHAT], words=(*JSON_WORDS, "id", "prompt", "choices", "gold", "group"), make=suite),
    "weights": Target(
        seeds=[b"f" + _file(HEADER), b"h" + HEADER, b"h" + ADAPTER, b"i" + INDEX, b"a" + CONFIG],
        words=(*JSON_WORDS, "dtype", "shape", "data_offsets", "F64", "BOOL", "../", "alpha_pattern", "(.*)*", ".bin"),
        make=weights,
    ),
}


def outcome(feed: Feed, data: bytes) -> int:
    """Whether an input is accepted or refused; any other exception goes on."""
    try:
        feed(data)
    except InputError:
        return REFUSED
    return ACCEPTED


def main() -> int:
    """Fuzz each parser in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=600, help="for each parser")
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="default: all three")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.target[0], options.inside, options.seconds, options.findings)
        return 0
    print("| parser | seconds | inputs tried | accepted | refused | other |\n|---|---|---|---|---|---|")
    others = 0
    for name in options.target or TARGETS:
        accepted, refused, other = run(name, options.seconds, options.findings)
        print(f"| {name} | {options.seconds} | {accepted + refused + other:,} | {accepted:,} | {refused:,} | {other} |")
        others += other
    return 1 if others else 0


def run(name: str, seconds: int, findings: Path) -> tuple[int, int, int]:
    """Fuzz one parser in a child process; how many inputs were accepted, refused, and neither."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        counts = Path(directory) / "counts"
        counts.write_bytes(bytes(24))
        arguments = ["--inside", directory, "--target", name, "--seconds", str(seconds), "--findings", str(findings)]
        child = subprocess.run([sys.executable, "-m", "benchmarks.fuzz", *arguments], stderr=subprocess.PIPE, text=True)
        accepted, refused, other = struct.unpack("3Q", counts.read_bytes())
        if child.returncode:  # it hung, took too much memory, or broke the interpreter
            print(child.stderr[-3000:], file=sys.stderr)
            other += 1
    return accepted, refused, other


def fuzz(name: str, directory: Path, seconds: int, findings: Path) -> None:
    """Give inputs to one parser until the time is over, and count what came of them."""
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        feed = target.make(_empty(directory / "files"))
    with (directory / "counts").open("r+b") as file:
        counts = memoryview(mmap.mmap(file.fileno(), 24)).cast("Q")
    corpus = _empty(directory / "corpus")
    for i, seed in enumerate(target.seeds):
        (corpus / f"seed-{i}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            result = outcome(feed, data)
        except Exception:  # noqa: BLE001 (whatever a parser lets out is what is looked for)
            result = OTHER
            keep(findings, name, data)
        counts[result] += 1

    options = [f"-max_total_time={seconds}", f"-max_len={_LARGEST}", f"-timeout={_HANG}"]
    options += ["-mutate_depth=1", f"-rss_limit_mb={_MEMORY}", f"-artifact_prefix={_empty(findings)}/{name}-"]

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        return atheris.Mutate(data, most) if draw.random() < 0.3 else edited(data, target.words, draw)[:most]

    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def edited(data: bytes, words: Sequence[str], draw: random.Random) -> bytes:
    """The input after one or two edits: up to twelve bytes cut out, and a word, a character or nothing put in."""
    for _ in range(draw.randint(1, 2)):
        start = draw.randint(0, len(data))
        piece = draw.choice(
            [draw.choice(words).encode(), bytes([draw.randint(32, 126)]), b"", b"\n", data[start:][:40]]
        )
        data = data[:start] + piece + data[start + draw.choice([0, 0, 1, 1, 4, 12]) :]
    return data


def keep(findings: Path, name: str, data: bytes) -> None:
    """Keep an input and the traceback of the exception that is being handled."""
    stem = _empty(findings) / f"{name}-{abs(hash(traceback.format_exc())):x}"
    stem.with_suffix(".input").write_bytes(data)
    stem.with_suffix(".txt").write_text(traceback.format_exc())


def _empty(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


if __name__ == "__main__":
    sys.exit(main())
