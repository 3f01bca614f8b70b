"""Texts as tokens and back, and as vectors: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from yeoul.infer.texts import TextEmbedder
from yeoul.serve.errors import ApiError
from yeoul.serve.prompts import chat_prompt
from yeoul.serve.schema import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from yeoul.serve.served import ServedModel
from yeoul.text.chat import encode_written

MOST_TEXTS = 2048


def tokenize(body: TokenizeRequest, served: ServedModel) -> dict[str, Any]:
    """Ids of a text or of a conversation.

    Raises:
        ApiError: neither is given, or both.
    """
    tokenizer = served.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either a prompt or messages", param="prompt")
    if body.messages is not None:
        ids = list(chat_prompt(tokenizer, body.messages).ids)
    else:
        text = body.prompt or ""
        ids = encode_written(tokenizer, text) if body.parse_special else tokenizer.encode(text)
        ids = tokenizer.framing.prompt(ids) if body.add_special_tokens else ids
    limit = served.model.config.bounded_context or served.model.config.max_position_embeddings
    found: dict[str, Any] = {"count": len(ids), "max_model_len": limit, "tokens": ids}
    return {**found, "token_strs": [tokenizer.piece(i) for i in ids]} if body.return_token_strs else found


def detokenize(body: DetokenizeRequest, served: ServedModel) -> dict[str, Any]:
    """The text of ids, special tokens spelled out.

    Raises:
        ApiError: an id beyond the vocabulary.
    """
    size = served.tokenizer.vocab_size
    if body.tokens and max(body.tokens) >= size:
        raise ApiError(400, f"the vocabulary has {size:,} tokens", param="tokens")
    return {"prompt": served.tokenizer.decode(body.tokens, skip_special=False)}


def tokenizer_info(served: ServedModel) -> dict[str, Any]:
    """What a client must know to cut texts as the model does."""
    tokenizer = served.tokenizer
    name = lambda token: None if token is None else tokenizer.piece(token)  # noqa: E731
    return {
        "tokenizer_class": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": name(tokenizer.bos_id),
        "eos_token": name(tokenizer.eos_id),
        "pad_token": name(tokenizer.pad_id),
        "unk_token": name(tokenizer.unk_id),
        "add_bos_token": tokenizer.add_bos,
        "chat_template": tokenizer.chat_template,
        "model_max_length": served.model.config.bounded_context or served.model.config.max_position_embeddings,
        "fingerprint": tokenizer.fingerprint,
    }


def embeddings(body: EmbeddingRequest, name: str, embedder: TextEmbedder) -> dict[str, Any]:
    """Vectors of texts.

    Raises:
        ApiError: no text, too many of them, or ids instead of texts.
    """
    given = [body.input] if isinstance(body.input, str) else body.input
    if not given or len(given) > MOST_TEXTS:
        raise ApiError(400, f"give between 1 and {MOST_TEXTS:,} texts", param="input")
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) != len(given):
        raise ApiError(400, "texts are embedded, not ids", param="input")
    if not all(text.strip() for text in texts):
        raise ApiError(400, "a text is empty", param="input")
    vectors = embedder(texts).float().cpu().numpy()
    if body.dimensions is not None:
        if body.dimensions > vectors.shape[1]:
            raise ApiError(400, f"the vectors have {vectors.shape[1]:,} dimensions", param="dimensions")
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    tokens = sum(len(embedder.tokenizer.encode(text)) for text in texts)
    data = [
        {"object": "embedding", "index": index, "embedding": _coded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def _coded(vector: np.ndarray[Any, Any], form: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
