"""Decoding on a GPU by replaying one CUDA graph: a token costs one call instead of a hundred and more for each layer.

The graph works on memory of its own (`yeoul.infer.static_step`). A cache that comes from PyTorch is copied there once
and then is a view of it, so that whatever else is done with it (rows dropped, snapshots, further pieces of text) finds
its tensors and counters as PyTorch would have left them.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yeoul import runtime
from yeoul.infer.static_step import StaticStep, Unsupported, check, columns_needed, parts, ready, room
from yeoul.model.cache import Cache, KVCache, LayerCache, WindowCache
from yeoul.model.decoder import Decoder

WARM_UP = 3
"""Runs before recording: libraries get their workspaces, kernels are compiled."""


class GraphDecoder:
    """Decodes one token of every row of a batch, as `Decoder.forward` does with a cache, by a recorded step.

    It records when it first gets a cache, and again for more rows or a quarter of them, for twice the keys of softmax
    attention, for positions beyond the model's length (doubled), and when weights lie elsewhere than they did; those
    that change in place are seen.

    Args:
        model: on the device where it stays.
        record: False runs the step as it is, which is for tests; None records on a GPU.

    Raises:
        Unsupported: there is no static step of the model.
    """

    def __init__(self, model: Decoder, *, record: bool | None = None) -> None:
        check(model)
        self.model = model
        self.record = model.device.type == "cuda" if record is None else record
        self._step: StaticStep | None = None
        self._graph: Any = None  # torch.cuda.CUDAGraph
        self._logits = torch.empty(0)
        self._read: list[Tensor] = []  # by the graph, which knows only addresses
        self._weights: list[int] = []
        self._cache: weakref.ref[Cache] | None = None  # whose tensors are views of ours
        self._bound: list[tuple[dict[str, Any], str, Any]] = []
        self._length = self._rows = -1  # of that cache, as far as our counters know

    @property
    def recorded(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    @property
    def columns(self) -> int:
        """Keys of softmax attention that there is room for; 0 without such layers, and before the first token."""
        return 0 if self._step is None else self._step.columns

    def prepare(self, rows: int, columns: int = 0, end: int = 0) -> None:
        """Records before there is a cache, for at least so many rows, keys of softmax attention, and positions.

        Raises:
            Unsupported: the step cannot be recorded.
        """
        self._give_back()
        self._renew(rows, columns, end)

    def takes(self, cache: Cache) -> bool:
        """Whether it can go on from a cache; else PyTorch must."""
        return ready(cache, self.model.dtype)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) fp32 behind one token of each row, which `cache` has then taken in.

        Args:
            tokens: (B,) int64.
            cache: one that `takes` agrees to.

        Raises:
            Unsupported: the step cannot be recorded, for want of memory for instance; the cache is as it was.
        """
        self._check_positions(cache)
        if not self._holds(cache, len(tokens)):
            self._take(cache, len(tokens))
        step = self._step
        assert step is not None
        step.tokens[: len(tokens)].copy_(tokens)
        if self._graph is None:
            self._logits = step.run()
        else:
            self._graph.replay()
        for part in parts(cache.layers):
            _advance(part)
        cache.advance(None, 1)
        self._length = cache.length
        return self._logits[: len(tokens)].clone()

    def _check_positions(self, cache: Cache) -> None:
        """A table of positions has an end, and an index beyond it would stop the device."""
        config = self.model.config
        if config.positions in ("learned", "sinusoidal") and cache.length >= config.max_position_embeddings:
            last = int(cache.next_position.max()) + 1
            if last > config.max_position_embeddings:
                raise ValueError(f"{last} positions, but the model has {config.max_position_embeddings}")

    def _holds(self, cache: Cache, rows: int) -> bool:
        """Whether our tensors and counters are those of the cache, with room for one more token."""
        step = self._step
        return (
            step is not None
            and self._cache is not None
            and self._cache() is cache
            and rows == self._rows
            and cache.length == self._length < step.end
            and columns_needed(cache) <= step.columns
            and all(holder[name] is value for holder, name, value in self._bound)
        )

    def _take(self, cache: Cache, rows: int) -> None:
        """Makes a cache a view of our tensors, and records a step for it where there is none that fits."""
        step, columns = self._step, columns_needed(cache)
        before = None if self._cache is None else self._cache()
        if before is not None and before is not cache:
            self._give_back()
        if (
            step is None
            or not rows <= step.rows < 4 * rows
            or columns > step.columns
            or cache.length >= step.end
            or self._weights != _addresses(self.model)
        ):
            self._renew(rows, columns, cache.length + 1)
        self._bind(cache, rows)

    def _renew(self, rows: int, columns: int, end: int) -> None:
        """Another step, in place of the one that there is; tensors of the old one stay with whoever holds them."""
        self._step, self._graph, self._logits, self._read, self._bound = None, None, torch.empty(0), [], []
        end = room(max(self.model.config.max_position_embeddings, end))
        self._step = self._recorded(1 << (rows - 1).bit_length(), room(columns), end)
        self._weights = _addresses(self.model)

    def _recorded(self, rows: int, columns: int, end: int) -> StaticStep:
        """A step for so many rows, columns and positions; on a GPU it is recorded."""
        try:
            step = StaticStep(self.model, rows=rows, columns=columns, end=end)
        except RuntimeError as error:  # too little memory
            raise Unsupported(f"the step cannot be recorded: {error}") from error
        if self.record:
            self._graph, self._logits, self._read = recorded(step)
        return step

    def _bind(self, cache: Cache, rows: int) -> None:
        """Copies what is not ours yet, and puts views of our tensors in its place."""
        step, ours = self._step, {id(value) for _, _, value in self._bound}
        assert step is not None
        bound: list[tuple[dict[str, Any], str, Any]] = []
        with torch.inference_mode(False), torch.no_grad():  # views that may be written to in any mode
            for mine, theirs in zip(parts(step.layers), parts(cache.layers), strict=True):
                holder = vars(theirs)
                for name, tensor in mine.tensors().items():
                    given = holder[name]
                    if given is None or id(given) not in ours or len(given) != rows:
                        view = tensor[:rows]
                        _fill(view, given, theirs, name)
                        if given is None and name == "valid":  # none of its columns is padding, and it need not know
                            continue
                        holder[name] = view
                    bound.append((holder, name, holder[name]))
                if isinstance(mine, WindowCache) and isinstance(theirs, WindowCache):
                    if id(theirs.gates) not in ours or rows != self._rows:
                        views = {name: gate[:rows] for name, gate in mine.gates.items()}
                        for name, view in views.items():
                            view.copy_(theirs.gates[name])
                        theirs.gates = views
                    bound.append((holder, "gates", theirs.gates))
            step.count_from(cache)
        self._bound, self._cache, self._length, self._rows = bound, weakref.ref(cache), cache.length, rows

    def _give_back(self) -> None:
        """Leaves the cache that we hold with tensors of its own, before another takes its place."""
        with torch.inference_mode(False), torch.no_grad():
            for holder, name, value in self._bound:
                if holder[name] is not value:
                    continue
                if isinstance(value, Tensor):
                    holder[name] = value.clone()
                else:
                    holder[name] = {key: gate.clone() for key, gate in value.items()}
        self._bound, self._cache = [], None


