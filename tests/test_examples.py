"""Every study in examples/methods runs on the family that the demo trains, and between them they have every method."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from optimizer import loop
from optimizer.demo.family import make_family
from optimizer.preflight import check
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.methods import METHODS
from storage.records import Assignment, Measured, Outcome
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "methods").glob("*.yaml"))
ITEMS = 12


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> Path:
    """From the cache where it was trained before."""
    return make_family(request.config.cache.mkdir("demo-family"), progress=lambda *_: None).parent


def example(path: Path, family: Path, folder: Path) -> Spec:
    """The study with this family's paths, and few items and trials."""
    document = yaml.safe_load(path.read_text(encoding="utf-8").replace("../../demo/", f"{family}/"))
    assert str(family) in document["base"]
    document["search"] |= {"trials": 8, "sampler": "random", "evaluation": {"items": ITEMS}}
    (folder / path.name).write_text(yaml.safe_dump(document), encoding="utf-8")
    return load_spec(folder / path.name)


def test_there_is_an_example_of_every_method() -> None:
    methods = [yaml.safe_load(path.read_text(encoding="utf-8"))["search_space"]["method"] for path in EXAMPLES]
    assert {name for m in methods for name in (m if isinstance(m, list) else [m])} == set(METHODS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(path: Path, family: Path, storage: str, tmp_path: Path) -> None:
    spec = example(path, family, tmp_path)
    report = check(spec, timed=False, progress=lambda *_: None)
    assert report.problems == ()
    worker, outcomes = Worker(spec.setup(device="cpu")), list[Outcome]()
    with closing(Store.open(storage, create=True)) as store:
        create_study(store, spec, trials=8, fingerprints=dict(report.fingerprints))
        loop.search(DriverStudy(store, spec.study), LocalPool(lambda: worker), outcomes.append)
    assert {type(o) for o in outcomes} == {Measured}  # a recipe that comes up twice is measured once
    even = dict.fromkeys(spec.space.checkpoints, 1 / len(spec.space.checkpoints))
    merges = []
    for method in spec.space.methods:  # the search may not have tried each in so few trials
        recipe = replace(spec.space, methods=(method,)).blend(even)
        outcome = worker.run(Assignment(number=0, recipe=recipe))
        assert isinstance(outcome, Measured), outcome
        assert all(score.n >= ITEMS for score in outcome.scores.values())
        merges.append(outcome.digest)
    assert len(set(merges)) == len(merges)
