import math

import pytest
import torch
from torch import nn

from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError
from yeoul.evaluate import perplexity
from yeoul.evaluate.perplexity import score


class Toy(nn.Module):
    """The scorer's whole contract with a model: `hidden`, `unembed` and `output_weight`."""

    def __init__(self, vocab: int = 11, hidden: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(vocab, hidden)
        self.output_weight = nn.Parameter(torch.randn(vocab, hidden))
        self.seen_training: list[bool] = []

    def hidden(self, input_ids, positions=None, seq_ids=None):
        self.seen_training.append(self.training)
        return self.embedding(input_ids)

    def unembed(self, hidden):
        return hidden @ self.output_weight.T


def batch(rows: int = 3, length: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, :4] = IGNORE
    return Batch(input_ids=ids[:, :-1], labels=labels)


def reference(model: Toy, data: Batch) -> torch.Tensor:
    logits = model.unembed(model.hidden(data.input_ids)).double()
    return nn.functional.cross_entropy(logits.flatten(0, 1), data.labels.flatten(), reduction="none")


@pytest.mark.parametrize("chunk", [1, 25, 1 << 22])
def test_equals_cross_entropy_at_any_chunk(monkeypatch, chunk):
    monkeypatch.setattr(perplexity, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(perplexity, "LEAST_ROWS", 1)
    model, data = Toy(), batch()
    lengths = list(range(11))
    result = score(model, [data, data], lengths)
    valid = data.labels[data.labels != IGNORE]
    assert result.tokens == 2 * valid.numel()
    assert result.bytes == 2 * int(valid.sum())
    expected = (reference(model, data).sum() / valid.numel()).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(expected * valid.numel() / math.log(2) / int(valid.sum()), rel=1e-6)
    assert "by_position" not in result.as_dict()


def test_buckets_of_positions_double_and_add_up():
    model, data = Toy(), batch()
    result = score(model, [data], None, by_position=True)
    assert result.bits_per_byte is None and result.bytes is None
    assert [(b.first, b.last) for b in result.by_position] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)]
    assert sum(b.tokens for b in result.by_position) == result.tokens
    assert sum(b.tokens * b.loss for b in result.by_position) / result.tokens == pytest.approx(result.loss)
    third = reference(model, data).view(3, 9)[1:, 2:4].mean()
    assert result.by_position[2].loss == pytest.approx(float(third), rel=1e-6)


def test_positions_of_packed_rows_are_those_of_their_own_sequence():
    data = batch(1, 6)
    data = Batch(
        input_ids=data.input_ids,
        labels=data.labels.clamp(min=0),
        positions=torch.tensor([[0, 1, 2, 0, 1, 2]]),
        seq_ids=torch.tensor([[0, 0, 0, 1, 1, 1]]),
    )
    result = score(Toy(), [data], None, by_position=True)
    assert [(b.first, b.tokens) for b in result.by_position] == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("training", [True, False])
def test_scores_in_eval_mode_and_restores_the_mode(training):
    model = Toy().train(training)
    score(model, [batch()], None)
    assert model.seen_training == [False] and model.training is training


def test_nothing_to_score_is_a_user_error_and_restores_the_mode():
    model = Toy().train()
    empty = Batch(input_ids=torch.zeros(1, 3, dtype=torch.int64), labels=torch.full((1, 3), IGNORE))
    with pytest.raises(UserError, match="no token to score"):
        score(model, [empty], None)
    assert model.training


def test_hopeless_loss_gives_infinite_perplexity_not_an_error():
    model = Toy()
    with torch.no_grad():
        model.output_weight.mul_(1e6)
    assert score(model, [batch()], None).perplexity == math.inf
