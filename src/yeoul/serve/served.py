"""The models of a server, by name, each with its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.infer.engine import end_ids
from yeoul.infer.params import SamplingParams
from yeoul.infer.serving import Engine
from yeoul.serve.errors import ApiError
from yeoul.text.chat import ensure_template

if TYPE_CHECKING:
    from yeoul.infer.screen import Screen
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer


@dataclass(kw_only=True)
class ServedModel:
    """One model that answers.

    Attributes:
        name: by which clients ask for it.
        model, tokenizer: its own; the tokenizer has a chat template where there can be one.
        engine: decodes its answers.
        defaults: how answers are drawn where the request does not say; `max_tokens` is of a chat.
        screen: judges questions and answers; None without one.
        cache_bytes: of what one conversation holds: from the first token on, and what each token adds.
        created: seconds since 1970.
    """

    name: str
    model: Decoder
    tokenizer: Tokenizer
    engine: Engine
    defaults: SamplingParams = field(default_factory=SamplingParams)
    screen: Screen | None = None
    cache_bytes: tuple[int, int] = (0, 0)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        try:
            self.tokenizer = ensure_template(self.tokenizer)
        except UserError:  # it completes texts, and says in a chat why it cannot
            pass

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return tuple(sorted(end_ids(self.model, self.tokenizer)))

    def state_bytes(self, tokens: int) -> int:
        """Bytes that a conversation of so many tokens holds; windows count as full."""
        fixed, growing = self.cache_bytes
        return fixed + growing * tokens

    def described(self) -> dict[str, Any]:
        """As `GET /v1/models` lists it."""
        config, defaults = self.model.config, self.defaults
        kinds = dict.fromkeys(config.attention)
        meta = {
            "attention": " + ".join(kinds),
            "linear": config.is_linear,
            "parameters": self.model.num_parameters(),
            "context": config.bounded_context,
            "trained_context": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            "chat_template": self.tokenizer.chat_template is not None,
            "state_bytes": self.state_bytes(config.max_position_embeddings),
            "bytes_per_token": self.cache_bytes[1],
            "defaults": {
                "temperature": defaults.temperature, "top_p": defaults.top_p, "top_k": defaults.top_k,
                "min_p": defaults.min_p, "repetition_penalty": defaults.repetition_penalty,
                "max_tokens": defaults.max_tokens,
            },
        }  # fmt: skip
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "yeoul", "meta": meta}


class Models:
    """All models of a server; the first answers where none is named.

    Raises:
        UserError: two of one name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._by_name = {model.name: model for model in models}
        if len(self._by_name) != len(models):
            raise UserError("two models have the same name", fix="give them names: NAME=FOLDER")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def named(self, name: str | None) -> ServedModel:
        """The model of a request.

        Raises:
            ApiError: there is none of this name.
        """
        if name is None:
            return next(iter(self))
        if name not in self._by_name:
            known = ", ".join(list(self._by_name)[:20])
            message = f'there is no model "{name[:200]}" here; there is {known}'
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._by_name[name]
