"""The memory behind a text as a file: read a book once, ask about it for ever.

A safetensors file with the tensors of a cache, the ids that were read, and in its header what model it is of. It is
read back only into that model: names, types and shapes must be those that its own cache has, so that a damaged or a
foreign file is refused before anything works on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from yeoul.errors import UserError
from yeoul.files import write_bytes
from yeoul.infer.generation import PREFILL_CHUNK, evaluating
from yeoul.model.cache import Cache, KVCache, LayerCache, WindowCache
from yeoul.model.decoder import Decoder

FORMAT = "yeoul-state-1"
IDS = "ids"
LONGEST_HEADER = 4_000_000


@dataclass(frozen=True, kw_only=True)
class KeptState:
    """What a model remembers of a text.

    Attributes:
        ids: of the text.
        cache: behind its last token, of one row; it stays as it is: go on with `snapshot()`.
        about: what whoever kept it wrote beside it, plain values.
    """

    ids: tuple[int, ...]
    cache: Cache
    about: dict[str, Any]


@torch.inference_mode()
def read_text(model: Decoder, ids: Sequence[int], about: dict[str, Any] | None = None) -> KeptState:
    """What a model remembers when it has read a text.

    Raises:
        UserError: the text is empty or longer than the model's context.
    """
    limit = model.config.bounded_context
    if not ids or (limit is not None and len(ids) >= limit):
        what = "the text is empty" if not ids else f"the text has {len(ids):,} tokens, and the context {limit:,}"
        raise UserError(what, fix="give another text")
    cache = model.new_cache(1)
    cache.expect(torch.tensor([len(ids)]))
    tokens = torch.tensor([ids], device=model.device)
    with evaluating(model):
        for start in range(0, len(ids), PREFILL_CHUNK):
            model.hidden(tokens[:, start : start + PREFILL_CHUNK], cache=cache)
    return KeptState(ids=tuple(ids), cache=cache, about=about or {})


def save_state(
    path: Path, cache: Cache, ids: Sequence[int], fingerprint: str, about: dict[str, Any] | None = None
) -> int:
    """Writes a file, whole or not at all; returns its bytes.

    Args:
        cache: of one row, which has read `ids` and nothing else.
        fingerprint: of the model and its tokenizer.
        about: plain values.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(cache, len(ids))}
    tensors[IDS] = torch.tensor(ids, dtype=torch.int32)
    header = {"format": FORMAT, "model": fingerprint, "about": json.dumps(about or {}, ensure_ascii=False)}
    content = to_bytes(tensors, header)
    write_bytes(path, content)
    return len(content)


def load_state(path: Path, model: Decoder, fingerprint: str) -> KeptState:
    """Reads a file back.

    Raises:
        UserError: no such file, a damaged one, or one of another model.
    """
    if not path.is_file():
        raise UserError("there is no such state", path, "check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError("the file holds no state of a model", path, "give one that Yeoul has saved")
            if header.get("model") != fingerprint:
                raise UserError("the state is of another model, adapter or tokenizer", path, "use it with its own")
            names = list(file.keys())
            if IDS not in names:
                raise _damaged(path)
            ids = file.get_tensor(IDS)
            _check_ids(ids, model, path)
            expected = dict(_tensors(_example(model), None))
            if set(names) - {IDS} != set(expected):
                raise _damaged(path)
            tensors = {}
            for name, like in expected.items():
                found = file.get_slice(name)
                if tuple(found.get_shape()) != _shape(name, like, len(ids)):
                    raise _damaged(path)
                tensors[name] = file.get_tensor(name)
                if tensors[name].dtype != like.dtype:
                    raise _damaged(path)
            about = json.loads(header.get("about", "{}"))
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(about, dict):
        raise _damaged(path)
    return KeptState(ids=tuple(ids.tolist()), cache=_restored(model, tensors, len(ids)), about=about)


def read_about(path: Path) -> tuple[dict[str, Any], int]:
    """What stands beside a state, and the number of its tokens; nothing else of the file is read.

    Raises:
        UserError: it holds no state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError("the file holds no state of a model", path, "give one that Yeoul has saved")
            about, tokens = json.loads(header.get("about", "{}")), file.get_slice(IDS).get_shape()[0]
    except (SafetensorError, OSError, ValueError, KeyError, IndexError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(about, dict):
        raise _damaged(path)
    return about, int(tokens)


def _damaged(path: Path) -> UserError:
    return UserError("the file of this state is damaged", path, "save the state again")


def _check_ids(ids: Tensor, model: Decoder, path: Path) -> None:
    size = model.config.vocab_size
    if ids.dtype != torch.int32 or ids.dim() != 1 or len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= size:
        raise _damaged(path)


def _parts(cache: Cache) -> Iterator[tuple[str, LayerCache]]:
    for number, layer in enumerate(cache.layers):
        for part, memory in enumerate(layer.parts()):
            yield f"{number}.{part}", memory


def _tensors(cache: Cache, length: int | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one row by name; keys and values of all positions only as far as the text goes."""
    for place, memory in _parts(cache):
        alone = memory if length is None else memory.lone(0, length)
        for name, tensor in alone.tensors().items():
            if not (isinstance(memory, KVCache) and name == "valid"):
                grows = "*" if isinstance(memory, KVCache) else ""
                yield f"{place}.{name}{grows}", tensor
        if isinstance(alone, WindowCache):
            for name, gate in alone.gates.items():
                yield f"{place}.gates.{name}", gate


def _shape(name: str, like: Tensor, length: int) -> tuple[int, ...]:
    """The shape of a tensor in the file of a text of so many tokens."""
    return (*like.shape[:2], length, *like.shape[3:]) if name.endswith("*") else tuple(like.shape)


@torch.inference_mode()
def _example(model: Decoder) -> Cache:
    """A cache of the model in which every tensor that it will ever have is there."""
    config = model.config
    longest = max(window + config.sinks + max(config.exact) for window in (config.window, config.sliding_window or 0))
    limit = config.bounded_context
    tokens = longest + 2 if limit is None else min(longest + 2, limit)
    cache = model.new_cache(1)
    model(torch.zeros(1, tokens, dtype=torch.int64, device=model.device), cache=cache, logits_to_keep=1)
    return cache


def _restored(model: Decoder, tensors: dict[str, Tensor], length: int) -> Cache:
    cache = model.new_cache(1)
    for place, memory in _parts(cache):
        own = {name.removeprefix(f"{place}."): tensor.to(model.device) for name, tensor in tensors.items()
               if name.startswith(f"{place}.")}  # fmt: skip
        if isinstance(memory, WindowCache):
            memory.sinks_full = True
            memory.gates = {name[6:]: tensor for name, tensor in own.items() if name.startswith("gates.")}
        for name, tensor in own.items():
            if not name.startswith("gates."):
                setattr(memory, name.removesuffix("*"), tensor)
    cache.layers = [layer.lone(0, length) for layer in cache.layers]
    cache.length = length
    cache.next_position = cache.next_position.new_full(cache.next_position.shape, length)
    return cache
