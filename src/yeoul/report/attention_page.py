"""Maps of attention weights as one self-contained HTML page: an overview of all heads, then one head in detail.

The weights travel in 8 bits each: the square root of each over the head's largest, in 255 steps, of which the negative
weights of a head, where it has any, get as many as they span; the lower triangle of each map alone, deflated.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from yeoul.report.content import Text, Words
from yeoul.report.page import rendered

EXACT = 4
"""Number of the exact pairs among the parts of a map."""
CHANNELS = 8
"""Numbers of a query, key, value or output that the steps of a head show."""


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """The weights of one layer.

    Attributes:
        layer: its number, the first is 0.
        kind: "softmax", "sliding", "hybrid", "dijiang" ...
        weights: (H, T, T) fp32, 0 above the diagonal.
        part: (H, T, T) uint8, what pays each: 0 nothing, 1 softmax over everything, 2 window, 3 sinks, 4 exact pairs,
            5 state.
        statistics: of each head, by name: numbers, and `shares` by part.
        state_update, window, sinks, exact: of the layer.
        own_tap: share of its own token in a value that a short convolution has mixed; None without one.
    """

    layer: int
    kind: str
    weights: np.ndarray
    part: np.ndarray
    statistics: Sequence[dict[str, Any]]
    state_update: str | None = None
    window: int = 0
    sinks: int = 0
    exact: int = 0
    own_tap: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelMaps:
    """The layers of one model, in order."""

    name: str
    layers: Sequence[LayerMap]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One head of the first model from queries and keys to its output; arrays as in `HeadSteps` of the same names."""

    layer: int
    head: int
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    products: np.ndarray
    scale: float
    softcap: float | None
    weights: np.ndarray
    total: np.ndarray
    output: np.ndarray


@dataclass(frozen=True, kw_only=True)
class AttentionPage:
    """What the page says.

    Attributes:
        tokens: of the text: what is shown, the piece ("2/3", or "") of its character, whether it is special.
        models: one or two, of the same tokens.
        steps: of one head of the first model.
        notes: sentences under the title, such as that the text is cut.
        command: the command line that makes the page; "" where there is none.
    """

    tokens: Sequence[tuple[str, str, bool]]
    models: Sequence[ModelMaps]
    steps: Steps | None = None
    notes: Sequence[Words] = ()
    command: str = ""


def render_attention(page: AttentionPage) -> str:
    """The page as text. Tokens are others' words: they travel as JSON, and the script puts them in as text."""
    from markupsafe import Markup

    templates = resources.files("yeoul.report").joinpath("templates")
    style, *scripts = (
        templates.joinpath(name).read_text(encoding="utf-8")
        for name in ("attention.css", "attention.js", "attention_steps.js")
    )
    names = " · ".join(model.name for model in page.models)
    heads = sum(len(layer.weights) for layer in page.models[0].layers)
    return rendered(
        "attention.html.j2",
        title=Text(f"Attention of {names}", f"{names}의 어텐션"),
        words=_words(page, heads),
        notes=[*page.notes, *_conversions(page)],
        command=page.command,
        data=page_data(page),
        style=Markup(style),
        script=Markup("\n".join(scripts)),
    )


def page_data(page: AttentionPage) -> dict[str, Any]:
    """What the page's script reads, as plain values."""
    return {
        "tokens": [{"text": text, "piece": piece, "special": special} for text, piece, special in page.tokens],
        "models": [_model_data(model) for model in page.models],
        "steps": None if page.steps is None else _steps_data(page.steps),
    }


def _words(page: AttentionPage, heads: int) -> Text:
    tokens, layers = len(page.tokens), len(page.models[0].layers)
    return Text(
        f"Where {layers} layers with {heads} heads look while they read {tokens:,} tokens. Each row of a map is a "
        "token that asks, each column one that is looked at; the darker a point, the larger the weight of its value in "
        "what the head puts out.",
        f"층 {layers}개의 헤드 {heads}개가 토큰 {tokens:,}개를 읽으면서 어디를 보는지 나타냅니다. "
        "지도의 행은 묻는 토큰, 열은 바라보는 토큰이며, 진할수록 그 토큰의 값이 헤드의 출력에서 큰 가중치를 갖습니다.",
    )


