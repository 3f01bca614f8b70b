"""Whatever a verb gives to a model whose texts begin with a token begins with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from folders import with_ends, write_small_folder
from yeoul import cli
from yeoul.model.decoder import Decoder
from yeoul.text.tokenizer import Tokenizer

LINES = [f"{n}. 강가에 작은 마을이 있었다. 아이들은 물가에서 {'뛰어 ' * (n % 7)}놀았다." for n in range(60)]
ROWS = ["--batch-size", "2", "--context", "32"]
VERBS = {
    "evaluate": ["evaluate", "MODEL", "--data", "TEXT", "--context", "32", "--json"],
    "evaluate, questions": ["evaluate", "MODEL", "--data", "TEXT", "--context", "1024", "--recall", "2", "--needle",
                            "--json"],
    "evaluate, documents": ["evaluate", "MODEL", "--data", "TEXT", "--context", "32", "--isolate-documents"],
    "pretrain": ["pretrain", "TEXT", "--tokenizer", "MODEL", "--preset", "1m", "--layers", "1", "--hidden-size", "32",
                 "--heads", "2", *ROWS, "--tokens", "256", "--val-fraction", "0.2", "--out", "OUT"],
    "linearize": ["linearize", "MODEL", "--data", "TEXT", *ROWS, "--tokens", "512", "--val-fraction", "0.2",
                  "--compare-tokens", "0", "--contexts", "16", "--out", "OUT"],
    "finetune": ["finetune", "MODEL", "--data", "TEXT", "--epochs", "1", *ROWS, "--out", "OUT"],
    "finetune, one text a row": ["finetune", "MODEL", "--data", "JSON", "--epochs", "1", *ROWS, "--out", "OUT"],
    "quantize": ["quantize", "MODEL", "--data", "TEXT", "--calibration-tokens", "256", "--eval-tokens", "128",
                 "--no-speed", "--out", "OUT"],
    "generate": ["generate", "MODEL", "강가에", "--max-tokens", "4"],
    "embed": ["embed", "MODEL", "--data", "TEXT", "--out", "OUT.npy"],
    "finetune embed": ["finetune", "MODEL", "--task", "embed", "--data", "PAIRS", "--epochs", "1",
                       "--batch-size", "4", "--out", "OUT"],
    "finetune classify": ["finetune", "MODEL", "--task", "classify", "--data", "LABELS", "--epochs", "1",
                          "--batch-size", "4", "--out", "OUT"],
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_small_folder(home / "MODEL", LINES, vocab_size=420, max_position_embeddings=1024)
    with_ends(home / "MODEL", before="<s>")
    (home / "TEXT.txt").write_text("\n\n".join(LINES), encoding="utf-8")
    rows = {
        "JSON": [{"text": " ".join(LINES[:20])}, *({"text": line} for line in LINES)],
        "PAIRS": [{"sentence1": one, "sentence2": two} for one, two in zip(LINES, LINES[1:], strict=False)],
        "LABELS": [{"text": line, "label": "ab"[n % 2]} for n, line in enumerate(LINES)],
    }
    for name, values in rows.items():
        lines = (json.dumps(value, ensure_ascii=False) for value in values)
        (home / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return home


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Every sequence that enters a model, but for the single tokens of decoding and for measurements of speed."""
    from yeoul.evaluate import speed

    found: list[list[int]] = []
    embed, measure, timing = Decoder.embed, speed.compare, [False]

    def watched(self: Decoder, input_ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        if input_ids.shape[1] > 1 and not timing[0]:
            for b, row in enumerate(input_ids.tolist()):
                places = list(range(len(row))) if positions is None else positions.expand_as(input_ids)[b].tolist()
                starts = [i for i, place in enumerate(places) if place == 0]
                ends = [*starts[1:], len(row)][: len(starts)]  # what goes on from a cache begins nothing
                found.extend(row[start:end] for start, end in zip(starts, ends, strict=True) if end - start > 1)
        return embed(self, input_ids, positions)

    def compare(*values: object, **named: object) -> object:
        timing[0] = True
        try:
            return measure(*values, **named)  # type: ignore[arg-type]
        finally:
            timing[0] = False

    monkeypatch.setattr(Decoder, "embed", watched)
    monkeypatch.setattr(speed, "compare", compare)
    yield found


@pytest.mark.parametrize("verb", VERBS)
def test_every_sequence_begins_as_the_model_expects(
    verb: str, home: Path, tmp_path: Path, given: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"MODEL": home / "MODEL", "TEXT": home / "TEXT.txt", "OUT": tmp_path / "out", "OUT.npy": tmp_path / "v.npy",
             **{name: home / f"{name}.jsonl" for name in ("JSON", "PAIRS", "LABELS")}}  # fmt: skip
    assert cli.main([str(names.get(word, word)) for word in VERBS[verb]]) == 0
    tokenizer = Tokenizer.load(home / "MODEL")
    begin = tokenizer.bos_id
    # rows of nothing but 0 are what memory and time are measured on
    assert given and all(row[0] == begin for row in given if any(row))
    assert not any(row[1] == begin for row in given)
    printed = capsys.readouterr()
    if verb.split()[0].rstrip(",") in ("pretrain", "linearize", "quantize", "finetune"):
        assert "begins with <s>." in printed.out + printed.err


def test_a_chat_template_without_the_begin_token_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it writes is what is trained."""
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    model = tmp_path / "model"
    shutil.copytree(home / "MODEL", model)
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    talk = {"messages": [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "그래"}]}
    (tmp_path / "talks.jsonl").write_text((json.dumps(talk) + "\n") * 8, encoding="utf-8")
    command = ["finetune", str(model), "--data", str(tmp_path / "talks.jsonl"), "--epochs", "1", "--val-fraction", "0"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "8 of 8 sequences lack <s>, because the chat template leaves it out." in capsys.readouterr().out
