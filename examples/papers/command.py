"""``python -m examples.papers [PAPER ...] [--short] ...``: what ``make papers`` runs.

Everything is kept below DIR and is made once: checkpoints by content, studies trial by trial, what a training seed gave
as a whole. After a kill, the same command goes on.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import cast

import optuna

from examples.papers.kit.files import write
from examples.papers.kit.lab import Lab
from examples.papers.kit.models import Models, diverged, train
from examples.papers.kit.page import Replayed, write_page
from examples.papers.kit.paper import Found, Paper
from examples.papers.kit.sizes import FULL, SHORT, Size
from optimizer.demo.side_by_side import end_with_parent

KEYS = ("khalifa", "aakanksha", "morrison")
_HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, replay what is missing, write the page."""
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # more threads than free cores cost far more than they bring at this size
    size = SHORT if options.short else FULL
    wanted = [(key, seed) for seed in size.seeds for key in options.papers]
    jobs = [job for key, seed in wanted for job in Models(options.dir / "models", seed).jobs(paper(key).runs(size))]
    train(jobs, progress=_Steps(), processes=options.processes)
    if options.train:
        return
    found = _replay_all(wanted, size, options.dir, options.processes)
    replays = [
        Replayed(
            paper=paper(key),
            found=[found[key, seed] for seed in size.seeds],
            left_out=[reason for seed in size.seeds for reason in _left_out(key, seed, size, options.dir)],
        )
        for key in options.papers
    ]
    write_page(options.out or options.dir / "papers.md", replays, short=options.short)


def paper(key: str) -> Paper:
    """A paper by its folder's name."""
    return cast(Paper, import_module(f"examples.papers.{key}").PAPER)


def replay(key: str, seed: int, size: Size, directory: Path) -> Found:
    """What one training seed of one paper gives, measured once and kept."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    of, place = paper(key), directory / key / str(seed)
    paths = Models(directory / "models", seed).paths(of.runs(size))
    known, begun, digest = place / "found.json", place / "begun", _digest(key, paths, size)
    if not begun.exists() or begun.read_text(encoding="utf-8") != digest:
        # What an earlier replay left is of other checkpoints, items or studies.
        shutil.rmtree(place, ignore_errors=True)
        write(begun, digest)
    if not known.exists():
        print(f"{key}, seed {seed}: begins", file=sys.stderr, flush=True)
        found = of.replay(Lab(place, paths, seed=seed, size=size))
        write(known, json.dumps(found, indent=1))
    print(f"{key}, seed {seed}: done", file=sys.stderr, flush=True)
    return json.loads(known.read_text(encoding="utf-8"))


def _left_out(key: str, seed: int, size: Size, directory: Path) -> list[str]:
    """Why checkpoints of a seed are in no study."""
    paths = Models(directory / "models", seed).paths(paper(key).runs(size))
    return [f"seed {seed}: {reason}" for reason in diverged(paths).values()]


def _replay_all(
    wanted: Sequence[tuple[str, int]], size: Size, directory: Path, processes: int
) -> dict[tuple[str, int], Found]:
    """Every replay's find, by paper and seed."""
    if processes == 1:
        return {(key, seed): replay(key, seed, size, directory) for key, seed in wanted}
    context = multiprocessing.get_context("spawn")  # a fork would share torch's thread pool, and hang
    with ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) as pool:
        futures = {(key, seed): pool.submit(replay, key, seed, size, directory) for key, seed in wanted}
        try:
            return {job: future.result() for job, future in futures.items()}
        finally:
            # After a failure or an interrupt nobody waits for replays that have not begun.
            pool.shutdown(wait=False, cancel_futures=True)


def _digest(key: str, paths: Mapping[str, Path], size: Size) -> str:
    """Of what a find depends on: the paper's replay and study files, what it shares with others, checkpoints, size."""
    digest = hashlib.sha256(json.dumps([asdict(size), [path.name for path in paths.values()]]).encode())
    shared = [_HERE / "kit" / name for name in ("lab.py", "world.py")]
    for path in [*shared, _HERE / key / "replay.py", *sorted((_HERE / key).glob("*.yaml"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Steps:
    """Says how far the training is, every twentieth of the way."""

    def __init__(self) -> None:
        self._said = -1

    def __call__(self, done: int, total: int) -> None:
        if 20 * done // total > self._said:
            self._said = 20 * done // total
            print(f"training: {done:,} of {total:,} steps", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.papers", description=__doc__.split("\n")[0])
    parser.add_argument("papers", nargs="*", metavar="PAPER", help=f"some of {', '.join(KEYS)}; all if none is named")
    parser.add_argument("--short", action="store_true", help="one seed, few steps, few trials: to see that it works")
    parser.add_argument("--dir", type=Path, default=Path("papers"), help="where everything is kept (papers)")
    parser.add_argument("--out", type=Path, help="the page (papers.md in --dir)")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="at a time, with one thread each (2)")
    parser.add_argument("--train", action="store_true", help="train and stop")
    options = parser.parse_args(arguments)
    unknown = [key for key in options.papers if key not in KEYS]
    if unknown:
        parser.error(f"a paper must be one of {', '.join(KEYS)}, but got {unknown[0]}.")
    options.papers = options.papers or list(KEYS)
    options.dir = options.dir.absolute()
    return options
