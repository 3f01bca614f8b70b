"""From names to files: linked folders, suffixes that say nothing."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from yeoul.data.documents import read_documents
from yeoul.data.reading import Reading
from yeoul.data.sources import resolve
from yeoul.errors import UserError


def names(folder: Path) -> list[str]:
    (source,) = resolve(folder)
    return [path.relative_to(folder).as_posix() for path, _ in source.files]


def test_linked_folders_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "sub").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    for file in (data / "a.txt", data / "sub" / "b.txt", elsewhere / "c.txt", elsewhere / "deep" / "d.txt"):
        file.write_text(file.stem)
    (data / "linked").symlink_to("../elsewhere")
    assert names(data) == ["a.txt", "linked/c.txt", "linked/deep/d.txt", "sub/b.txt"]
    (data / "sub" / "up").symlink_to("..")
    (elsewhere / "deep" / "back").symlink_to(data)
    (elsewhere / "self").symlink_to(".")
    (data / "twice").symlink_to(elsewhere)
    assert names(data) == ["a.txt", "linked/c.txt", "linked/deep/d.txt", "sub/b.txt"]
    assert list(read_documents(data)) == ["a", "c", "d", "b"]
    (data / "gone").symlink_to("nowhere")
    assert len(names(data)) == 4


def test_many_links_to_one_another_end(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.txt").write_text("a")
        for other in range(12):
            (tmp_path / f"{number}" / f"to{other}").symlink_to(f"../{other}")
    assert len(names(tmp_path)) == 12


@pytest.mark.skipif(os.getuid() == 0, reason="the administrator may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match=r"the folder cannot be read: .*closed"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["news.ko", "news.en", "corpus", "a.dev.ko", "story.md", "x.log", "news.ko.gz"])
def test_a_named_file_that_is_text_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = "여울이 흐른다.\n\n둘째 글.\n".encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert list(read_documents(path)) == ["여울이 흐른다.", "둘째 글."]
    path = tmp_path / f"old-{name}"
    path.write_bytes(gzip.compress("옛 글".encode("cp949")) if name.endswith("gz") else "옛 글".encode("cp949"))
    with pytest.raises(UserError, match="--encoding cp949"):
        list(read_documents(path))
    assert list(read_documents(path, reading=Reading(encoding="cp949"))) == ["옛 글"]
    with pytest.raises(UserError, match="the folder holds no file that can be read"):
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / name).write_text("글")
        resolve(tmp_path / "only")


@pytest.mark.parametrize(
    "data", [b"%PDF-1.7\nabc", b"PK\x03\x04", b"\x89PNG\r\n", b"a\0b", "é".encode("latin-1") * 9, b"{\\rtf1 abc}"]
)
def test_what_is_no_text_is_refused_at_once(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file.xyz").write_bytes(data)
    with pytest.raises(UserError, match=r"not plain text \(.*file\.xyz\)"):
        resolve(tmp_path / "file.xyz")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ndjson", '{"text": "하나"}\n{"text": "둘"}\n'),
        ("b.data", '{"text": "하나"}\n{"text": "둘"}\n'),
        ("c", '[{"text": "하나"}, {"text": "둘"}]'),
        ("d", '[\n  {"text": "하나"},\n  {"text": "둘"}\n]\n'),
        ("e", '{\n  "data": [{"text": "하나"}, {"text": "둘"}]\n}\n'),
    ],
)
def test_json_under_another_name_is_not_taken_for_prose(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(read_documents(tmp_path / name)) == ["하나", "둘"]


def test_a_pipe_is_not_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="this kind of file is not read"):
        resolve(tmp_path / "pipe")
