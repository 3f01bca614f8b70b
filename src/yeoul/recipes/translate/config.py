"""Settings of `yeoul.translate`."""

from __future__ import annotations

from dataclasses import dataclass

from yeoul.config import Settings
from yeoul.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TranslateConfig(Settings):
    """How systems are asked, and how they are scored."""

    shots: int = 4
    """Examples in each prompt, the same for all sentences."""
    shots_b: int | None = None
    """Examples for the second system; when not given, as many, but none where one model is compared with itself."""
    chat: bool = False
    """Ask by the model's chat template, examples as earlier turns; otherwise a pattern of lines is continued. An
    endpoint is always asked so."""
    chat_b: bool | None = None
    """The same for the second system; when not given, as the first."""
    source_language: str = "Korean"
    """What the prompt calls the language of the sources."""
    target_language: str = "English"
    """What the prompt calls that of the translations."""
    limit: int | None = None
    """Translate the first pairs only; all when not given."""
    max_tokens: int = 128
    """New tokens of a translation at most."""
    batch_size: int = 16
    """Sentences at a time, after which they are written down."""
    bleu_tokenize: str | None = None
    """sacrebleu's tokenizer for BLEU: 13a when not given; ko-mecab, ja-mecab, zh, char and others."""
    resamples: int = 1000
    """Resamples of the paired bootstrap."""
    timeout: float = 120.0
    """Seconds to wait for an answer of an endpoint."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("shots", self.shots, 0), ("shots-b", self.shots_b, 0), ("limit", self.limit, 1),
            ("max-tokens", self.max_tokens, 1), ("batch-size", self.batch_size, 1), ("resamples", self.resamples, 10),
        ):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"--{flag} is {value}, but must be at least {least}")
        if not 0 < self.timeout < 1e6:
            raise UserError(f"{self.timeout} is out of range", "--timeout")
        for flag, name in (("source", self.source_language), ("target", self.target_language)):
            if not name.strip() or "\n" in name:
                raise UserError("a language needs a name of one line", f"--{flag}-language")
