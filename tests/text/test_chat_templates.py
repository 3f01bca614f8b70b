"""The templates that base models get: the ids, the text and the mask of transformers, in any vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from text.published import SHAPES, edit
from text.samples import render_text
from yeoul.errors import UserError
from yeoul.text.chat import DEFAULT_TEMPLATE, PLAIN_TEMPLATE, ensure_template, render_chat
from yeoul.text.tokenizer import Tokenizer

TALK: list[dict[str, str]] = [
    {"role": "system", "content": "너는 여울이다."},
    {"role": "user", "content": "안녕?  여울은 🙂\n뭐야"},
    {"role": "assistant", "content": "시장에서 웃었다.\n\n- 하나\n- 둘"},
    {"role": "user", "content": " hello  world "},
    {"role": "assistant", "content": "The quick brown fox"},
]


def base(shape: str, folder: Path) -> Tokenizer:
    """A tokenizer in the shape of a published family, its chat template taken away."""
    SHAPES[shape](folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if (folder / "tokenizer_config.json").exists():
        edit(folder, "tokenizer_config.json", chat_template=None)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_template is None
    return tokenizer


@pytest.mark.parametrize("shape", SHAPES)
def test_any_vocabulary_gets_a_template(shape: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = base(shape, tmp_path / "base")
    with pytest.raises(UserError, match="no chat template"):
        render_chat(tokenizer, TALK)
    ensure_template(tokenizer).save(tmp_path / "base")
    ours = Tokenizer.load(tmp_path / "base")
    assert (tmp_path / "base" / "chat_template.jinja").read_text(encoding="utf-8") == ours.chat_template
    assert ensure_template(ours) is ours and ours.fingerprint == tokenizer.fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    for messages, prompt in ((TALK, False), (TALK[1:], False), (TALK[:4], True)):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert render_text(ours, messages, add_generation_prompt=prompt) == text
        ids, trained = render_chat(ours, messages, add_generation_prompt=prompt)
        found = theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == found["input_ids"]
        assert trained == [bool(flag) for flag in found["assistant_masks"]]
    assert (ids[0] == ours.bos_id) == ours.add_bos


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_is_the_beginning_of_what_was_trained(shape: str, tmp_path: Path) -> None:
    tokenizer = ensure_template(base(shape, tmp_path))
    whole, trained = render_chat(tokenizer, TALK)
    answers = 0
    for number, message in enumerate(TALK):
        if message["role"] == "assistant":
            prompt, untrained = render_chat(tokenizer, TALK[:number], add_generation_prompt=True)
            assert whole[: len(prompt)] == prompt and trained[len(prompt)] and not untrained[-1]
            answers += 1
    ends = [place for place, token in enumerate(whole) if token == tokenizer.eos_id and trained[place]]
    assert len(ends) == answers and tokenizer.eos_id in tokenizer.stop_ids
    said = tokenizer.decode([i for i, t in zip(whole, trained, strict=True) if t], skip_special=False)
    if tokenizer.unk_id is None or tokenizer.unk_id not in whole:
        assert said.split(tokenizer.piece(whole[ends[0]]))[:2] == [TALK[2]["content"], TALK[4]["content"]]


def test_our_own_vocabulary_keeps_its_tokens(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    edit(tmp_path, "tokenizer_config.json", chat_template=None)
    bare = Tokenizer.load(tmp_path)
    assert bare.chat_template is None
    ensured = ensure_template(bare)
    assert ensured.chat_template == DEFAULT_TEMPLATE
    assert render_chat(ensured, TALK) == render_chat(bare, TALK) == render_chat(Tokenizer.load(folder), TALK)


def test_a_vocabulary_without_an_end(tmp_path: Path) -> None:
    assert ensure_template(base("gpt2", tmp_path)).chat_template == PLAIN_TEMPLATE
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    edit(tmp_path, "tokenizer_config.json", eos_token="<none>")
    bare = Tokenizer.load(tmp_path)
    assert bare.eos_id is None
    with pytest.raises(UserError, match="no end token"):
        ensure_template(bare)


def test_roles_that_nobody_knows(tmp_path: Path) -> None:
    tokenizer = ensure_template(base("gpt2", tmp_path))
    for role in ("hero", "assistant<|im_end|>", "user\n", ""):
        with pytest.raises(UserError, match="the role must be one of system, developer, user"):
            render_chat(tokenizer, [{"role": role, "content": "나"}])
    with pytest.raises(UserError, match="must be system, user or assistant, not tool"):
        render_chat(tokenizer, [{"role": "tool", "content": "나"}])
