"""Pooling and classification heads: padding changes nothing, and transformers computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from models import KINDS, VOCAB, make, rms_ratio
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model
from yeoul.model.classifier_folder import (
    head_folder,
    load_head,
    load_sequence_classifier,
    save_classifier,
    save_head,
)
from yeoul.model.heads import (
    HEAD_POOLINGS,
    POOLINGS,
    STATES,
    ClassificationHead,
    Pooling,
    SequenceClassifier,
    TextVectors,
    Whitening,
    pool,
    text_hidden,
    text_states,
)
from yeoul.model.pooling_folder import load_vectors, save_vectors

LENGTHS = (11, 4, 1, 7)
LABELS = ["부정", "보통", "긍정"]


def rows() -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(1, VOCAB, (n,), generator=draw).tolist() for n in LENGTHS]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.zeros(4, 13, dtype=torch.int64), torch.zeros(4, 13, dtype=torch.int64)
    for number, row in enumerate(rows()):
        place = slice(0, len(row)) if side == "right" else slice(13 - len(row), 13)
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_changes_nothing(kind: str) -> None:
    model = make(kind)
    for pooling in POOLINGS:
        alone = torch.cat([pool(model.hidden(torch.tensor([row])), torch.ones(1, len(row)), pooling) for row in rows()])
        for side in ("left", "right"):
            ids, mask = padded(side)
            assert rms_ratio(pool(text_hidden(model, ids, mask), mask, pooling), alone) < 1e-5, (pooling, side)


def test_pooling_by_hand() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(hidden, mask, "last").tolist() == [[2, 3], [10, 11]]
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [9, 10]]
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [8, 9]]
    assert pool(hidden, mask, "max").tolist() == [[2, 3], [10, 11]]
    assert torch.allclose(pool(hidden, mask, "mean_sqrt_len"), torch.tensor([[2.0, 4], [18, 20]]) / 2**0.5)
    assert torch.allclose(pool(hidden, mask, "weightedmean"), torch.tensor([[4.0, 7], [28, 31]]) / 3)
    for pooling in ("mean", "last", "max", "weightedmean", "mean_sqrt_len"):  # but for a prompt of one token
        assert torch.equal(pool(hidden, mask, pooling, 1), torch.tensor([[2.0, 3], [10, 11]])), pooling
    assert pool(hidden, mask, "mean", 2).tolist() == pool(hidden, mask, "last", 2).tolist() == [[0, 0], [0, 0]]
    poisoned = torch.where(mask[..., None].bool(), hidden, torch.nan)  # what stands in padding takes no part
    assert torch.equal(pool(poisoned, mask, "mean"), pool(hidden, mask, "mean"))


def test_dropout_is_for_training_alone() -> None:
    head = ClassificationHead(8, LABELS, dropout=0.5)
    hidden, mask = torch.randn(2, 3, 8), torch.ones(2, 3)
    assert not torch.equal(head.train()(hidden, mask), head(hidden, mask))
    assert torch.equal(head.eval()(hidden, mask), head(hidden, mask))


# -- folders


SMALL = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(num_key_value_heads=2, tie_word_embeddings=False)),
    "mistral": ("Mistral", dict(num_key_value_heads=2, sliding_window=5)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(num_key_value_heads=2, head_dim=16)),
    "gemma": ("Gemma", dict(num_key_value_heads=1, head_dim=16)),
    "gemma-2": ("Gemma2", dict(num_key_value_heads=2, head_dim=16, sliding_window=6)),
    "gemma-3": ("Gemma3Text", dict(num_key_value_heads=2, head_dim=16, sliding_window=6)),
    "exaone-4": (
        "Exaone4",
        dict(num_key_value_heads=2, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
    ),
    "gpt2": ("GPT2", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
                          bos_token_id=1, eos_token_id=2, pad_token_id=0)),
    "neox": ("GPTNeoX", dict()),
}  # fmt: skip


def theirs_of(name: str) -> Any:
    """A random sequence classifier of transformers."""
    transformers = pytest.importorskip("transformers")
    family, options = FAMILIES[name]
    torch.manual_seed(3)
    values = options if family == "GPT2" else SMALL | options
    config = getattr(transformers, f"{family}Config")(**values, id2label=dict(enumerate(LABELS)))
    config._attn_implementation = "eager"
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_transformers_classifiers_are_read_and_written(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ids, mask = padded("right")
    wanted = theirs(ids, attention_mask=mask).logits
    ours = load_sequence_classifier(tmp_path / "theirs")
    assert ours.labels == LABELS
    assert rms_ratio(ours(ids, mask), wanted) < 1e-5

    save_classifier(ours, tmp_path / "ours", pad_id=0)
    again, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(theirs) and not any(report[key] for key in ("missing_keys", "unexpected_keys"))
    assert again.config.id2label == dict(enumerate(LABELS)) and again.config.label2id["긍정"] == 2
    assert again.config.architectures == [type(theirs).__name__]
    assert rms_ratio(again.eval()(ids, attention_mask=mask).logits, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["softmax", "classic", "learned", "dijiang-decay", "hybrid-sinks", "delta-hybrid"])
@pytest.mark.parametrize("pooling", HEAD_POOLINGS)
@torch.no_grad()
def test_a_classifier_comes_back_as_it_was(kind: str, pooling: Pooling, tmp_path: Path) -> None:
    model = SequenceClassifier(make(kind), ClassificationHead(64, LABELS, pooling)).eval()
    save_classifier(model, tmp_path, pad_id=0)
    again = load_sequence_classifier(tmp_path)
    assert again.labels == LABELS and again.head.pooling == pooling
    for side in ("left", "right"):
        assert torch.equal(again(*padded(side)), model(*padded(side)))
    described = json.loads((tmp_path / "config.json").read_text())
    plain = kind == "softmax" and pooling == "last"  # the only ones that transformers' classes compute
    assert (described["model_type"] == "llama") == plain
    bf16 = load_sequence_classifier(tmp_path, dtype=torch.bfloat16)
    assert bf16.head.score.weight.dtype == torch.bfloat16


def test_folders_that_are_none(tmp_path: Path) -> None:
    model = SequenceClassifier(make("softmax"), ClassificationHead(64, LABELS))
    save_classifier(model, tmp_path, pad_id=0)
    with pytest.raises(UserError, match=r"score\.weight"):
        load_model(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")

    def damaged(
        match: str, config: dict[str, Any] | None = None, weights: dict[str, torch.Tensor] | None = None
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config or described))
        save_file(tensors if weights is None else weights, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=match):
            load_sequence_classifier(tmp_path)

    damaged("does not name the 3 classes", described | {"id2label": {"0": "a"}})
    damaged("pooling cannot be 'max'", described | {"pooling": "max"})
    damaged("asks for 3 layers", described | {"num_hidden_layers": 3})
    damaged("is missing", weights={n: t for n, t in tensors.items() if n != "model.norm.weight"})
    damaged("does not belong", weights=tensors | {"model.other.weight": torch.ones(1)})
    damaged("has shape", weights=tensors | {"model.norm.weight": torch.ones(1)})
    damaged("does not fit the model", weights=tensors | {"score.weight": torch.ones(3, 5)})
    damaged("no classification head", weights={n: t for n, t in tensors.items() if n != "score.weight"})


@torch.no_grad()
def test_a_head_beside_an_adapter(tmp_path: Path) -> None:
    decoder, head = make("hybrid"), ClassificationHead(64, LABELS, "mean")
    save_head(head, tmp_path)
    again = load_head(tmp_path, decoder)
    hidden, mask = torch.randn(2, 3, 64), torch.ones(2, 3)
    assert head_folder(tmp_path) == tmp_path and again.labels == LABELS
    assert torch.equal(again(hidden, mask), head.eval()(hidden, mask))
    save_head(ClassificationHead(32, LABELS), tmp_path)
    with pytest.raises(UserError, match=r"shape \(3, 32\), the model asks for \(3, 64\)"):
        load_head(tmp_path, decoder)


def test_pooling_of_a_folder(tmp_path: Path) -> None:
    assert load_vectors(tmp_path, 64) is None
    config = make("softmax").config

    def pooling_of(folder: Path) -> tuple[str, ...]:
        found = load_vectors(folder, 64)
        assert found is not None and found.states == "last" and found.width(64) == 64
        return found.pooling

    for pooling in POOLINGS:
        save_vectors(tmp_path, config, TextVectors(pooling), modules=True)
        assert pooling_of(tmp_path) == (pooling,)
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"embedding_dimension": 64, "pooling_mode": "mean", "include_prompt": True}))
    assert pooling_of(tmp_path) == ("mean",)
    file.write_text(json.dumps({"word_embedding_dimension": 64, "pooling_mode": "median"}))
    with pytest.raises(UserError, match=r"'median'.*--pooling"):
        load_vectors(tmp_path, 64)
    chosen = load_vectors(tmp_path, 64, "last")
    assert chosen is not None and chosen.pooling == ("last",)


@pytest.mark.parametrize("kind", ["softmax", "learned", "hybrid"])
@torch.no_grad()
def test_states_of_padded_texts_are_those_of_each_alone(kind: str) -> None:
    model = make(kind).eval()
    entered: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    for side in ("left", "right"):
        ids, mask = padded(side)
        for row in range(len(ids)):
            alone = ids[row][mask[row].bool()][None]
            entered.clear()
            wanted = {"last": model.hidden(alone)[0], "embeddings": entered[0][0]}
            wanted["both"] = torch.cat((wanted["embeddings"], wanted["last"]), -1)
            for states in STATES:
                found = text_states(model, ids, mask, states)[row][mask[row].bool()]
                assert rms_ratio(found, wanted[states]) < 1e-5, (states, side)
                vectors = TextVectors("mean", states)
                pooled = vectors.pooled(model, ids, mask)[row]
                assert rms_ratio(pooled, wanted[states].mean(0)) < 1e-5 and len(pooled) == vectors.width(64)


def test_whitened_vectors_are_uncorrelated() -> None:
    torch.manual_seed(1)
    mixed = torch.randn(500, 16) @ torch.randn(16, 16) + 3
    white = Whitening(mixed, ridge=0.0)(mixed)
    assert torch.allclose(white.mean(0), torch.zeros(16), atol=1e-4)
    assert torch.allclose(white.T.cov(), torch.eye(16), atol=1e-3)
    # PCA's whitening is the same but for a rotation: the cosines are equal.
    exact = mixed.double() - mixed.double().mean(0)
    variances, directions = torch.linalg.eigh(exact.T.cov())
    other = exact @ (directions / variances.sqrt())
    cosines = [F.cosine_similarity(v[:-1].double(), v[1:].double(), dim=-1) for v in (white, other)]
    assert torch.allclose(cosines[0], cosines[1], atol=1e-4)
    flat = torch.cat((mixed, torch.ones(500, 3)), 1)  # numbers that never vary stay small
    assert Whitening(flat)(flat)[:, 16:].abs().max() < 1e-3


@torch.no_grad()
def test_a_whitening_is_saved_as_one_layer(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config, pooled = make("softmax").config, torch.randn(50, 128) @ torch.randn(128, 128)
    layer = Whitening(pooled)
    layer.linear.weight.add_(0.1 * torch.randn(128, 128))
    layer.linear.bias.add_(torch.randn(128))
    vectors = TextVectors("last", "both", [layer])
    save_vectors(tmp_path, config, vectors, modules=True)
    again = load_vectors(tmp_path, 64)
    assert again is not None and (again.pooling, again.states, again.width(64)) == (("last",), "both", 128)
    assert rms_ratio(again(pooled), vectors(pooled)) < 1e-5
    assert not (tmp_path / "modules.json").exists()  # sentence-transformers has no such states
    with pytest.raises(UserError, match="goes from 128 to 128 numbers, but gets 64"):
        load_vectors(tmp_path, 32)
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"states": "middle"}))
    with pytest.raises(UserError, match="the states 'middle' are not known"):
        load_vectors(tmp_path, 64)


def their_module(folder: Path, number: int, kind: str, **config: Any) -> dict[str, Any]:
    """An entry of modules.json, and its folder as sentence-transformers writes it."""
    path = f"{number}_{kind}" if number else ""
    if config:
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


def test_layers_of_sentence_transformers(tmp_path: Path) -> None:
    """Two layers, of which one has no bias, by hand."""
    draw = torch.Generator().manual_seed(3)
    W1, b1, W2 = (torch.randn(*shape, generator=draw) for shape in ((48, 64), (48,), (8, 48)))
    tanh, identity = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
    first = dict(in_features=64, out_features=48, bias=True, activation_function=tanh)
    second = dict(in_features=48, out_features=8, bias=False, activation_function=identity)
    modules = [
        their_module(tmp_path, 0, "Transformer"),
        their_module(tmp_path, 1, "Pooling", word_embedding_dimension=64, pooling_mode_mean_tokens=True),
        their_module(tmp_path, 2, "Dense", **first),
        their_module(tmp_path, 3, "Dense", **second),
        their_module(tmp_path, 4, "Normalize"),
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    save_file({"linear.weight": W1, "linear.bias": b1}, tmp_path / "2_Dense" / "model.safetensors")
    save_file({"linear.weight": W2}, tmp_path / "3_Dense" / "model.safetensors")
    vectors = load_vectors(tmp_path, 64)
    pooled = torch.randn(5, 64, generator=draw)
    assert vectors is not None and vectors.width(64) == 8
    assert torch.allclose(vectors(pooled), torch.tanh(pooled @ W1.T + b1) @ W2.T, atol=1e-5)

    # What we write of it is what was read.
    save_vectors(tmp_path / "ours", make("softmax").config, vectors, modules=True)
    assert json.loads((tmp_path / "ours" / "modules.json").read_text()) == modules
    assert json.loads((tmp_path / "ours" / "2_Dense" / "config.json").read_text()) == first
    assert json.loads((tmp_path / "ours" / "3_Dense" / "config.json").read_text()) == second
    assert torch.equal(load_file(tmp_path / "ours" / "3_Dense" / "model.safetensors")["linear.weight"], W2)

    def refused(match: str, *listed: dict[str, Any]) -> None:
        (tmp_path / "modules.json").write_text(json.dumps([*modules[:2], *listed]))
        with pytest.raises(UserError, match=match):
            load_vectors(tmp_path, 64)

    refused("'CNN' in place 2 is not supported", their_module(tmp_path, 9, "CNN"))
    refused("leads out of the folder", modules[2] | {"path": "../x"})
    refused("gets 64", modules[3])
    prelu = first | {"activation_function": "torch.nn.modules.activation.PReLU"}
    refused("PReLU' is not supported", their_module(tmp_path, 5, "Dense", **prelu))
    refused("setting 'init' of the layer", their_module(tmp_path, 8, "Dense", **first, init=1))
    refused(r"no model\.safetensors", their_module(tmp_path, 6, "Dense", **first))
    (tmp_path / "7_Dense").mkdir()
    save_file({"linear.weight": W2}, tmp_path / "7_Dense" / "model.safetensors")
    refused("the layer cannot be read", their_module(tmp_path, 7, "Dense", **first))
    for text, words in (
        ('[{"type": 3}]', "lists no modules with their types and paths"),
        ("[" * 10**5, "is nested too deeply"),
        ('[{"idx": ' + "9" * 6000 + "}]", "has a number of 6,000 digits"),
    ):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(UserError, match=rf"the file {words} \(.*modules\.json\)"):
            load_vectors(tmp_path, 64)
    (tmp_path / "modules.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(modules).encode())
    assert load_vectors(tmp_path, 64) is not None
