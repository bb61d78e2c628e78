"""A study's folder: its name, its storage, and the ledger's copy in it."""

from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.storage import locate, pull, push
from study.outputs.folder import clear_leftovers, open_storage, read_json, read_table


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_name_cannot_leave_the_storage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="^name must be"):
        open_storage(str(tmp_path), name)


def test_storage_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="storage must be writable: .*file/study") as caught:
        open_storage(str(tmp_path / "file"), "study")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="storage must be a folder or a URI"):
        open_storage("nowhere://bucket", "study")


def test_the_ledgers_copy_is_fetched_only_if_it_holds_more(tmp_path: Path) -> None:
    storage, file = open_storage(str(tmp_path / "remote"), "study"), tmp_path / "local" / "study.journal"
    pull(storage, file)
    assert not file.exists()
    storage.write("study.journal", b"one\ntwo\n")
    pull(storage, file)
    assert file.read_bytes() == b"one\ntwo\n"
    file.write_bytes(b"one\ntwo\nthree\n")
    pull(storage, file)
    push(storage, file)
    assert storage.read("study.journal") == b"one\ntwo\nthree\n"


def test_a_damaged_file_is_named_with_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "stu')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "leaderboard.parquet").write_bytes(b"PAR1 and no more")
    storage = locate(tmp_path)
    for file in ("run.json", "list.json"):
        with pytest.raises(UserError, match=f"{tmp_path}/{file} is damaged .*: remove it and resume the study"):
            read_json(storage, file)
    with pytest.raises(UserError, match=f"{tmp_path}/leaderboard.parquet is damaged .*: remove it and resume"):
        read_table(storage, "leaderboard")
    assert read_json(storage, "no.json") is None and read_table(storage, "no") is None


def test_half_written_files_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    left, kept = tmp_path / "adapters" / "x.parquet.0a1b2c3d.tmp", tmp_path / "mine.tmp"
    for path in (left, kept):
        path.write_text("")
    clear_leftovers(locate(tmp_path))
    assert kept.exists() and not left.exists()
