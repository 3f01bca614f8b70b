import pytest
import torch

from yeoul.errors import UserError
from yeoul.evaluate import speed
from yeoul.evaluate.speed import SpeedRecord, compare, lengthened, table
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder


def tiny(attention: str, **changes: object) -> Decoder:
    values = dict(
        vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, window=8,
        max_position_embeddings=512, attention=(attention,),
    )  # fmt: skip
    return Decoder(ModelConfig.from_dict({**values, **changes})).train()


def test_compares_in_turns_and_counts_the_cache():
    models = {"softmax": tiny("softmax"), "linear": tiny("dijiang"), "both": tiny("hybrid")}
    lines: list[str] = []
    records = compare(models, [128, 32], steps=2, turns=3, chunk=48, progress=lines.append)
    assert [(r.model, r.context) for r in records] == [(n, c) for c in (32, 128) for n in models]
    by = {(r.model, r.context): r for r in records}
    # 2 layers, keys and values, 2 heads of 8, fp32
    assert by["softmax", 128].cache_bytes == 128 * 2 * 2 * 2 * 8 * 4
    assert by["softmax", 128].cache_bytes == 4 * by["softmax", 32].cache_bytes
    assert by["linear", 128].cache_bytes == by["linear", 32].cache_bytes > 0
    assert by["both", 128].cache_bytes == by["both", 32].cache_bytes > by["linear", 32].cache_bytes
    for r in records:
        assert 0 < r.decode_low <= r.decode_tokens_per_second <= r.decode_high
        assert r.prefill_tokens_per_second > 0 and r.turns == 3 and r.steps == 2
        assert r.peak_bytes is None or r.peak_bytes >= 0
    assert len(lines) == 2 and all(model.training for model in models.values())


def test_turns_alternate_between_models(monkeypatch):
    order: list[str] = []
    original = speed.Runner.decode

    def decode(self, steps):
        if steps == 3:
            order.append(self.name)
        return original(self, steps)

    monkeypatch.setattr(speed.Runner, "decode", decode)
    compare({"a": tiny("softmax"), "b": tiny("dijiang")}, [8], steps=3, turns=2)
    assert order == ["a", "b", "a", "b", "b", "a"]  # unmeasured first turn, then forwards, then backwards


def test_cache_scales_with_the_batch():
    one, two = (compare({"m": tiny("softmax")}, [16], steps=1, turns=1, batch_size=n)[0] for n in (1, 2))
    assert two.cache_bytes == 2 * one.cache_bytes


def test_budget_stops_before_long_contexts():
    records = compare({"m": tiny("softmax")}, [8, 128], steps=1, turns=1, budget_seconds=0.0)
    assert [r.context for r in records] == [8]


def test_unreachable_contexts_and_empty_comparisons_are_user_errors():
    with pytest.raises(UserError, match="has 512 positions"):
        compare({"m": tiny("softmax")}, [510], steps=1, turns=1)
    with pytest.raises(UserError, match="nothing to compare"):
        compare({}, [8])
    with pytest.raises(UserError, match="at least 1"):
        compare({"m": tiny("softmax")}, [0])


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal"])
def test_lengthened_shares_weights_and_reaches_further(positions):
    model = tiny("softmax", positions=positions, max_position_embeddings=32).eval()
    longer = lengthened(model, 64)
    ids = torch.randint(0, 50, (1, 16))
    if positions != "learned":  # a learned table has to be a new one
        torch.testing.assert_close(longer(ids), model(ids), rtol=0, atol=0)
    assert longer(torch.randint(0, 50, (1, 60))).shape == (1, 60, 50)
    assert longer.output_weight.data_ptr() == model.output_weight.data_ptr()
    assert lengthened(model, 16) is model
    linear = tiny("dijiang")
    assert lengthened(linear, 10_000) is linear


def record(model: str, decode: float, cache: int) -> SpeedRecord:
    return SpeedRecord(
        model=model, context=2048, prefill_tokens_per_second=1000, decode_tokens_per_second=decode,
        decode_low=decode, decode_high=decode, cache_bytes=cache, peak_bytes=None, turns=1, steps=1,
    )  # fmt: skip


def test_table_gives_ratios_against_the_reference():
    text = table([record("old", 10, 3000), record("new", 42, 100)], reference="old")
    assert "4.20x" in text and "1/30.0" in text and "1.00x" in text
    assert "x" not in table([record("old", 10, 3000)]).splitlines()[1]
    assert "2.9 KiB" in text
