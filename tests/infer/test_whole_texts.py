"""Vectors and classes of texts around which the tokenizer puts tokens: those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from folders import with_ends, write_small_folder
from yeoul import load
from yeoul.data.text_batches import dropped
from yeoul.infer.texts import TextClassifier, TextEmbedder, encode_texts
from yeoul.model.classifier_folder import save_classifier
from yeoul.model.heads import ClassificationHead, Pooling, SequenceClassifier, TextVectors
from yeoul.model.pooling_folder import load_vectors
from yeoul.model.vector_settings import Reading

transformers = pytest.importorskip("transformers")

TEXTS = ["강가에 작은 마을이 있었다.", " ".join(["The quick brown fox jumps over the lazy dog."] * 4), "가"]
ENDS = {"end": ("", "</s>"), "padding for an end": ("", "<pad>"), "both": ("<s>", "</s>"), "begin": ("<s>", ""),
        "neither": ("", "")}  # fmt: skip


@pytest.fixture(params=ENDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    before, after = ENDS[request.param]
    write_small_folder(tmp_path, TEXTS, initializer_range=0.3)
    return with_ends(tmp_path, before=before, after=after) if before or after else tmp_path


def theirs(kind: Any, folder: Path, text: str, longest: int) -> Any:
    """What their model of a kind gives for one text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)["input_ids"]
    with torch.no_grad():
        return kind.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=ids)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("longest", [64, 9])
def test_vectors(folder: Path, pooling: Pooling, longest: int) -> None:
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    assert tokenizer is not None
    embedder = TextEmbedder(model, tokenizer, TextVectors(pooling), Reading(normalize=False))
    found = embedder.embed(TEXTS, context=longest)
    for text, vector in zip(TEXTS, found, strict=True):
        states = theirs(transformers.AutoModel, folder, text, longest).last_hidden_state[0]
        wanted = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(vector, wanted, rtol=1e-4, atol=1e-5)


def test_classes(folder: Path, tmp_path: Path) -> None:
    """Their classifiers look at the last token that is not the one for padding, whatever stands behind it."""
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    assert tokenizer is not None
    head = ClassificationHead(model.config.hidden_size, ["a", "b", "c"])
    target = tmp_path / "classifier"
    save_classifier(SequenceClassifier(model, head), target, pad_id=tokenizer.pad_id)
    tokenizer.save(target)
    found = TextClassifier(SequenceClassifier(model, head), tokenizer).logits(TEXTS)
    for text, logits in zip(TEXTS, found, strict=True):
        wanted = theirs(transformers.AutoModelForSequenceClassification, target, text, 64).logits[0]
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("listed", [False, True])
def test_the_mean_is_one_way_more_only_where_sentence_transformers_takes_it(listed: bool, tmp_path: Path) -> None:
    """A description that names one way and says nothing of the mean; alone it means that way."""
    folder = tmp_path / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}), encoding="utf-8")
    if listed:
        kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    vectors = load_vectors(tmp_path, 32)
    assert vectors is not None and vectors.pooling == (("mean", "last") if listed else ("last",))


def test_what_was_cut_is_counted_by_text(tmp_path: Path) -> None:
    write_small_folder(tmp_path, TEXTS)
    with_ends(tmp_path, before="<s>", after="</s>")
    _, tokenizer = load(tmp_path, device="cpu")
    assert tokenizer is not None
    length = len(tokenizer.encode(TEXTS[0]))
    for longest, cut in ((length + 2, 0), (length + 1, 1)):
        rows, count = encode_texts(tokenizer, [TEXTS[0], ""], longest)
        assert count == cut and len(rows[0]) == longest
        assert rows[0][0] == tokenizer.bos_id and rows[0][-1] == tokenizer.eos_id
        assert rows[1] == [tokenizer.bos_id, tokenizer.eos_id]


def test_word_dropout_leaves_out_words_only() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        kept = dropped([1, 2, 7, 7, 7, 7, 3], 0.9, generator, (2, 1)).tolist()
        assert kept[:2] == [1, 2] and kept[-1] == 3 and set(kept[2:-1]) <= {7}
