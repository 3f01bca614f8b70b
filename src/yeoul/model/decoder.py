"""The decoder, top to bottom: ids -> embeddings -> blocks -> logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from yeoul.model.attention import AttentionContext, ProjectedAttention, SlidingAttention, SoftmaxAttention
from yeoul.model.attention_free import AttentionFree, make_attention_free
from yeoul.model.cache import Cache, LayerCache
from yeoul.model.config import ATTENTION_FREE, ModelConfig
from yeoul.model.layers import make_mlp, make_norm, sinusoidal_table
from yeoul.model.official import OfficialDiJiangAttention
from yeoul.model.quantized import QuantizedLinear
from yeoul.model.rotary import rotary_columns
from yeoul.model.state_updates.registry import STATE_UPDATES
from yeoul.ops.window import soft_cap


def make_attention(config: ModelConfig, layer: int) -> ProjectedAttention | AttentionFree:
    """The attention of one layer, or what stands in its place."""
    if config.attention[layer] in ATTENTION_FREE:
        return make_attention_free(config, layer)
    H, G, D = config.heads
    projections = dict(
        hidden_size=config.hidden_size, num_heads=H, num_kv_heads=G, head_dim=D,
        bias=config.attention_bias, output_bias=config.attention_output_bias,
        qk_norm=functools.partial(make_norm, config, D) if config.qk_norm else None,
        scale=config.attention_scale, softcap=config.attention_softcap, rope=config.rope_index(layer),
    )  # fmt: skip
    kind = config.attention[layer]
    if kind == "softmax":
        return SoftmaxAttention(**projections)  # type: ignore[arg-type]
    if kind == "sliding":
        sinks = config.sinks if config.sliding_sinks is None else config.sliding_sinks
        return SlidingAttention(window=config.sliding_window or config.window, sinks=sinks, **projections)
    if kind == "dijiang-official":
        return OfficialDiJiangAttention(length=config.max_position_embeddings, **projections)
    window, sinks = (config.window, config.sinks) if kind == "hybrid" else (0, 0)
    own = dict(window=window, sinks=sinks, exact=config.exact[layer], feature_map=config.feature_map,
               short_conv=config.short_conv)  # fmt: skip
    linear: ProjectedAttention = STATE_UPDATES[config.state_update](**projections, **own)
    return linear


class Block(nn.Module):
    """Residual block: attention, then MLP; in parallel for GPT-NeoX. Norms are named as in Llama and Gemma 2."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.placement = config.norm_placement
        if self.placement != "post":
            self.input_layernorm = make_norm(config)
        self.self_attn = make_attention(config, layer)
        if config.mlp != "none":
            self.post_attention_layernorm = make_norm(config)
        self.mlp = make_mlp(config)
        if self.placement == "sandwich":
            self.pre_feedforward_layernorm = make_norm(config)
        if self.placement != "pre":
            self.post_feedforward_layernorm = make_norm(config)
        self.parallel = config.parallel_residual

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None = None) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden)."""
        return self.after_attention(x, self.self_attn(self.attention_input(x), context, cache))

    def attention_input(self, x: Tensor) -> Tensor:
        """What attention is given, (B, T, hidden)."""
        return x if self.placement == "post" else self.input_layernorm(x)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block: adds what attention gave, (B, T, hidden), and the MLP."""
        if self.mlp is None:
            return x + attended
        if self.parallel:
            return x + attended + self.mlp(self.post_attention_layernorm(x))
        if self.placement == "pre":
            x = x + attended
            return x + self.mlp(self.post_attention_layernorm(x))
        x = x + self.post_attention_layernorm(attended)
        inner = x if self.placement == "post" else self.pre_feedforward_layernorm(x)
        return x + self.post_feedforward_layernorm(self.mlp(inner))


