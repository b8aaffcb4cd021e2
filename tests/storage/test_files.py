from pathlib import Path

import pytest

from storage.files import whole_directory


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "out") as staging:
        (staging / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"), whole_directory(tmp_path / "out") as staging:
        (staging / "a").write_text("1")
        raise OSError("no space")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="must not exist"), whole_directory(tmp_path / "out"):
        pass
