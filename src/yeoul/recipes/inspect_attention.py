"""`yeoul.inspect_attention`: where the heads of a model look on a text, as values and as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.config import Settings
from yeoul.errors import UserError
from yeoul.files import write_text
from yeoul.foreign_text import visible
from yeoul.recipes.command_line import command_line
from yeoul.recipes.options import Say, silent
from yeoul.report.content import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yeoul.evaluate.attention_weights import HeadStatistics, HeadSteps, LayerWeights
    from yeoul.model.decoder import Decoder
    from yeoul.report.attention_page import AttentionPage, LayerMap
    from yeoul.text.token_labels import TokenLabel
    from yeoul.text.tokenizer import Tokenizer

    Loadable = str | Path | tuple[Decoder, Tokenizer | None]
    """A folder, a run, a GGUF file, or an id on the hub; or what `yeoul.load` gave."""

TEACHER = "teacher"
"""In place of a model's name: the one that the other was linearized from."""
LONGEST_SHOWN = 1000
"""Characters of a text that stands in the command line on the page."""
MOST_WEIGHTS = 2**25
"""Weights of both models together: each is a byte of the page before it is deflated, and ten in memory."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Settings):
    """What is looked at."""

    max_tokens: int = 256
    """Tokens that are looked at; longer texts are cut, and fewer are taken where the page would grow too large."""
    layers: str = "all"
    """Layers that are looked at: all, or numbers with commas; the first is 0."""
    head: str | None = None
    """Head of MODEL that is explained step by step, as LAYER.HEAD, for example 3.1; both are counted from 0."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"--max-tokens is {self.max_tokens}, but must be at least 1")
        self.numbers()
        self.explained()

    def numbers(self) -> set[int] | None:
        """Numbers of the layers; None for all."""
        if self.layers == "all":
            return None
        parts = [part.strip() for part in self.layers.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UserError(f"{self.layers!r} is neither all nor numbers of layers", "--layers", 'such as "0,5,11"')
        return {int(part) for part in parts}

    def explained(self) -> tuple[int, int] | None:
        """Layer and head of `head`."""
        if self.head is None:
            return None
        layer, point, head = self.head.partition(".")
        if not (point and layer.isdecimal() and head.isdecimal()):
            raise UserError(f"{self.head!r} is no head", "--head", "give LAYER.HEAD, such as 3.1")
        return int(layer), int(head)


@dataclass(frozen=True, kw_only=True)
class ModelAttention:
    """The heads of one model on the text.

    Attributes:
        name: of the model.
        layers: its layers' weights, those that were asked for.
        statistics: of each of these layers, of each head.
    """

    name: str
    layers: list[LayerWeights]
    statistics: list[list[HeadStatistics]]


@dataclass(frozen=True, kw_only=True)
class InspectResult:
    """Where the heads look.

    Attributes:
        text_tokens: tokens of the whole text, begin token included.
        ids: those that are looked at.
        tokens: what they are shown as.
        models: MODEL, and the one that it is compared with.
        steps: of the head that is explained.
        note: why the text is cut; None where it is not.
        command: the command line for the same; "" where a model came from memory, or for long texts.
    """

    text_tokens: int
    ids: tuple[int, ...]
    tokens: list[TokenLabel]
    models: list[ModelAttention]
    steps: HeadSteps | None
    note: Text | None
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Figures for JSON; the maps are in `models`."""
        return {
            "text_tokens": self.text_tokens,
            "tokens": [str(token) for token in self.tokens],
            "models": [
                {
                    "model": model.name,
                    "layers": [
                        {
                            "layer": layer.layer, "kind": layer.kind, "state_update": layer.state_update,
                            "window": layer.window, "sinks": layer.sinks, "exact": layer.exact,
                            "heads": [head.as_dict() for head in heads],
                        }
                        for layer, heads in zip(model.layers, model.statistics, strict=True)
                    ],
                }
                for model in self.models
            ],
        }  # fmt: skip

    def html(self) -> str:
        """The page, complete in itself."""
        from yeoul.report.attention_page import render_attention

        return render_attention(_page(self))

    def save(self, path: str | Path) -> Path:
        """Write the page; a file that is there is replaced."""
        path = Path(path).expanduser()
        write_text(path, self.html())
        return path


def inspect_attention(
    model: Loadable,
    text: str,
    config: InspectConfig | None = None,
    *,
    against: Loadable | None = None,
    device: str = "auto",
    say: Say | None = None,
) -> InspectResult:
    """Look at the attention of every head of a model while it reads a text.

    For softmax these are the attention weights; for layers with a state, those that they imply, see
    `yeoul.evaluate.attention_weights`.

    Args:
        model: a folder, a run, a GGUF file, or an id on the hub; or what `yeoul.load` gave.
        text: what it reads; the begin token of its texts is put before it.
        config: what is looked at; None for the defaults.
        against: a second model with the same tokenizer, such as the teacher of a linearized one; "teacher" is the model
            that the run of a linearized one was made from.
        device: "auto", "cpu", "cuda" or "cuda:N"; models that are loaded stay where they are.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no such model, no tokenizer or two different ones, an empty text, no such layer or head.
    """
    run = _Inspection(model, text, config or InspectConfig(), against, device, say or silent)
    return run.result()


class _Inspection:
    """One call."""

    def __init__(
        self, model: Loadable, text: str, config: InspectConfig, against: Loadable | None, device: str, say: Say
    ) -> None:
        from yeoul.text.tokenizer import without_surrogates

        runtime.set_threads()
        if not text:
            raise UserError("the text is empty", "--text")
        if against == TEACHER and not isinstance(model, tuple) and not Path(TEACHER).exists():
            against = _teacher_of(model)
        self.given = [model] if against is None else [model, against]
        self.text, self.config, self.device, self.say = without_surrogates(text), config, device, say

    def result(self) -> InspectResult:
        """Both models, one after the other, so that only one of those that are loaded here is in memory."""
        from yeoul.evaluate.attention_weights import model_weights, statistics
        from yeoul.text.token_labels import token_labels

        ids: list[int] = []
        fingerprint, note, labels, whole = "", None, [], 0
        models: list[ModelAttention] = []
        steps = None
        for number, given in enumerate(self.given):
            name = "model" if isinstance(given, tuple) else _short(given)
            decoder, tokenizer = self._loaded(given)
            if number == 0:
                ids = tokenizer.framing.prompt(tokenizer.encode(self.text))
                whole, fingerprint = len(ids), tokenizer.fingerprint
                length, note = self._length(whole, decoder)
                ids = ids[:length]
                labels = token_labels(tokenizer, ids)
                self._check_head(decoder)
            elif tokenizer.fingerprint != fingerprint:
                raise UserError(
                    "the two models have different tokenizers", f"--against {name}",
                    "give two that read the same tokens, such as a linearized model and its teacher",
                )  # fmt: skip
            decoder.config.check_context(len(ids), "--max-tokens")
            self.say(f"Reading {len(ids):,} tokens with {name} ...")
            layers, found = self._weights(model_weights, decoder, ids, explain=number == 0)
            steps = found if number == 0 else steps
            models.append(
                ModelAttention(name=name, layers=layers, statistics=[statistics(layer) for layer in layers])
            )  # fmt: skip
            del decoder
        if len(models) == 2 and models[0].name == models[1].name:
            models = [
                ModelAttention(name=f"{m.name} ({i})", layers=m.layers, statistics=m.statistics)
                for i, m in enumerate(models, 1)
            ]
        return InspectResult(
            text_tokens=whole, ids=tuple(ids), tokens=labels, models=models, steps=steps, note=note,
            command=self._command(),
        )  # fmt: skip

    def _loaded(self, given: Loadable) -> tuple[Decoder, Tokenizer]:
        from yeoul.recipes.loading import load
        from yeoul.recipes.model_folder import ModelFolder

        if isinstance(given, tuple):
            decoder, tokenizer = given
        else:
            low_bit = ModelFolder.open(given).quantization is not None  # its kernels have a type of their own
            decoder, tokenizer = load(given, device=self.device, dtype="auto" if low_bit else "float32")
        if tokenizer is None:
            raise UserError("the model has no tokenizer, so it can read no text", _short(given))
        return decoder, tokenizer

    def _weights(
        self, model_weights: Any, decoder: Decoder, ids: list[int], *, explain: bool
    ) -> tuple[list[LayerWeights], HeadSteps | None]:
        import torch

        wanted, head = self.config.numbers(), self.config.explained() if explain else None
        if wanted is not None:
            there = decoder.config.num_layers
            if max(wanted) >= there:
                raise UserError(f"layer {max(wanted)} is not there: the model has {there}", "--layers", "count from 0")
            wanted |= set() if head is None else {head[0]}
        found: tuple[list[LayerWeights], HeadSteps | None] = model_weights(
            decoder, torch.tensor(ids), layers=wanted, head=head
        )
        return found

    def _check_head(self, decoder: Decoder) -> None:
        head = self.config.explained()
        layers, heads = decoder.config.num_layers, decoder.config.heads[0]
        if head is not None and (head[0] >= layers or head[1] >= heads):
            what = f"the model has {layers} layers with {heads} heads each, and no head {self.config.head}"
            raise UserError(what, "--head", "both are counted from 0")

    def _length(self, whole: int, decoder: Decoder) -> tuple[int, Text | None]:
        """Tokens that are looked at, and a sentence where these are not all."""
        wanted = self.config.numbers()
        layers = decoder.config.num_layers if wanted is None else len(wanted)
        maps = len(self.given) * layers * decoder.config.heads[0]
        room = max(16, int((2 * MOST_WEIGHTS / maps) ** 0.5))
        bounds = [
            (self.config.max_tokens, "--max-tokens", "--max-tokens"),
            (
                room,
                "the size of the page; fewer --layers leave room for more",
                "페이지 크기 제한, --layers를 줄이면 더 볼 수 있음",
            ),
        ]
        if (longest := decoder.config.bounded_context) is not None:
            bounds.append((longest, "the model's positions", "모델의 위치 수"))
        most, why, korean = min(bounds, key=lambda bound: bound[0])
        if whole <= most:
            return whole, None
        return most, Text(
            f"The text has {whole:,} tokens, of which the first {most:,} are shown ({why}).",
            f"텍스트는 토큰 {whole:,}개이며, 그 가운데 처음 {most:,}개만 보입니다({korean}).",
        )

    def _command(self) -> str:
        first, *others = self.given
        if any(isinstance(given, tuple) for given in self.given) or len(self.text) > LONGEST_SHOWN:
            return ""
        against = str(others[0]) if others else None
        return command_line("inspect", str(first), settings=self.config, text=self.text, against=against)


def _teacher_of(model: str | Path) -> str:
    """What the run of `yeoul linearize` that made a model says it was made from."""
    from yeoul.config import read_yaml
    from yeoul.recipes.model_folder import ModelFolder

    run = ModelFolder.open(model).top
    said = run / "config.yaml"
    named = read_yaml(said).get("model") if (run / "linearize.json").is_file() and said.is_file() else None
    if not isinstance(named, str):
        raise UserError("this is not the folder of a linearization, so its teacher is not known", model, "name it")
    return named


def _short(given: Loadable) -> str:
    from yeoul.recipes.model_folder import model_name

    return "model" if isinstance(given, tuple) else model_name(given)


def _page(result: InspectResult) -> AttentionPage:
    from yeoul.report.attention_page import AttentionPage, ModelMaps, Steps

    extra = _beside(result.models)
    models = [
        ModelMaps(
            name=model.name,
            layers=[
                _layer_map(layer, heads, extra[m].get(layer.layer, []))
                for layer, heads in zip(model.layers, model.statistics, strict=True)
            ],
        )
        for m, model in enumerate(result.models)
    ]
    steps = None
    if result.steps is not None:
        s = result.steps
        steps = Steps(
            layer=s.layer, head=s.head, q=s.q.numpy(), k=s.k.numpy(), v=s.v.numpy(), products=s.products.numpy(),
            scale=s.scale, softcap=s.softcap, weights=s.weights.numpy(), total=s.total.numpy(), output=s.output.numpy(),
        )  # fmt: skip
    return AttentionPage(
        tokens=[(token.text, token.piece, token.special) for token in result.tokens], models=models, steps=steps,
        notes=[] if result.note is None else [result.note], command=visible(result.command),
    )  # fmt: skip


def _layer_map(layer: LayerWeights, heads: Sequence[HeadStatistics], extra: Sequence[dict[str, float]]) -> LayerMap:
    from yeoul.report.attention_page import LayerMap

    values = [head.as_dict() for head in heads]
    for head, more in zip(values, extra, strict=False):
        head |= more
    own = None
    if layer.value_taps is not None:
        size = layer.value_taps.abs()
        own = float((size[..., 0] / size.sum(-1).clamp_min(1e-30)).mean())
    return LayerMap(
        layer=layer.layer, kind=layer.kind, weights=layer.weights.numpy(), part=layer.part.numpy(), statistics=values,
        state_update=layer.state_update, window=layer.window, sinks=layer.sinks, exact=layer.exact, own_tap=own,
    )  # fmt: skip


def _beside(models: Sequence[ModelAttention]) -> list[dict[int, list[dict[str, float]]]]:
    """What two models' heads say of one another, for each model by layer: how alike the maps are; and how much of a
    softmax head lies in the other's window, and beyond its window and sinks."""
    from yeoul.evaluate.attention_weights import overlap, shares_by_place

    extra: list[dict[int, list[dict[str, float]]]] = [{} for _ in models]
    if len(models) != 2:
        return extra
    for m, model in enumerate(models):
        others = {layer.layer: layer for layer in models[1 - m].layers}
        for layer in model.layers:
            other = others.get(layer.layer)
            if other is None or other.weights.shape != layer.weights.shape:
                continue
            found = [{"overlap": value} for value in overlap(layer.weights, other.weights)]
            if layer.kind == "softmax" and other.window:
                places = shares_by_place(layer.weights, other.window, other.sinks)
                for h, head in enumerate(found):
                    head |= {"near": places["window"][h], "beyond": places["beyond"][h]}
            extra[m][layer.layer] = found
    return extra