def recorded(step: StaticStep) -> tuple[Any, Tensor, list[Tensor]]:
    """A step as a CUDA graph, the logits that it leaves, and what it reads, which has to be kept. Its memory is noise.

    Raises:
        Unsupported: it cannot be recorded.
    """
    try:
        with torch.cuda.device(step.model.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    step.run()
                with Read() as read:
                    step.run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = step.run()
    except RuntimeError as error:  # too little memory, or an operation that cannot be recorded
        raise Unsupported(f"the step cannot be recorded: {error}") from error
    return graph, logits, list(read.kept.values())


class Read(TorchDispatchMode):
    """Keeps what operations read and have not made: weights, and tables that others may drop from their caches."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and (place := x.untyped_storage().data_ptr()) not in self._made:
                self.kept.setdefault(place, x)
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (place := x.untyped_storage().data_ptr()) not in self.kept:
                self._made.add(place)
        return out


def _addresses(model: Decoder) -> list[int]:
    """Where a model's weights lie."""
    return [t.data_ptr() for t in (*model.parameters(), *model.buffers())]


def _fill(view: Tensor, given: Tensor | None, cache: LayerCache, name: str) -> None:
    """What a cache remembers under a name, into our tensor: of keys and values those columns that there are."""
    if given is None:
        view.fill_(name == "valid")  # of softmax attention without padding; else a state that has not begun
    elif isinstance(cache, KVCache):
        dim = 1 if name == "valid" else 2
        view.narrow(dim, 0, cache.length).copy_(given.narrow(dim, 0, cache.length))
        if name == "valid":
            view[:, cache.length :] = True
    else:
        view.copy_(given)


def _advance(part: LayerCache) -> None:
    """Moves a memory's counters behind a token that has been written."""
    if isinstance(part, KVCache):
        part.length += 1
    elif isinstance(part, WindowCache):
        part.pushed()
        part.clock = part.exact + part.length  # the step counts ages by columns


def graph_decoder_of(model: Decoder) -> GraphDecoder | None:
    """A decoder for a model on a GPU; None where PyTorch has to do it step by step, as with `YEOUL_NATIVE=0`."""
    if model.device.type != "cuda" or not runtime.native_allowed():
        return None
    try:
        return GraphDecoder(model)
    except Unsupported:
        return None
