"""Weights to 8 or 4 bits: a trained model's linear layers, and its embeddings and head where asked for, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from yeoul.adapt.awq import scale_inputs
from yeoul.adapt.gptq import gptq
from yeoul.adapt.quant_statistics import TextStatistics, input_moments, output_moments, sites
from yeoul.adapt.quantize_config import QuantizationConfig
from yeoul.adapt.rounding import round_to_nearest
from yeoul.errors import UserError
from yeoul.model.decoder import Decoder
from yeoul.model.finite import check_finite
from yeoul.model.quantization import EMBEDDING, HEAD, check_shape
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear, refuse_quantized, replace_module
from yeoul.model.quantized_folder import candidates

FISHER_TOKENS = 8192
"""Of the text that says what a tied table's rows mean as embeddings: gradients cost three times what outputs do."""


@torch.no_grad()
def quantize_model(
    model: Decoder,
    config: QuantizationConfig,
    batches: Iterable[Tensor] | None = None,
    *,
    progress: Callable[[str], None] = lambda what: None,
) -> None:
    """Replaces the linear layers of a model, in place, by frozen ones of few bits.

    Args:
        model: in any floating-point type; norms, biases, feature maps and gates stay as they are, but for the norms
            and gates that "awq" scales.
        config: bits, groups, method, and what else is quantized.
        batches: (B, T) int64 ids of calibration text; methods other than "rtn" need them.
        progress: is told what is being done.

    Raises:
        UserError: the model is quantized already, a weight is NaN or infinite, its layers do not fit the groups, or
            the method has no text; then nothing is changed.
    """
    refuse_quantized(model, "quantized again")
    check_finite(model, None, "quantized")
    wanted = targets(model, config)
    for path in wanted:
        check_shape(_weight(model, path).shape[1], *_scheme(config, path))
    if config.method == "rtn":
        for path in wanted:
            _round(model, path, config)
        return
    ids = [*batches] if batches is not None else []
    if not ids:
        raise UserError(f"the method {config.method} needs text to calibrate with", fix='give some, or use "rtn"')
    _calibrated(model, config, wanted, ids, progress)


def _scheme(config: QuantizationConfig, path: str) -> tuple[int, int]:
    """Bits and group of the module at a path."""
    return config.table_scheme if path in (EMBEDDING, HEAD) else (config.bits, config.group)


def targets(model: Decoder, config: QuantizationConfig) -> list[str]:
    """Paths of the modules that are quantized, in the order of the computation."""
    tied = model.config.tie_embeddings
    table, head = config.embeddings or (config.head and tied), config.head and not tied
    left_out = {path for path, wanted in ((EMBEDDING, table), (HEAD, head)) if not wanted}
    plain = nn.Linear | nn.Embedding
    return [path for path, module, _ in candidates(model) if path not in left_out and isinstance(module, plain)]


def _calibrated(
    model: Decoder, config: QuantizationConfig, wanted: list[str], ids: list[Tensor], progress: Callable[[str], None]
) -> None:
    """From the embeddings to the head, each block with what comes before it quantized."""
    if EMBEDDING in wanted:
        progress("embeddings")
        _round(model, EMBEDDING, config, _table_moments(model, ids))
    text = TextStatistics(model, ids)
    for number, block in enumerate(text):
        progress(f"layer {number + 1} of {len(model.layers)}")
        places = sites(block)
        found = text.moments(block, [site.linears[0] for site in places])
        if config.method == "awq":  # before any of them is rounded: some give the inputs of others
            for site in places:
                found[site.linears[0]] = scale_inputs(block, site, found[site.linears[0]], config.bits, config.group)
        for site in places:
            for path in site.linears:
                _round(block, path, config, found[site.linears[0]])
    if HEAD in wanted:
        progress("head")
        _round(model, HEAD, config, text.output_moments())


def _table_moments(model: Decoder, ids: list[Tensor]) -> Tensor | None:
    """What a tied table has to give, as output and as embedding; None of a table that is only looked up."""
    if not model.config.tie_embeddings or not ids:
        return None
    few = list(_first_tokens(ids, FISHER_TOKENS))
    tokens, looked_at = (sum(batch.numel() for batch in batches) for batches in (ids, few))
    return output_moments(model, ids) + input_moments(model, few) * (tokens / looked_at)


def _first_tokens(ids: list[Tensor], tokens: int) -> Iterator[Tensor]:
    """The first rows of some batches, with so many tokens and at least one row."""
    for batch in ids:
        if tokens <= 0:
            return
        rows = max(1, tokens // batch.shape[1])
        yield batch[:rows]
        tokens -= batch[:rows].numel()


def _weight(model: nn.Module, path: str) -> Tensor:
    module: Any = model.get_submodule(path)
    weight: Tensor = module.weight.detach()
    return weight


def _round(model: nn.Module, path: str, config: QuantizationConfig, moments: Tensor | None = None) -> None:
    """A quantized module in the place of a linear layer or an embedding; `moments` are those of its inputs."""
    weight, (bits, group) = _weight(model, path), _scheme(config, path)
    if moments is None or config.method == "rtn":
        q, scale = round_to_nearest(weight, bits, group)
    elif config.method == "awq":
        q, scale = round_to_nearest(weight, bits, group, moments.diagonal())
    else:
        q, scale = gptq(weight, moments, bits, group)
    old: Any = model.get_submodule(path)
    kind = QuantizedEmbedding if isinstance(old, nn.Embedding) else QuantizedLinear
    bias = getattr(old, "bias", None)
    new = kind.of(q, scale, bits, bias)
    if isinstance(new, QuantizedEmbedding):
        new.dtype = weight.dtype
    if bias is not None:
        bias.requires_grad_(False)
    replace_module(model, path, new.train(old.training))