def _conversions(page: AttentionPage) -> list[Text]:
    """What must be known of layers that are no softmax."""
    layers = [layer for model in page.models for layer in model.layers]
    notes = []
    if any(layer.state_update is not None or layer.kind == "dijiang-official" for layer in layers):
        notes.append(
            Text(
                "A layer with a state has no attention weights of its own. Shown are those that it implies: the "
                "coefficient of every past value in its output, which times the values gives exactly that output. They "
                "need not sum to 1, and those of the delta rule may be negative (red).",
                "상태를 쓰는 층에는 어텐션 가중치가 따로 없습니다. 여기서는 층이 함의하는 가중치, 곧 지난 값 "
                "하나하나가 출력에 들어가는 계수를 보여 줍니다. 이 계수를 값에 곱해 더하면 층의 출력과 정확히 "
                "같습니다. 합이 1이 아닐 수 있고, 델타 규칙에서는 음수(빨간색)가 될 수 있습니다.",
            )
        )
    taps = [layer.own_tap for layer in layers if layer.own_tap is not None]
    if taps:
        least, most = 100 * min(taps), 100 * max(taps)
        share = f"{least:.0f}–{most:.0f}" if most - least > 1 else f"{least:.0f}"
        notes.append(
            Text(
                "A short convolution has mixed each value with those of the tokens just before it, and the weights are "
                f"those of the mixed values: {share} % of such a value is its own token's.",
                "짧은 합성곱이 각 값을 바로 앞 토큰들의 값과 섞으며, 가중치는 섞인 값에 대한 것입니다. "
                f"섞인 값에서 자기 토큰이 차지하는 비율은 {share}%입니다.",
            )
        )
    return notes


def _model_data(model: ModelMaps) -> dict[str, Any]:
    blocks: list[bytes] = []
    layers = []
    at = 0
    for layer in model.layers:
        row, column = np.tril_indices(layer.weights.shape[-1])
        values = layer.weights[:, row, column].astype(np.float32)  # (H, pairs)
        ranges = [_range(v) for v in values]
        block = b"".join(_eight_bits(v, *r) for v, r in zip(values, ranges, strict=True))
        has_exact = bool((layer.part == EXACT).any())
        if has_exact:
            block += np.packbits(layer.part[:, row, column].ravel() == EXACT, bitorder="little").tobytes()
        layers.append(
            {
                "layer": layer.layer, "kind": layer.kind, "heads": len(values), "update": layer.state_update,
                "window": layer.window, "sinks": layer.sinks, "exact": layer.exact, "hasExact": has_exact, "at": at,
                "ranges": ranges,
                "statistics": [_rounded(head) for head in layer.statistics],
            }
        )  # fmt: skip
        at += len(block)
        blocks.append(block)
    return {"name": model.name, "layers": layers, "weights": _deflated(b"".join(blocks))}


def _range(values: np.ndarray) -> tuple[float, float, int]:
    """The largest weight, the size of the least, 0 where none is negative, and the code of 0."""
    largest, least = (float(f"{max(0.0, float(x)):.6g}") for x in (values.max(), -values.min()))
    if not least:
        return largest, 0.0, 0
    roots = largest**0.5, least**0.5
    return largest, least, min(254, max(1, round(255 * roots[1] / sum(roots))))


def _eight_bits(values: np.ndarray, largest: float, least: float, zero: int) -> bytes:
    """Codes: `zero` plus the root of a weight over the largest in 255 - zero steps, or less that of a negative one."""
    root = np.sqrt(np.abs(values) / np.where(values < 0, least, largest or 1.0))
    steps = np.rint(root * np.where(values < 0, -zero, 255 - zero))
    return np.clip(zero + steps, 0, 255).astype(np.uint8).tobytes()


def _steps_data(steps: Steps) -> dict[str, Any]:
    first = [x[:, :CHANNELS] for x in (steps.q, steps.k, steps.v, steps.output)]
    arrays = [*first, steps.products, steps.weights, steps.total]
    return {
        "layer": steps.layer, "head": steps.head, "scale": steps.scale, "softcap": steps.softcap,
        "size": steps.q.shape[1], "channels": first[0].shape[1],
        "numbers": _deflated(b"".join(np.ascontiguousarray(x, dtype="<f4").tobytes() for x in arrays)),
    }  # fmt: skip


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers to four significant digits."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        rounded = float(f"{value:.4g}") if isinstance(value, float) else value
        found[name] = _rounded(value) if isinstance(value, dict) else rounded
    return found
