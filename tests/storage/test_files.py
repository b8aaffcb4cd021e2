import errno
import os
from pathlib import Path

import pytest

from search_spaces.errors import InputError
from storage import files
from storage.files import NoRoom, require_room, whole_directory, whole_file, whole_new_file


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


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_when_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # a system that has no such call
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with whole_directory(tmp_path / "out", replace=True) as staging:
        (staging / "new").write_text("2")
        assert (tmp_path / "out" / "old").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("whole", [whole_directory, whole_new_file])
def test_a_full_disk_is_called_so(tmp_path: Path, whole: object, number: int) -> None:
    with pytest.raises(NoRoom, match=r"the disk must have room for .*out, but it ran full"):  # noqa: SIM117
        with whole(tmp_path / "out"):  # type: ignore[operator]  # either of the two
            raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a" / "x") as file:
        file.write(b"1")
        assert not (tmp_path / "a" / "x").exists()
    assert (tmp_path / "a" / "x").read_bytes() == b"1"
    with pytest.raises(KeyError), whole_file(tmp_path / "a" / "x") as file:
        file.write(b"2")
        raise KeyError
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir()] == [("x", b"1")]


def test_a_file_is_for_others_to_read(tmp_path: Path) -> None:
    with whole_file(tmp_path / "page.html") as file:
        file.write(b"text")
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644


def test_a_new_file_takes_nobodys_place(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), whole_new_file(tmp_path / "x") as staging:
        staging.write_text("mine")
        (tmp_path / "x").write_text("another's, meanwhile")
    assert (tmp_path / "x").read_text() == "another's, meanwhile"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_room_is_asked_for_where_the_target_will_be(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(InputError, match=rf"takes 1,000,000,000,000,000,000 bytes and [\d,]+ are free on {tmp_path}"):
        require_room(tmp_path / "not" / "yet", 10**18)
