"""Damaged tokenizer files: one sentence for every damage, and nothing worse."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from text.published import SHAPES, edit
from yeoul.errors import UserError
from yeoul.text.tokenizer import Tokenizer

pytest.importorskip("transformers")

Json = dict[str, Any]
ODD = [
    None, True, -1, 2**31, 2**70, 1e308, "", "\0", "x" * 50, [], {}, [[]], {"a": 1}, "((((", "(a+)+$", [1, 2],
    {"type": "Sequence"}, {"type": "Metaspace"}, {"Regex": "("},
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    for name in ("qwen2", "llama-legacy", "mistral", "llama3", "gpt2-pair"):
        SHAPES[name](root / name)
    return {path.name: path for path in root.iterdir()}


def use(folder: Path) -> None:
    """Everything that reads the files."""
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("미나는  a <s>🙂\n" + "a" * 40 + "!")
    assert tokenizer.encode_batch(["a"]) == [tokenizer.encode("a")]
    assert isinstance(tokenizer.decode(ids), str)
    assert tokenizer.text_size <= tokenizer.vocab_size
    for fact in (tokenizer.add_bos, tokenizer.stop_ids, tokenizer.kind, tokenizer.special_names, tokenizer.fingerprint):
        assert fact is not None
    assert tokenizer.chat_template is None or tokenizer.chat_template


def sentence(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        use(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in list(value)[:6] if path[-1:] == ("vocab",) else value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*path, number))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def test_odd_values_anywhere(folders: dict[str, Path], tmp_path: Path) -> None:
    """A value of another kind at a random place of a random file either does no harm or is one sentence."""
    dice = random.Random(5)
    refused = 0
    for _ in range(400):
        source = folders[dice.choice(sorted(folders))]
        folder = tmp_path / "damaged"
        shutil.copytree(source, folder)
        file = dice.choice(sorted(folder.glob("*.json")))
        values = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(put(values, dice.choice(list(places(values))), dice.choice(ODD))), encoding="utf-8")
        try:
            use(folder)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        shutil.rmtree(folder)
    assert 100 < refused < 400


def regex(pattern: str) -> Callable[[Json], None]:
    def change(spec: Json) -> None:
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}

    return change


def nest(depth: int) -> Callable[[Json], None]:
    def change(spec: Json) -> None:
        for _ in range(depth):
            spec["normalizer"] = {"type": "Sequence", "normalizers": [spec["normalizer"]]}

    return change


DAMAGES: dict[str, tuple[Callable[[Json], Any], str]] = {
    "regex": (regex("("), "tokenizer.json"),
    "regex-without-end": (regex("(a+)+$"), "retry-limit"),
    "depth": (nest(200), "nested too deeply"),
    "huge-id": (lambda spec: spec["model"]["vocab"].update(a=2**31), "no vocabulary needs"),
    "same-id": (lambda spec: spec["model"]["vocab"].update(a=7), "the same id 7"),
    "lost-piece": (lambda spec: spec["model"]["vocab"].pop("ë"), "tokenizer.json"),
    "charsmap": (
        lambda spec: spec.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "charsmap",
    ),
    "panic": (lambda spec: spec.update(pre_tokenizer={"type": "FixedLength", "length": 0}), "non-zero"),
    "abort": (lambda spec: spec["model"].update(continuing_subword_prefix="x"), "continuing_subword_prefix"),
    "replacement": (
        lambda spec: spec.update(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        "tokenizer.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages(damage: str, folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folders["qwen2"], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    change, words = DAMAGES[damage]
    change(spec)
    file.write_text(json.dumps(spec), encoding="utf-8")
    assert words in sentence(tmp_path)
    if damage in ("charsmap", "panic"):
        assert capfd.readouterr().err == ""  # the library reports a panic there, before it can be caught


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 10**5, b'{"a":' * 10**5, b'{"a": ' + b"9" * 6000 + b"}", b"{\xff\xfe}", b"\0", b'"a"']
)
def test_no_json(name: str, content: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llama3"], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert name in sentence(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("merges.txt", b"#version: 0.2\na b\na b c\n", "line 3"),
        ("merges.txt", "가 나\n".encode(), "vocab.json"),
        ("merges.txt", b"\xff \xfe\n", "UTF-8"),
        ("vocab.json", b'{"a": "0"}', "ids"),
        ("vocab.json", b"[]", "JSON object"),
        ("vocab.json", b"{", "vocab.json"),
    ],
)
def test_damaged_pairs(name: str, content: bytes, words: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2-pair"], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert words in sentence(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("shape", ["qwen2", "llama3", "gpt2-pair"])
def test_byte_order_marks_change_nothing(shape: str, encoding: str, folders: dict[str, Path], tmp_path: Path) -> None:
    marked = tmp_path / "marked"
    shutil.copytree(folders[shape], marked)
    if not (marked / "chat_template.jinja").exists():
        (marked / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    shutil.copytree(marked, plain := tmp_path / "plain")
    for file in (file for file in marked.iterdir() if file.suffix in (".json", ".txt", ".jinja")):
        file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    found, wanted = Tokenizer.load(marked), Tokenizer.load(plain)
    assert found.chat_template == wanted.chat_template and found.fingerprint == wanted.fingerprint
    assert found.encode("미나는 a") == wanted.encode("미나는 a") and found.stop_ids == wanted.stop_ids
    found.save(tmp_path / "again")  # what others read has no marks
    assert all(not file.read_bytes().startswith((b"\xef", b"\xff")) for file in (tmp_path / "again").iterdir())


def test_half_a_pair_is_no_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["gpt2-pair"] / "vocab.json", tmp_path)
    assert not Tokenizer.exists(tmp_path)
    with pytest.raises(UserError, match="vocab.json and merges.txt"):
        Tokenizer.load(tmp_path)


def test_a_gap_in_the_vocabulary_is_none_of_the_damages(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["mistral"], tmp_path, dirs_exist_ok=True)
    spec = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["vocab"]["새조각"] = 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 1001 and tokenizer.piece(900) == "" and tokenizer.decode([900]) == ""


def test_the_end_tokens_of_generation_config(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["qwen2"], tmp_path, dirs_exist_ok=True)
    for ends, expected in (([421, 420], (420, 421)), (7, (420, 7)), ("x", (420,)), ([-1, True, 1.5], (420,))):
        edit(tmp_path, "generation_config.json", eos_token_id=ends)
        assert Tokenizer.load(tmp_path).stop_ids == expected
    Tokenizer.load(tmp_path).save(tmp_path / "copy")
    assert (tmp_path / "copy" / "generation_config.json").read_bytes() == (
        tmp_path / "generation_config.json"
    ).read_bytes()


def test_templates_beside(folders: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    shutil.copytree(folders["qwen2"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0].content }}")
    tokenizer = Tokenizer.load(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).get_chat_template() == tokenizer.chat_template
    tokenizer.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "additional_chat_templates" / "tool_use.jinja").is_file()
    Tokenizer.load(folders["qwen2"]).save(tmp_path / "copy")
    assert not list((tmp_path / "copy" / "additional_chat_templates").iterdir())
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ 1 }}"}, {"name": "rag", "template": "{{ 2 }}"}]
    edit(tmp_path, "tokenizer_config.json", chat_template=named)
    assert Tokenizer.load(tmp_path).chat_template == "{{ 1 }}"
