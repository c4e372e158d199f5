"""How drawn sets come to lie on disk: whole, once, anew for other writers, and never over a folder that nobody drew."""

from pathlib import Path

import pytest

from datamodules.samples.folder import DRAWN, write_whole


def put(text: str, calls: list[str]):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        calls.append(text)
        (folder / "table.csv").write_text(text)

    return write


def test_drawn_once_and_anew_for_other_writers(tmp_path: Path) -> None:
    root, calls = tmp_path / "set", list[str]()
    for text in ("first", "second"):
        write_whole(root, "table.csv", put(text, calls))
    assert calls == ["first"]
    (root / DRAWN).write_text("another version")
    write_whole(root, "table.csv", put("third", calls))
    assert (root / "table.csv").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "nothing is left beside it"


def test_a_folder_that_nobody_drew_is_left_alone(tmp_path: Path) -> None:
    root, calls = tmp_path / "set", list[str]()
    root.mkdir()
    (root / "table.csv").write_text("photos of a person")
    write_whole(root, "table.csv", put("drawn", calls))
    assert not calls
    (root / "table.csv").rename(root / "other.csv")
    with pytest.raises(OSError, match="set"):
        write_whole(root, "table.csv", put("drawn", calls))
    assert (root / "other.csv").read_text() == "photos of a person"


def test_half_a_set_is_never_seen(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "table.csv").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "set", "table.csv", broken)
    assert not list(tmp_path.iterdir())
