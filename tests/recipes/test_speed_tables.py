"""The speeds in the tables of a conversion are those of the models as people use them."""

import pytest
import torch

from yeoul.evaluate import speed
from yeoul.infer.native.binding import native_library
from yeoul.infer.native.decoder import NativeDecoder
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.linearize.evaluation import Evaluator


def tiny(attention: str) -> Decoder:
    return Decoder(
        ModelConfig(vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, window=8,
                    max_position_embeddings=512, attention=(attention,))
    ).eval()  # fmt: skip


@pytest.mark.skipif(native_library() is None, reason="no native library on this machine")
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_native_library_decodes_whatever_type_training_computed_in(monkeypatch, compute):
    steps: list[int] = []
    original = NativeDecoder.step

    def step(self, tokens, cache):
        steps.append(id(self.model))
        return original(self, tokens, cache)

    monkeypatch.setattr(NativeDecoder, "step", step)
    teacher, student = tiny("softmax"), tiny("hybrid")
    evaluator = Evaluator(teacher, student, tokenizer=None, batches=lambda: (), dtype=compute, say=lambda what: None)
    records = evaluator.speeds((32,))
    assert [record.model for record in records] == ["teacher", "converted"]
    # 8 steps and one before them in each of 7 turns, one turn before those, and 2 + 1 for warming up
    assert steps.count(id(teacher)) == steps.count(id(student)) == speed.decoded(8, 7) + 3
