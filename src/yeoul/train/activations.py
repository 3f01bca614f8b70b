"""What one block of a model keeps in memory for its gradient, counted on the block itself.

Which tensors autograd keeps differs with the kind of attention, the feature map, the norms, the dtype, what is
trained, and the version of torch, so that a formula would hold for one of them. A block is run once instead, forward
and backward, over one row of the length that training will have, and every tensor that comes and goes is counted. That
takes the memory of one row in one block, and as many blocks as there are different ones.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yeoul.model.decoder import Block, Decoder


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Bytes that one row takes in one block, and those that any number of rows takes.

    Attributes:
        kept: of each row from its forward pass to its backward pass, what the block gives included.
        backward: of each row beside that while its gradient is made, at most; gradients of weights not counted.
        forward: of each row without gradients, at most.
        copies: of weights in the type of the products, kept with the rest however many rows there are.
        tensors: of each tensor that is kept, for each row.
        passing: of each tensor that the forward pass makes and lets go.
    """

    kept: int
    backward: int
    forward: int
    copies: int = 0
    tensors: tuple[int, ...] = ()
    passing: tuple[int, ...] = ()


class LiveBytes(TorchDispatchMode):
    """Counts the tensors that are made within it, for as long as somebody holds them.

    What an operation takes within itself is not seen.

    Attributes:
        now: bytes at this moment.
        peak: bytes at the worst moment since the last `reset`.
        made: bytes of each tensor that was made since then.

    Args:
        known: tensors that were there before; their memory does not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.made: list[int] = []
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be left alone by the compiler it would have to be imported, which takes seconds

    def reset(self) -> None:
        """Forget the worst moment and what was made."""
        self.peak = self.now
        self.made = []

    @property
    def alive(self) -> list[int]:
        """Bytes of each tensor that is there."""
        return list(self._alive.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen.add(key)
        self._alive[key] = size
        self.made.append(size)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive.pop(key, None)
        self.now -= size


def block_costs(
    model: Decoder,
    context: int,
    *,
    packed: bool = False,
    dtype: torch.dtype | None = None,
    attention_alone: bool = False,
) -> list[BlockCost]:
    """The cost of each of a model's blocks, those that are alike counted once.

    Args:
        model: as it will be trained: with its adapters, and what is trained marked by `requires_grad`.
        context: positions of a row.
        packed: whether rows hold several sequences that do not see one another, or padding.
        dtype: in which autocast computes products; None and float32 for no autocast.
        attention_alone: only of the attention, on inputs that want no gradient.
    """
    known: dict[tuple[object, ...], BlockCost] = {}
    result = []
    with _undisturbed(model):
        for number, block in enumerate(model.layers):
            key = _likeness(model, number, block)
            if key not in known:
                known[key] = _block_cost(model, block, context, packed, dtype, attention_alone)
            result.append(known[key])
    return result


def _likeness(model: Decoder, number: int, block: Block) -> tuple[object, ...]:
    """Blocks for which this is the same cost the same."""
    parameters = tuple((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in block.named_parameters())
    return model.config.attention[number], model.config.rope_index(number), parameters


@contextmanager
def _undisturbed(model: Decoder) -> Iterator[None]:
    """The model in training mode; what dropout draws here is put back."""
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.enable_grad():
            yield
    finally:
        model.train(was_training)


def _block_cost(
    model: Decoder, block: Block, context: int, packed: bool, dtype: torch.dtype | None, attention_alone: bool
) -> BlockCost:
    narrow = dtype if dtype is not None and dtype != torch.float32 else None
    block = _wide_where_trained(block)
    one = _counted(model, block, 1, context, packed, narrow, attention_alone)
    if narrow is None:
        return one
    # Autocast makes copies of the weights, once: the second row tells them from what a row takes.
    two = _counted(model, block, 2, context, packed, narrow, attention_alone)
    kept = max(0, two.kept - one.kept)
    return replace(
        one, kept=kept, backward=max(0, two.backward - one.backward), forward=max(0, two.forward - one.forward),
        copies=max(0, one.kept - kept),
    )  # fmt: skip


def _wide_where_trained(block: Block) -> Block:
    """The block with what is trained in fp32, as training makes it."""
    if all(p.dtype.itemsize >= 4 for p in block.parameters() if p.requires_grad):
        return block
    block = copy.deepcopy(block)
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return block


def _counted(
    model: Decoder, block: Block, rows: int, context: int, packed: bool, narrow: torch.dtype | None,
    attention_alone: bool,
) -> BlockCost:  # fmt: skip
    """Of so many rows together."""
    device = model.device
    ids = torch.zeros(rows, context, dtype=torch.int64, device=device)
    norm = block.post_attention_layernorm if block.placement == "post" else block.input_layernorm
    attention = model.attention_context(ids, seq_ids=ids if packed else None)
    dtype = next(norm.parameters()).dtype
    x = torch.randn(rows, context, model.config.hidden_size, dtype=dtype, device=device)
    x.requires_grad_(not attention_alone)
    run = (lambda: block.self_attn(x, attention)) if attention_alone else (lambda: block(x, attention))
    wanted = [p for p in (x, *block.parameters()) if p.requires_grad]
    there = [*block.parameters(), *block.buffers(), x, ids, *(t for pair in attention.rotary for t in pair)]
    live = LiveBytes(there)
    with live, torch.autocast(device.type, narrow, enabled=narrow is not None):
        with torch.no_grad():
            run()
        forward = live.peak - live.now
        before, there_already = live.now, live.alive  # a mask that it keeps is there once for all blocks
        live.reset()
        y = run()
        kept, tensors, made = live.now - before, Counter(live.alive), Counter(live.made)
        live.reset()
    if not y.requires_grad:
        return BlockCost(kept=0, backward=0, forward=forward)
    tensors -= Counter(there_already)
    with live:
        found = torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
    own = sum(g.untyped_storage().nbytes() for g, p in zip(found, wanted, strict=True) if g is not None and p is not x)
    return BlockCost(
        kept=kept, backward=max(0, live.peak - before - kept - own), forward=forward,
        tensors=tuple(tensors.elements()), passing=tuple((made - tensors).elements()),
    )  # fmt: skip
