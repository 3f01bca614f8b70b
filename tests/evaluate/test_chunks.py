"""The loss of `yeoul evaluate` is that of transformers on the same chunks, each begun as the tokenizer begins texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from folders import with_ends, write_small_folder
from yeoul import cli

transformers = pytest.importorskip("transformers")

DOCUMENTS = ["강가에 작은 마을이 있었다. 아이들은 물가에서 놀았다.", "The quick brown fox.", "여울은 얕고 빠르다. " * 9]
CONTEXT = 24


@pytest.fixture(params=["<s>", ""], ids=["with a begin token", "without"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Large weights: much depends on what stands before."""
    write_small_folder(tmp_path / "model", DOCUMENTS, initializer_range=0.4)
    return with_ends(tmp_path / "model", before=request.param) if request.param else tmp_path / "model"


def losses(model: Any, chunk: list[int]) -> torch.Tensor:
    """What transformers loses at each token of a chunk but the first."""
    ids = torch.tensor([chunk])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    return -logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]


def theirs(folder: Path, documents: list[str]) -> tuple[float, int]:
    """Mean loss and number of tokens; documents are divided as in training text: <s> one </s> <s> two </s>."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    begin = tokenizer("")["input_ids"]
    stream = [token for text in documents for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    found = []
    if not begin:
        for start in range(0, len(stream) - 1, CONTEXT):
            found.append(losses(model, stream[start : start + CONTEXT + 1]))
    else:
        stream = stream[1:]  # a chunk gets its own
        while stream:
            stream = stream[1:] if stream[:1] == begin else stream
            chunk, stream = [*begin, *stream[:CONTEXT]], stream[CONTEXT:]
            own = losses(model, chunk)
            found.append(own[[token != begin[0] for token in chunk[1:]]])
    whole = torch.cat(found)
    return float(whole.mean()), whole.numel()


@pytest.mark.parametrize("count", [1, 3])
def test_losses_are_those_of_transformers(
    folder: Path, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [" ".join(DOCUMENTS)] if count == 1 else [text.strip() for text in DOCUMENTS]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    flags = ["--data", str(tmp_path / "text.jsonl"), "--context", str(CONTEXT), "--dtype", "float32"]
    assert cli.main(["evaluate", str(folder), *flags, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    loss, tokens = theirs(folder, documents)
    assert ours["tokens"] == tokens and ours["loss"] == pytest.approx(loss, rel=1e-5)
    begins = transformers.AutoTokenizer.from_pretrained(folder)("")["input_ids"] != []
    assert ours["begins_with"] == ("<s>" if begins else None)
    assert cli.main(["evaluate", str(folder), *flags]) == 0
    said = "Each sequence begins with <s>." if begins else "No begin token stands before a sequence."
    assert said in capsys.readouterr().out


def test_float32_is_float32_where_bfloat16_is_native(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in bfloat16 keeps its type there, unless products in float32 are asked for."""
    from yeoul import runtime

    write_small_folder(tmp_path / "model", DOCUMENTS, initializer_range=0.4)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    halves = {name: value.bfloat16() for name, value in weights.items()}
    save_file(halves, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text(" ".join(DOCUMENTS), "utf-8")
    monkeypatch.setattr(runtime, "computes_natively", lambda dtype, device: True)
    flags = ["--data", str(tmp_path / "text.txt"), "--context", str(CONTEXT), "--dtype", "float32", "--json"]
    assert cli.main(["evaluate", str(tmp_path / "model"), *flags]) == 0
    loss, _ = theirs(tmp_path / "model", [" ".join(DOCUMENTS)])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(loss, rel=1e-5)