class Backbone(nn.Module):
    """Embeddings, blocks and final norm, under the names that transformers' Llama gives them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)


class Walk(Iterator[Block]):
    """A batch on its way through a decoder: an iterator over the blocks, from `Decoder.walk`.

        for block in walk:
            ...  # walk.hidden is what the block is given

    A block is run when the next is asked for, unless `advance` was called meanwhile. Several walks of one model go in
    step by `zip(*walks)`. Gradients are recorded or not as whoever asks has set it.

    Attributes:
        hidden: (B, T, hidden), what the block is given; behind the last, what the final norm is given.
        context: of the batch, for attention.
    """

    def __init__(self, blocks: Sequence[Block], hidden: Tensor, context: AttentionContext) -> None:
        self.hidden, self.context = hidden, context
        self._coming = iter(blocks)
        self._block: Block | None = None

    def __next__(self) -> Block:
        if self._block is not None:
            self.advance()
        self._block = next(self._coming)
        return self._block

    def advance(self, output: Tensor | None = None) -> Tensor:
        """Goes past the block: with its output, (B, T, hidden), where the caller has it, or else by running it."""
        if self._block is None:
            raise ValueError("the walk stands before no block")
        self.hidden = self._block(self.hidden, self.context) if output is None else output
        self._block = None
        return self.hidden


class Decoder(nn.Module):
    """A GPT: token ids (B, T) to logits (B, T, V)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.model = Backbone(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, initializer_range) weights, residual outputs smaller by sqrt(2 layers) (GPT-2), zero biases."""
        if self.device.type == "meta":
            return
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * self.config.num_layers) if residual else std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return list(self.model.layers)  # type: ignore[arg-type]

    @property
    def output_weight(self) -> Tensor:
        """(V, hidden): the unembedding, tied to the embedding or not; of a quantized one what it stands for."""
        table = self.output_table
        return table.dequantized(self.dtype) if isinstance(table, QuantizedLinear) else table.weight

    @property
    def output_parts(self) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`output_weight` as the base's own (V, hidden) and what an adapter adds to it: A (r, hidden) and B (V, r) of
        weight + B A, or None. Only these want gradients, and none of the whole table's size."""
        table: Any = self.output_table
        low = getattr(table, "low_rank", None)
        return (self.output_weight, None) if low is None else (table.unchanged, low)

    @property
    def output_table(self) -> nn.Embedding | nn.Linear | QuantizedLinear:
        """The module that holds the unembedding."""
        return self.model.embed_tokens if self.config.tie_embeddings else self.lm_head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights that are not quantized and not kept in fp32."""
        return self.model.norm.weight.dtype  # type: ignore[return-value]

    def num_parameters(self) -> int:
        """Parameters, tied ones once; quantized ones are counted as what they stand for."""
        low_bit = (m.in_features * m.out_features for m in self.modules() if isinstance(m, QuantizedLinear))
        return sum(p.numel() for p in self.parameters()) + sum(low_bit)

    def new_cache(self, batch_size: int = 1) -> Cache:
        """An empty cache for so many rows; give it to `forward` with each further piece of the text."""
        start = torch.zeros(batch_size, 1, dtype=torch.int64, device=self.device)
        return Cache([block.self_attn.new_cache() for block in self.layers], start)

    def attention_context(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        seq_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> AttentionContext:
        """Masks, positions and rotary tables for all layers. A mask without padding is dropped: it costs speed."""
        T, config = input_ids.shape[1], self.config
        if mask is not None:
            mask = mask.bool()
            if bool(mask.all()):
                mask = None
        if cache is not None:
            if seq_ids is not None:
                raise ValueError("packed sequences have no cache")
            positions = cache.advance(mask, T)
            end = cache.length
        elif positions is None and mask is not None:
            positions = (mask.long().cumsum(1) - 1).clamp_min(0)
            end = T
        else:
            end = T if positions is None else int(positions.max()) + 1
        rotary = []
        for rope in config.ropes:
            lengths = text_lengths(positions, seq_ids, cache, rope.kind) if rope.by_length else None
            rotary.append(rotary_columns(rope, positions, T, end, lengths, input_ids.device))
        return AttentionContext(mask=mask, seq_ids=seq_ids, rotary=tuple(rotary), positions=positions)

    def embed(self, input_ids: Tensor, positions: Tensor | None, end: int | None = None) -> Tensor:
        """(B, T, hidden): tokens, and positions where they are added.

        Args:
            input_ids: (B, T) int64.
            positions: (B or 1, T) int64; None means 0 ... T-1.
            end: larger than every position, where that is known; None looks.
        """
        x, config = self.model.embed_tokens(input_ids), self.config
        if config.embedding_scale != 1:
            x = x * torch.tensor(config.embedding_scale, dtype=x.dtype)  # rounded to the weights' type, as Gemma's is
        if config.positions in ("rotary", "none"):
            return x
        T = input_ids.shape[1]
        if end is None:
            end = T if positions is None else int(positions.max()) + 1
        if end > config.max_position_embeddings:
            raise ValueError(f"{end} positions, but the model has {config.max_position_embeddings}")
        if config.positions == "learned":
            table = self.model.embed_positions.weight
        else:  # embeddings are scaled as in Vaswani and others 2017, section 3.4, so that the table does not drown them
            x = x * math.sqrt(config.hidden_size)
            table = sinusoidal_table(config.max_position_embeddings, config.hidden_size, input_ids.device).to(x.dtype)
        return x + (table[:T] if positions is None else table[positions])

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        seq_ids: Tensor | None = None,
        cache: Cache | None = None,
        given: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, hidden); arguments as `forward`.

        Args:
            given: number of a block and what it is given, (B, T, hidden), where that is known: those before it are not
                run.
        """
        context = self.attention_context(input_ids, attention_mask, positions, seq_ids, cache)
        first, x = given or (0, self.embed(input_ids, context.positions))
        for i, block in enumerate(self.model.layers):
            if i < first:
                continue
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context, None if cache is None else cache.layers[i])
        return self.model.norm(x)

    def walk(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        seq_ids: Tensor | None = None,
    ) -> Walk:
        """A batch on its way through the blocks, for whoever looks at what is between them; arguments as `forward`."""
        context = self.attention_context(input_ids, attention_mask, positions, seq_ids)
        return Walk(self.layers, self.embed(input_ids, context.positions), context)

    def unembed(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> logits (..., V) in fp32."""
        table: Any = self.output_table
        product = getattr(table, "product", None)
        if product is not None:  # quantized, or with rows of an adapter: no table is made for it
            return self.cap(product(hidden)).float()
        return self.cap(torch.matmul(hidden, table.weight.to(hidden.dtype).T)).float()

    @property
    def logit_softcap(self) -> float | None:
        """Cap of the logits; None where the model has none."""
        return self.config.logit_softcap

    def cap(self, logits: Tensor) -> Tensor:
        """The soft cap of the logits, of any shape and dtype, where the model has one."""
        return logits if self.config.logit_softcap is None else soft_cap(logits, self.config.logit_softcap)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        seq_ids: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits (B, T, V) fp32.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 for tokens, 0 for padding on either side (with a cache: on the left).
            positions: (B, T) int64, position of each token in its own sequence; None follows mask and cache.
            seq_ids: (B, T) int64, packed sequences of a row that must not see one another; -1 is padding.
            cache: from `new_cache`; is appended to.
            logits_to_keep: only the last so many positions; 0 means all.
        """
        h = self.hidden(input_ids, attention_mask, positions=positions, seq_ids=seq_ids, cache=cache)
        return self.unembed(h[:, -logits_to_keep:])


def text_lengths(
    positions: Tensor | None, seq_ids: Tensor | None, cache: Cache | None, kind: str | None
) -> Tensor | None:
    """How long the text of each row or column is, for rotations that ask (`yeoul.model.rope`): (B or 1, T or 1) int64.

    Args:
        positions: (B or 1, T) of the call.
        seq_ids: (B, T) of packed sequences, each of which is a text.
        cache: with the columns of the call taken note of; what it was told of the texts counts (`Cache.expect`).
        kind: of the rotation.
    Returns:
        None where all texts are as long as the call.
    """
    if cache is not None:
        decided = cache.decided()
        return decided if kind == "longrope" else torch.maximum(decided, cache.next_position)
    if positions is None:
        return None
    if seq_ids is None:
        return positions.max(1, keepdim=True).values + 1
    places = seq_ids + 1  # padding is -1
    last = positions.new_zeros(len(places), int(places.max()) + 1)
    last = last.scatter_reduce(1, places, positions.expand_as(places), "amax")
    return last.gather(1, places) + 1


class _Uninitialized(TorchFunctionMode):
    """Leaves new parameters as they are: initialising those of the meta device imports a compiler, 1.4 s."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(config: ModelConfig) -> Decoder:
    """A decoder whose weights have shapes and no memory (the meta device): to be counted, checked or filled."""
    with torch.device("meta"), _Uninitialized():
        return Decoder(config)
