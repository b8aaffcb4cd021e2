import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from workers.suites import Item, SuiteFiles, choose, read_items, read_splits, split_of


def write(path: Path, *items: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(i) + "\n" for i in items))
    return path


def item(number: int, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "prompt": f"w{number}", "lang": "en"} | more


def test_an_item_keeps_all_that_its_line_says(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    path = write(tmp_path / "x.jsonl", item(1, prompt=chat, choices=["a", "b"], gold=1, group="g", meta={"k": 2}))
    (found,) = read_items(path)
    assert found == Item(id="1", prompt=tuple(chat), lang="en", choices=("a", "b"), gold=1, group="g", meta={"k": 2})


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{", "an item must be one JSON object"),
        ("[1]", "an item must be one JSON object, but got a list"),
        ('{"id": "1", "prompt": "p", "lang": "en", "labl": "harmful"}', "an item's keys must be .*, but got labl"),
        ('{"id": 1, "prompt": "p", "lang": "en"}', "id must be a text"),
        ('{"id": "1", "prompt": "p"}', "lang must be a text"),
        ('{"id": "1", "lang": "en"}', "prompt must be a text or a list"),
        ('{"id": "1", "lang": "en", "prompt": [{"role": "user"}]}', "prompt must be a text or a list"),
        ('{"id": "1", "prompt": "p", "lang": "en", "choices": ["a", "b"], "gold": 2}', "gold must be the index"),
        ('{"id": "1", "prompt": "p", "lang": "en", "choices": ["a"], "gold": 0}', "choices must be two or more"),
        ('{"id": "0", "prompt": "p", "lang": "en"}', "ids must be unique, but '0' stands there twice"),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: str, rule: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(item(0)) + "\n\n" + line + "\n")
    with pytest.raises(InputError, match=f"x.jsonl, line 3: {rule}"):
        read_items(path)


def test_a_suite_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a suite must have items"):
        read_items(write(tmp_path / "x.jsonl"))


def test_one_file_is_split_half_quarter_quarter_by_group(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *(item(i, group=f"g{i // 3}") for i in range(3000)))
    splits = read_splits(SuiteFiles(path=path))
    sizes = {name: len(items) / 3000 for name, items in splits.items()}
    assert sizes == {
        "search": pytest.approx(0.5, abs=0.05),
        "validation": pytest.approx(0.25, abs=0.05),
        "report": pytest.approx(0.25, abs=0.05),
    }
    owners = {}
    for name, items in splits.items():
        for found in items:
            assert owners.setdefault(found.group, name) == name == split_of(found)


def test_files_of_their_own_take_the_other_splits(tmp_path: Path) -> None:
    files = SuiteFiles(
        path=write(tmp_path / "s.jsonl", *(item(i) for i in range(100))),
        validation=write(tmp_path / "v.jsonl", item(200)),
        report=write(tmp_path / "r.jsonl", item(300)),
    )
    assert {name: len(items) for name, items in read_splits(files).items()} == {
        "search": 100,
        "validation": 1,
        "report": 1,
    }


@pytest.mark.parametrize("kind", ["id", "group"])
def test_an_item_in_two_splits_is_refused(tmp_path: Path, kind: str) -> None:
    shared = {"id": "7"} if kind == "id" else {"group": "g"}
    files = SuiteFiles(
        path=write(tmp_path / "s.jsonl", item(1) | shared),
        validation=write(tmp_path / "v.jsonl", item(2) | shared),
        report=write(tmp_path / "r.jsonl", item(3)),
    )
    with pytest.raises(InputError, match=f"splits must be disjoint, but {kind} .* stands in search and in validation"):
        read_splits(files)


@pytest.mark.parametrize(
    ("mine", "other", "same"),
    [
        ({"prompt": "How  do I\nbake?"}, {"prompt": "how do I bake? "}, True),
        ({"prompt": "ｗｈｙ"}, {"prompt": "Why"}, True),
        ({"prompt": [{"role": "user", "content": "Why"}]}, {"prompt": "why"}, True),
        ({"prompt": "Why"}, {"prompt": "Why not"}, False),
        ({"choices": ["a", "b"], "gold": 0}, {"choices": ["b", "A"], "gold": 1}, True),
        ({"choices": ["a", "b"], "gold": 0}, {"choices": ["a", "c"], "gold": 1}, False),
    ],
)
def test_one_question_under_two_ids_is_refused(
    tmp_path: Path, mine: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    question = {"prompt": "which"}
    files = SuiteFiles(
        path=write(tmp_path / "s.jsonl", item(1) | question | mine),
        validation=write(tmp_path / "v.jsonl", item(2)),
        report=write(tmp_path / "r.jsonl", item(3) | question | other),
    )
    if not same:
        assert len(read_splits(files)["report"]) == 1
        return
    with pytest.raises(InputError, match=r"disjoint, but items '1' \(search\) and '3' \(report\) of .* ask the same"):
        read_splits(files)


def test_chosen_items_are_even_over_languages_and_keep_translations_together() -> None:
    items = [
        Item(id=f"{g}-{lang}", prompt="p", lang=lang, label=("harmful", "benign")[g % 2], group=f"g{g}")
        for g in range(50)
        for lang in ("aa", "bb", "cc")
    ]
    chosen = choose(items, 30)
    assert chosen == choose(list(reversed(items)), 30) or {i.id for i in chosen} == {
        i.id for i in choose(items[::-1], 30)
    }
    assert len(chosen) == 30
    assert {(i.lang, i.label) for i in chosen} == {(x, y) for x in ("aa", "bb", "cc") for y in ("harmful", "benign")}
    assert len({i.group for i in chosen}) == 10


KINDS = st.tuples(st.sampled_from(["en", "fr"]), st.sampled_from(["harmful", "benign", None]))


@given(st.lists(KINDS, min_size=200, max_size=400), st.integers(2, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_suite_that_is_streamed_gives_the_items_that_are_chosen_of_all(
    tmp_path: Path, kinds: list[tuple[str, str | None]], most: int
) -> None:
    lines = [
        {"id": str(i), "prompt": f"p{i}", "lang": lang, "group": f"g{i // 2}"} | ({"label": label} if label else {})
        for i, (lang, label) in enumerate(kinds)
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = read_splits(SuiteFiles(path=path))
    kept = read_splits(SuiteFiles(path=path), dict.fromkeys(whole, most))
    assert kept == {split: choose(items, most) for split, items in whole.items()}


def test_a_long_suite_is_read_without_being_kept(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for i in range(40_000):
            file.write(json.dumps({"id": str(i), "prompt": f"{i} " * 20, "lang": "en", "target": "x"}) + "\n")
    most = dict.fromkeys(("search", "validation", "report"), 50)
    tracemalloc.start()
    splits = read_splits(SuiteFiles(path=path), most)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {split: len(items) for split, items in splits.items()} == most
    assert peak < path.stat().st_size < 8_000_000
