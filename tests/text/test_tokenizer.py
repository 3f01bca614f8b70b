"""Loading, saving and the facts about a vocabulary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from text.samples import without_json
from yeoul.errors import UserError
from yeoul.text.tokenizer import Tokenizer


def test_save_is_a_copy(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "copy")
    names = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert names == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert all((folder / name).read_bytes() == (tmp_path / "copy" / name).read_bytes() for name in names)
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.chat_template == tokenizer.chat_template


def test_a_runs_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    assert Tokenizer.exists(tmp_path / "run")
    assert Tokenizer.load(tmp_path / "run").vocab_size == 560


def test_nothing_there(tmp_path: Path) -> None:
    assert not Tokenizer.exists(tmp_path)
    with pytest.raises(UserError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no such tokenizer folder"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "text"])
def test_damaged_files(name: str, damage: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if name == "tokenizer.model":
        (tmp_path / "tokenizer.json").unlink()
    data = (tmp_path / name).read_bytes()
    contents = {"empty": b"", "cut": data[: len(data) // 2], "noise": bytes(range(256)) * 20, "text": b"[1, 2]"}
    (tmp_path / name).write_bytes(contents[damage])
    with pytest.raises(UserError, match=name):
        Tokenizer.load(tmp_path)


def test_begin_and_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("미나")
    assert tokenizer.encode("미나", bos=True, eos=True) == [2, *ids, 3]
    assert tokenizer.decode([2, *ids, 3, 0]) == "미나"
    assert tokenizer.decode([2, *ids, 3], skip_special=False) == "<s>미나</s>"
    assert tokenizer.decode([*ids, 10**6]) == "미나"


def test_byte_lengths(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths()
    assert len(lengths) == tokenizer.vocab_size
    assert lengths[:8] == [0] * 8
    assert lengths[8 : 8 + 256] == [1] * 256
    piece = next(i for i in range(264, 560) if tokenizer.piece(i).startswith("▁") and len(tokenizer.piece(i)) == 2)
    assert lengths[piece] == 1 + len(tokenizer.piece(piece)[1].encode())


def test_both_libraries_agree_on_the_facts(any_folder: Path, tmp_path: Path) -> None:
    one, other = Tokenizer.load(any_folder), without_json(any_folder, tmp_path)
    assert one.byte_lengths() == other.byte_lengths()
    assert one.special_tokens == other.special_tokens
    assert one.byte_ids == other.byte_ids
    assert (one.bos_id, one.eos_id, one.pad_id, one.unk_id) == (other.bos_id, other.eos_id, other.pad_id, other.unk_id)
    text = "미나는 🙂 시장에서"
    assert one.pieces(text) == other.pieces(text)
    assert [s for s, _ in zip(one.encode_with_offsets(text)[1], text, strict=False)][0] == 0


def test_lone_surrogates_become_replacement_characters(any_folder: Path, tmp_path: Path) -> None:
    for tokenizer in (Tokenizer.load(any_folder), without_json(any_folder, tmp_path)):
        ids = tokenizer.encode("a\ud800b")
        assert tokenizer.decode(ids) == "a\ufffdb"
        assert tokenizer.encode_batch(["a\ud800b", "c"]) == [ids, tokenizer.encode("c")]


def test_fingerprint_knows_the_vocabulary_and_not_the_template(
    trained: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    prints = {Tokenizer.load(folder).fingerprint for folder in trained.values()}
    assert len(prints) == 4
    shutil.copytree(trained["bpe", "nfc"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec, indent=4))
    changed = Tokenizer.load(tmp_path)
    assert changed.chat_template == "{{ messages }}"
    assert changed.fingerprint in prints


def byte_level(folder: Path) -> Tokenizer:
    """A tokenizer in the style of GPT-2, without a tokenizer_config.json."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["미나는 시장에서 웃었다. hello world " * 5], trainer)
    backend.add_tokens(["사용자표"])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def test_byte_level_tokenizers(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert tokenizer.eos_id == 0 and tokenizer.bos_id is None and tokenizer.pad_id is None
    for text in ("미나는  시장\n🙂 world<|endoftext|>", " 사용자표 é"):
        ids = tokenizer.encode(text)
        assert 0 not in ids
        assert tokenizer.decode(ids) == text
        assert sum(tokenizer.byte_lengths()[i] for i in ids) == len(text.encode())
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == text


def test_an_unknown_decoder_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.CTC()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="CTC"):
        Tokenizer.load(tmp_path).decode([0])


def test_no_torch_and_nothing_heavy_at_import() -> None:
    code = "import sys, yeoul.text.tokenizer, yeoul.text.training, yeoul.text.chat, yeoul.text.inspection;"
    code += "print([m for m in ('torch', 'tokenizers', 'sentencepiece', 'jinja2', 'numpy') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"
