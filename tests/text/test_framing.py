"""How texts begin and end, as transformers has it, whoever says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from folders import with_ends
from text.published import SHAPES, edit
from yeoul.text.framing import Framing
from yeoul.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = ["", "a", "미나는 시장에서 3시에 걸었다.", "  a\n\n b "]
TOLD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gpt2": ((), ()), "gpt2-pair": ((), ()), "kogpt2": ((), ()), "gpt-neox": ((), ()), "polyglot-ko": ((), ()),
    "llama": (("<s>",), ()), "llama-legacy": (("<s>",), ()), "mistral": (("<s>",), ()),
    "llama3": (("<|begin_of_text|>",), ()), "qwen2": ((), ()), "qwen2-pair": ((), ()), "gemma": (("<bos>",), ()),
    "exaone4": ((), ()), "phi3": (("<s>",), ()),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_published_shapes(shape: str, tmp_path: Path) -> None:
    SHAPES[shape](tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    begin, end = TOLD[shape]
    assert [ours.piece(i) for i in ours.framing.begin] == list(begin)
    assert [ours.piece(i) for i in ours.framing.end] == list(end)
    assert ours.framing.separator == ours.eos_id
    for text in TEXTS:
        assert ours.framing.whole(ours.encode(text)) == theirs(text)["input_ids"]
    assert ours.begins == (f"Each sequence begins with {begin[0]}." if begin
                           else "No begin token stands before a sequence.")  # fmt: skip


PROCESSORS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "an end": lambda t: template((), (t.pad_id,), t),
    "both": lambda t: template((t.bos_id,), (t.eos_id,), t),
    "two before": lambda t: template((t.unk_id, t.bos_id), (), t),
    "Roberta's": lambda t: {
        "type": "RobertaProcessing", "sep": ["</s>", t.eos_id], "cls": ["<s>", t.bos_id], "trim_offsets": True,
        "add_prefix_space": False,
    },
    "a sequence": lambda t: {
        "type": "Sequence",
        "processors": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                       template((t.bos_id,), (t.pad_id,), t)],
    },
    "nothing": lambda t: template((), (), t),
}  # fmt: skip


def template(before: tuple[int, ...], behind: tuple[int, ...], tokenizer: Tokenizer) -> dict[str, Any]:
    names = {i: tokenizer.piece(i) for i in (*before, *behind)}
    part = lambda i: {"SpecialToken": {"id": names[i], "type_id": 0}}  # noqa: E731
    single = [*map(part, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(part, behind)]
    return {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()},
    }  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("said", [True, False])
def test_the_post_processor_decides(name: str, said: bool, folder: Path, tmp_path: Path) -> None:
    """Whatever the configuration says beside it: transformers does not read that where there is a tokenizer.json."""
    Tokenizer.load(folder).save(tmp_path)
    edit(tmp_path, "tokenizer.json", post_processor=PROCESSORS[name](Tokenizer.load(folder)))
    edit(tmp_path, "tokenizer_config.json", add_bos_token=said, add_eos_token=said)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ours.framing.whole(ids) == theirs(text)["input_ids"]
        cut = theirs(text, truncation=True, max_length=4)["input_ids"]
        assert ours.framing.whole(ids, 4) == cut
    assert ours.fingerprint == Tokenizer.load(folder).fingerprint  # stored tokens stay what they are


@pytest.mark.parametrize("add_eos", [None, False, True])
@pytest.mark.parametrize("add_bos", [None, False, True])
def test_the_configuration_decides_without_a_post_processor(
    add_bos: bool | None, add_eos: bool | None, folder: Path, tmp_path: Path
) -> None:
    """Of a sentencepiece model; the class Llama has a begin token where nothing is said."""
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    said = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    config = {"tokenizer_class": "LlamaTokenizer", **{key: value for key, value in said.items() if value is not None}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = Tokenizer.load(tmp_path)
    assert ours.framing.begin == (() if add_bos is False else (ours.bos_id,))
    assert ours.framing.end == ((ours.eos_id,) if add_eos else ())
    assert ours.add_bos is (add_bos is not False)


def test_an_end_of_its_own_separates_documents_and_ends_answers(folder: Path, tmp_path: Path) -> None:
    Tokenizer.load(folder).save(tmp_path)
    with_ends(tmp_path, before="<s>", after="<pad>")
    tokenizer = Tokenizer.load(tmp_path)
    begin, pad = tokenizer.bos_id, tokenizer.pad_id
    assert begin is not None and pad is not None
    assert tokenizer.framing == Framing(begin=(begin,), end=(pad,), separator=pad)
    assert {pad, tokenizer.eos_id} <= set(tokenizer.stop_ids)
    assert tokenizer.framing.prompt([5]) == [begin, 5] and tokenizer.framing.document([5]) == [begin, 5, pad]


def test_what_is_cut_is_the_text() -> None:
    framing = Framing(begin=(1, 2), end=(3,))
    assert framing.whole([7, 8, 9], 5) == [1, 2, 7, 8, 3] and framing.whole([7, 8, 9]) == [1, 2, 7, 8, 9, 3]
    assert framing.whole([7], 3) == [1, 2, 3] and framing.whole([7], 2) == [1, 2]


def test_our_own_tokenizers_stay_as_they_are(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.framing == Framing(separator=any_tokenizer.eos_id)
