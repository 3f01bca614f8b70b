"""What is wrong with the data is said before a model is loaded: here there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from yeoul.cli import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "no/model", "--data", "old.txt"],
        ["linearize", "no/model", "--data", "old.txt"],
        ["linearize", "no/model", "--data", "good.txt", "--val-data", "old.txt"],
        ["classify", "no/model", "old.txt"],
        ["embed", "no/model", "--data", "old.txt", "--out", "v.npy"],
        ["generate", "no/model", "--prompt-file", "old.txt"],
    ],
)
def test_the_encoding_is_complained_about_first(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.txt").write_bytes("여울이 흐른다.\n".encode("cp949"))
    Path("good.txt").write_text("plain\n", encoding="utf-8")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "old.txt" in said and "reads as Korean in CP949" in said and "--encoding cp949" in said
    assert main([*arguments, "--encoding", "cp949"]) == 2
    assert "no/model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.txt", "old.txt"]
