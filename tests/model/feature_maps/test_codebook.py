"""The codebook map against its formulas; whole models of it are in tests/model/test_agreement.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import Alignment, convert, train_only_maps
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.attention import AttentionContext
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.feature_maps.base import make_feature_map
from yeoul.model.feature_maps.codebook import CodebookFeatureMap
from yeoul.model.feature_maps.config import FeatureMapConfig
from yeoul.model.state_updates.additive import DiJiangAttention

D, G, H, M = 8, 2, 4, 12


def made() -> CodebookFeatureMap:
    book = make_feature_map(D, G, FeatureMapConfig(name="codebook", features=M), None, H)
    assert isinstance(book, CodebookFeatureMap)
    generator = torch.Generator().manual_seed(1)
    for parameter in book.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return book


@torch.no_grad()
def test_features_equal_the_formulas() -> None:
    book = made()
    q, k = torch.randn(2, H, 5, D, dtype=torch.float64), torch.randn(2, G, 5, D, dtype=torch.float64)
    queries, keys = book(q), book.of_keys(k)
    assert queries.shape == (2, H, 5, M) and keys.shape == (2, G, 5, M) and keys.dtype == torch.float64
    part = {name: parameter.double() for name, parameter in book.named_parameters()}
    for b, h, t in ((0, 0, 0), (1, 3, 4), (1, 2, 2)):
        x = q[b, h, t] / D**0.25
        torch.testing.assert_close(queries[b, h, t], part["directions"][h] @ x + part["read_bias"][h])
    for b, g, t in ((0, 0, 0), (1, 1, 4)):
        x = k[b, g, t] / D**0.25
        code = int((part["assign"][g] @ x + part["assign_bias"][g]).argmax())
        wanted = torch.full((M,), -torch.inf, dtype=torch.float64)
        wanted[code] = part["key_direction"][g] @ x - part["key_bias"][g, code]
        torch.testing.assert_close(keys[b, g, t], wanted)
    step_q, step_k = book.of_step(q[:, :, :1].unflatten(1, (G, -1)).squeeze(3), k[:, :, :1])
    torch.testing.assert_close(step_q.flatten(1, 2), queries[:, :, 0])
    torch.testing.assert_close(step_k, keys[:, :, 0])


@torch.no_grad()
def test_a_state_holds_sums_of_values_by_code() -> None:
    """Attention over codes: sums of values, weighted, over sums of weights."""
    torch.manual_seed(0)
    layer = DiJiangAttention(32, H, G, feature_map=FeatureMapConfig(name="codebook", features=M))
    book = layer.feature_map
    assert isinstance(book, CodebookFeatureMap)
    torch.nn.init.normal_(book.key_direction)
    x = 2 * torch.randn(1, 15, 32)
    q, k, v = layer.project(x, AttentionContext())
    codes, weights = book.codes(k), book.of_keys(k).amax(-1).exp()
    reads = book(q).exp()
    for h in range(H):
        g = h // (H // G)
        wanted = []
        for t in range(15):
            sums, mass = torch.zeros(M, D), torch.zeros(M)
            for j in range(t + 1):
                sums[codes[0, g, j]] += weights[0, g, j] * v[0, g, j]
                mass[codes[0, g, j]] += weights[0, g, j]
            wanted.append(reads[0, h, t] @ sums / (reads[0, h, t] @ mass))
        given = layer.attend(q, k, v)[0, h]
        assert rms_ratio(given, torch.stack(wanted)) < 1e-5


def test_a_model_converts_aligns_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    teacher = make("softmax")
    student = convert(teacher, bare_conversion(window=4, exact=(3,), feature_map=FeatureMapConfig(name="codebook")))
    train_only_maps(student)
    learned = {n.rsplit(".", 1)[1] for n, p in student.named_parameters() if p.requires_grad}
    assert learned == {"directions", "read_bias", "key_direction", "key_bias"}
    ids = torch.randint(0, VOCAB, (2, 24))
    Alignment(teacher)(student, Batch(input_ids=ids, labels=ids)).mean().backward()
    save_model(student, tmp_path)
    again = load_model(tmp_path)
    assert again.config == student.config and again.config.exact == (3, 3)
    with torch.inference_mode():
        assert torch.equal(again(ids), student(ids))


def test_what_it_cannot_be() -> None:
    with pytest.raises(UserError, match="separate"):
        make_feature_map(D, G, FeatureMapConfig(name="codebook", separate=True))
    with pytest.raises(UserError, match="directions"):
        FeatureMapConfig(name="codebook", directions="dct")
