"""Folders of results are passed over wherever data is read."""

from pathlib import Path

import pytest

from yeoul.data.result_folders import refuse_inside
from yeoul.data.sources import resolve
from yeoul.errors import UserError
from yeoul.files import only_run


@pytest.mark.parametrize("made", [
    ("config.yaml", "prepared.json"), ("metrics.jsonl", "checkpoints/a.json"), ("tokens.bin", "meta.json"),
    ("config.json", "model-00001-of-00002.safetensors"), ("adapter_config.json",), ("tokenizer_config.json",),
])  # fmt: skip
def test_results_are_never_data(tmp_path, made):
    for name in ("a.txt", "sub/b.txt", "sub/run/c.txt", *(f"sub/run/{name}" for name in made)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found = [path.name for path, _ in resolve(tmp_path)[0].files]
    assert found == ["a.txt", "b.txt"]
    with pytest.raises(UserError, match="not of data"):
        resolve(tmp_path / "sub" / "run")


def test_the_run_that_begins_is_no_data(tmp_path):
    for name in ("a.txt", "run/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with only_run(tmp_path / "run"):
        assert [path.name for path, _ in resolve(tmp_path)[0].files] == ["a.txt"]
    with only_run(tmp_path), pytest.raises(UserError, match="choose another --out"):
        resolve(tmp_path)


def test_a_result_is_not_written_into_its_data(tmp_path):
    with pytest.raises(UserError, match="inside the data"):
        refuse_inside(tmp_path / "sub" / "out.jsonl", f"builtin,{tmp_path}")
    refuse_inside(tmp_path / "out.npy", f"{tmp_path / 'other'},{tmp_path / 'out.txt'}")
    refuse_inside(Path("/dev/stdout"), None)
