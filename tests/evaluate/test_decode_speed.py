"""Decoding at positions that nobody read up to: what is in the caches, what a step gives, and what is left out."""

from __future__ import annotations

import pytest
import torch

from yeoul.evaluate import decode_speed
from yeoul.evaluate.compare_table import _speed  # the table's part alone

# a cache that is filled without reading has no other way in
from yeoul.evaluate.decode_speed import decode_speeds, fill
from yeoul.evaluate.speed import Runner
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder


def tiny(attention: str, **changes: object) -> Decoder:
    torch.manual_seed(0)
    values = dict(
        vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, window=8,
        max_position_embeddings=512, attention=(attention,),
    )  # fmt: skip
    return Decoder(ModelConfig.from_dict({**values, **changes}))


def test_caches_are_as_large_as_if_all_had_been_read() -> None:
    models = {
        "softmax": tiny("softmax"), "linear": tiny("dijiang"), "both": tiny("hybrid", state_update="delta"),
        "sliding": tiny("sliding", sliding_window=300),
    }  # fmt: skip
    found = decode_speeds(models, (2000, 64), steps=1, turns=2)
    assert [(r.position, r.model) for r in found.records] == [(p, n) for p in (64, 2000) for n in models]
    assert not found.left_out and all(0 < r.low <= r.tokens_per_second <= r.high for r in found.records)
    for name, model in models.items():
        for position in (64, 2000):
            cache = model.new_cache(1)
            with torch.inference_mode():
                for start in range(0, position, 512):
                    ids = torch.zeros(1, min(512, position - start), dtype=torch.int64)
                    decode_speed.lengthened(model, 2100)(ids, cache=cache)
            record = found.at(name, position)
            assert record is not None and record.cache_bytes == cache.nbytes(), (name, position)
    assert all(model.training for model in models.values())


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal"])
def test_what_is_decoded_stands_at_the_position_behind_all(positions: str) -> None:
    """Up to a position that was read whole, nothing is repeated: the step is that of the model."""
    model = tiny("softmax", positions=positions, initializer_range=0.2).eval()
    runner = Runner(name="m", model=model, batch_size=1)
    assert fill(runner, 200, 4, None, seed=3) is None
    ids = torch.randint(50, (1, 200), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        runner.decode(2)
        expected = ids
        for _ in range(4):
            expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), dim=1)
    assert runner.cache is not None and runner.cache.length == 203
    assert torch.equal(runner.token, expected[:, -1:])  # type: ignore[arg-type]


def test_what_does_not_fit_is_left_out_and_said_to_be() -> None:
    models = {"teacher": tiny("softmax"), "converted": tiny("hybrid")}
    # 2 layers, keys and values, 2 heads of 8, fp32: 256 bytes a position
    found = decode_speeds(models, (64, 4096), steps=1, turns=1, memory=1_000_000)
    assert [(r.model, r.position) for r in found.left_out] == [("teacher", 4096)]
    assert "KiB of memory is free" in found.left_out[0].reason and found.at("converted", 4096)
    text = _speed(found)
    assert "Not measured: teacher at 4,096" in text.replace("\n", " ") and max(map(len, text.split("\n"))) <= 100

    found = decode_speeds(models, (64, 128), steps=1, turns=1, budget_seconds=0.0)
    assert {r.position for r in found.records} == {64}
    assert [(r.model, r.position) for r in found.left_out] == [("teacher", 128), ("converted", 128)]
    assert "0 s of 0 s is left" in found.left_out[0].reason
