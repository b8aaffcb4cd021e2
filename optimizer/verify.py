"""Does a live engine whose weights were swapped give what an engine gives that was started on those weights?"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optimizer.export import write_model
from search_spaces.recipe import Recipe, digest_of, only
from storage.checkpoints import Checkpoint
from storage.files import require_room
from workers.canary import Canary, Proof, canary_of, song_of
from workers.engine import Engine, Request
from workers.engines import load
from workers.prompts import load_tokenizer
from workers.setup import Setup
from workers.transformers_engine import empty_weights
from workers.worker import pick_device

_SECONDS = 3600


def verify_swap(setup: Setup, recipe: Recipe) -> Proof:
    """An engine on the base swapped to a merge, against a fresh one on that merge written to disk; and swapped back.

    Each engine runs in a process of its own, one after the other, so that each finds the whole memory.

    Raises: InputError where an engine does not start, or the merge does not fit on the disk.
    """
    with TemporaryDirectory(prefix="mergefront-") as name:
        directory = Path(name)
        digest = _write(setup, recipe, directory)
        live = _in_a_process(_live, setup, recipe)
        fresh = _in_a_process(_fresh, setup, directory, digest)
    return compared(live, fresh)


def compared(live: Sequence[Canary], fresh: Canary) -> Proof:
    """The proof, of a live engine's canaries on the base, on the merge and on the base again."""
    before, merge, back = live
    swapped, returned = _furthest(merge, fresh), _furthest(back, before)
    return Proof(
        merge=fresh,
        swapped=swapped,
        back=returned,
        answers=len(fresh.totals),
        problem=_problem(merge, fresh, "a fresh engine's") or _problem(back, before, "those before, swapped back"),
    )


def canaries(engine: Engine, base: str, recipe: Recipe, song: tuple[Request, ...]) -> list[Canary]:
    """What an engine with the base in it sings on the base, swapped to the merge, and swapped back."""
    before = canary_of("", engine, song)
    merge = canary_of(engine.swap(recipe), engine, song)
    engine.swap(only(base))
    return [before, merge, canary_of("", engine, song)]


def _live(setup: Setup, recipe: Recipe) -> list[Canary]:
    engine, song = _opened(setup)
    return canaries(engine, setup.base, recipe, song)


def _fresh(setup: Setup, directory: Path, digest: str) -> Canary:
    root = replace(setup.family.root, model=str(directory), adapter=None)
    # The merge stands in the base's place, and is none of the files that the study began with.
    engine, song = _opened(replace(setup, sources=(root,), fingerprints={}, files={}))
    return canary_of(digest, engine, song)


def _opened(setup: Setup) -> tuple[Engine, tuple[Request, ...]]:
    root = setup.family.root
    tokenizer = load_tokenizer(Checkpoint(root).path, trust_remote_code=root.trust_remote_code)
    engine = load(setup, tokenizer, device=pick_device(setup.device))
    suites = [suite for plan in setup.objectives for suite in plan.load()["search"].suites]
    return engine, song_of(suites, tokenizer, engine.context)


def _write(setup: Setup, recipe: Recipe, directory: Path) -> str:
    """The merge as a model directory; returns its digest."""
    family = setup.family
    checkpoints = family.opened()
    base = checkpoints[family.base]
    like = empty_weights(base.path, setup.dtype, trust_remote_code=base.trust_remote_code)
    require_room(directory, sum(t.nbytes for t in like.values()))
    merger = family.merger({name: c.tensors for name, c in checkpoints.items()})
    return digest_of(write_model(merger, recipe, like, base, directory))


def _in_a_process(run: Callable[..., Any], *args: object) -> Any:
    """What it returns or raises in a process that ends with it, and gives all of its memory back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *args).result(timeout=_SECONDS)


def _furthest(one: Canary, other: Canary) -> float:
    return max(abs(a - b) for a, b in zip(one.totals, other.totals, strict=True))


def _problem(one: Canary, other: Canary, whose: str) -> str:
    if one.digest != other.digest:
        return (
            f"a swap must give the merge that is exported, but its digest is {one.digest[:12]} and the export's "
            f"{other.digest[:12]}."
        )
    wrong = one.wrong(other)
    if not wrong:
        return ""
    a, b = max(wrong, key=lambda pair: abs(pair[0] - pair[1]))
    return (
        f"an engine whose weights were swapped must answer as one that was started on them, but {len(wrong)} of "
        f"{len(one.totals)} of its log-likelihoods are not {whose}, the furthest being {a:.4f} and {b:.4f}: this model "
        "cannot be searched with this engine."
    )
