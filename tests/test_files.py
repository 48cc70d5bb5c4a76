"""Files are written whole or not at all."""

import pytest

from pathsum.files import check_folder, replacing, write_text
from pathsum.printable import printable


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_come_together(tmp_path):
    folder = tmp_path / "new" / "folder"
    with replacing(folder) as beside:
        write_text(beside / "a", "ä\n\udcff")
        write_text(beside / "b", "")
        assert names(folder) == [beside.name]
    assert names(folder) == ["a", "b"]
    assert (folder / "a").read_bytes() == "ä\n\\udcff".encode()


def test_what_was_there_stays_where_the_block_fails(tmp_path):
    (tmp_path / "a").write_text("before")

    def fail():
        with replacing(tmp_path) as beside:
            write_text(beside / "a", "half")
            raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        fail()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_no_file_replaces_a_folder(tmp_path):
    (tmp_path / "b").mkdir()

    def write():
        with replacing(tmp_path) as beside:
            write_text(beside / "a", "")
            write_text(beside / "b", "")

    with pytest.raises(IsADirectoryError):
        write()
    assert names(tmp_path) == ["b"]


def test_a_folder_that_takes_no_files_is_found_at_once(tmp_path):
    check_folder(tmp_path / "new")
    assert names(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(OSError):
            check_folder(tmp_path / name)


@pytest.mark.parametrize(
    "text, expected",
    [("a b", "a b"), ("ü☺", "ü☺"), ("\x1b[1m\n", r"\x1b[1m\n"), ("\udcff", r"\udcff"), ("\u2028", r"\u2028")],
)
def test_what_is_not_printable_is_escaped(text, expected):
    assert printable(text) == expected
