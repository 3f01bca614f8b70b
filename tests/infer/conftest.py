"""A tokenizer of bytes and small random decoders: all that generation needs."""

from __future__ import annotations

import codecs
from collections.abc import Callable

import pytest
import torch

from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.text.framing import Framing


class ByteStream:
    """Like SentencePiece, leaves out a space at the beginning of a text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False

    def push(self, token: int) -> str:
        if token >= 256 or (not self._started and token == ord(" ")):
            return ""
        self._started = True
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class ByteTokenizer:
    """What the engine asks of a tokenizer: 256 bytes, <bos> 256, <eos> 257, <pad> 258."""

    vocab_size, bos_id, eos_id, pad_id, unk_id = 259, 256, 257, 258, None
    stop_ids, framing = (257,), Framing(separator=257)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [256] * bos + list(text.encode()) + [257] * eos

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def stream(self) -> ByteStream:
        return ByteStream()


@pytest.fixture(scope="session")
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Decoder]:
    """tiny("hybrid", vocab_size=300, ...) -> a random decoder with lively logits."""

    def build(kind: str = "softmax", **changes: object) -> Decoder:
        values: dict[str, object] = dict(
            vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48,
            max_position_embeddings=256, attention=(kind,), window=8, initializer_range=0.3,
            feature_map=FeatureMapConfig(features=16),
        )  # fmt: skip
        torch.manual_seed(3)
        return Decoder(ModelConfig(**{**values, **changes})).eval()  # type: ignore[arg-type]

    return build


class Scripted:
    """A stand-in for a decoder that says given tokens, whatever it reads; counts the tokens it read."""

    training = False

    def __init__(self, answers: list[list[int]], vocab_size: int = 259, context: int | None = None) -> None:
        self.answers, self.read = answers, 0
        self.config = ModelConfig(
            vocab_size=vocab_size, hidden_size=8, num_layers=1, num_heads=1,
            attention=("sliding" if context is None else "softmax",), max_position_embeddings=context or 16,
        )  # fmt: skip
        self.device = torch.device("cpu")
        self.calls: list[tuple[int, int]] = []

    def eval(self) -> Scripted:
        return self

    def train(self, mode: bool = True) -> Scripted:
        return self

    def new_cache(self, batch_size: int = 1) -> ScriptedCache:
        return ScriptedCache(list(range(batch_size)))

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor | None = None, *, cache: ScriptedCache) -> None:
        self.calls.append(tuple(ids.shape))  # type: ignore[arg-type]

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        cache: ScriptedCache,
        logits_to_keep: int,
    ) -> torch.Tensor:
        self.hidden(ids, mask, cache=cache)
        said = [self.answers[row][cache.step] for row in cache.rows]
        cache.step += 1
        return torch.nn.functional.one_hot(torch.tensor(said), self.config.vocab_size).float()[:, None] * 50


class ScriptedCache:
    def __init__(self, rows: list[int]) -> None:
        self.rows, self.step = rows, 0

    def expect(self, lengths: torch.Tensor) -> None:
        pass

    def reorder(self, index: torch.Tensor) -> None:
        self.rows = [self.rows[i] for i in index.tolist()]

    def nbytes(self) -> int:
        return 8 * len(self.rows)


@pytest.fixture(scope="session")
def says() -> Callable[..., Scripted]:
    """says("하나", "둘") -> a model whose rows say these texts, and then <eos>."""

    def build(*texts: str, context: int | None = None) -> Scripted:
        return Scripted([[*text.encode(), *[257] * 120] for text in texts], context=context)

    return build
