"""A checkpoint that changes on disk while a study runs: real workers, a real Ray."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer import api
from optimizer.watcher import Watcher
from storage.errors import CheckpointError
from storage.records import Outcome
from storage.store import Store
from workers.pool import PoolError


def test_the_study_pauses_names_the_file_and_goes_on_when_it_is_back(
    study_file: Callable[..., Path], models: Path, tmp_path: Path, storage: str
) -> None:
    own = Path(shutil.copytree(models / "beta", tmp_path / "beta"))
    weights = own / "model.safetensors"
    kept = shutil.copy(weights, tmp_path / "kept")
    checkpoints = [{"name": "alpha", "model": "models/alpha"}, {"name": "beta", "model": str(own)}]

    def seen(outcome: Outcome) -> None:
        if outcome.number == 3:
            shutil.copy(models / "gamma" / "model.safetensors", weights)

    with pytest.raises(PoolError, match=f"the study began, but beta has changed: {weights}"):
        api.launch(study_file(checkpoints=checkpoints), watcher=Watcher(outcome=seen))
    store = Store.open(storage)
    before = store.measured("tiny")
    assert {0, 1, 2, 3} <= set(before)
    assert len({m.digest for m in before.values()}) == 4, "what came later are merges that were known already"
    assert store.failures("tiny") == {}
    with pytest.raises(CheckpointError, match=f"but beta has changed: {weights}"):
        api.resume("tiny", trials=5)
    assert store.study("tiny").planned == 8
    shutil.copy(kept, weights)
    api.resume("tiny")
    after = store.measured("tiny")
    assert len(after) == 8
    assert {n: m.digest for n, m in before.items()} == {n: after[n].digest for n in before}
    store.close()
