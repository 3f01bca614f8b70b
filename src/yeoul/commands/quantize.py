"""`yeoul quantize`: a model's weights in 8 or 4 bits, and what that costs and gains."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.files import only_writer, write_json
from yeoul.safe_json import read_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from yeoul.adapt.quantize import QuantizationConfig
    from yeoul.data.batch import Batch
    from yeoul.data.windows import TextStream
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

CONTEXT = 512
"""Longest sequence that is calibrated or scored with."""
ROWS = 8
"""Sequences at once."""
STEPS, TURNS = 8, 5
"""Of decoding, when speeds are compared."""
RECORD = "quantize.json"
"""In the result's folder: what it was made from, and its scores or that there are none."""


@dataclass(frozen=True)
class Config:
    """Quantize a model's weights to 8 or 4 bits, and compare it before and after.

    Linear layers are quantized, and embeddings and output layer on request; norms, biases, feature maps and gates stay
    as they are. Every command opens the result, and adapters can be trained on it, but they cannot be merged into it,
    and it cannot be linearized or exported as GGUF. It is written before it is scored, so it survives an interruption
    of the scoring.
    """

    model: Place
    """Model: a Hugging Face folder, a run's folder, or an id on the hub; softmax or linearized."""
    _: KW_ONLY
    bits: Literal[8, 4] = 8
    """Bits per weight."""
    group_size: Literal[32, 64, 128] | None = None
    """Inputs that share a scale; when not given, all inputs of an output with 8 bits, and 64 with 4."""
    method: Literal["gptq", "awq", "rtn"] = "gptq"
    """gptq: each weight's error is compensated by the ones after it, using calibration text; awq: important channels
    are scaled up before rounding, using the same text; rtn: round to nearest, without text."""
    data: Place | None = None
    """Calibration text: a file, a folder, a hub data set or "builtin"; when not given, the training text of MODEL's
    run, or else "builtin"."""
    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    calibration_tokens: int = 65_536
    """Number of calibration tokens."""
    embeddings: bool = True
    """Quantize the embeddings too: one scale per row, and 6 bits where layers have 4. Tied embeddings are quantized if
    either flag is given."""
    head: bool = True
    """Quantize the output layer likewise."""
    out: Path | None = None
    """Folder of the result; when not given, MODEL-8bit or MODEL-4bit in the current folder, after the model's name."""
    overwrite: bool = False
    """Replace the output if it exists."""
    eval_data: Place | None = None
    """Text to score before and after, given as --data is; when not given, what MODEL's run held out, or else what
    follows the calibration text."""
    eval_tokens: int = 32_768
    """Number of tokens to score; 0 for no scores."""
    speed: bool = True
    """Compare the decoding speed of both."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the unquantized parts, in which the model will compute; auto is bfloat16."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON instead of the table."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if self.calibration_tokens < 1:
            raise UserError(f"--calibration-tokens is {self.calibration_tokens}, but must be at least 1")
        if self.eval_tokens < 0:
            raise UserError(f"--eval-tokens is {self.eval_tokens}, but must be at least 0")

    def settings(self) -> QuantizationConfig:
        """How the weights are rounded."""
        from yeoul.adapt.quantize import QuantizationConfig

        return QuantizationConfig(
            bits=self.bits, group_size=self.group_size, method=self.method, embeddings=self.embeddings, head=self.head
        )


def run(config: Config) -> int:
    """Quantize, and print the table."""
    from yeoul import runtime
    from yeoul.data.documents import check_documents
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import model_folder
    from yeoul.recipes.model_folder import model_name
    from yeoul.text.tokenizer import Tokenizer

    top = local_folder(config.model)
    folder = model_folder(top)
    out = config.out or Path(f"{model_name(config.model)}-{config.bits}bit")
    _check_out(out, folder, config.overwrite)
    runtime.set_threads()
    tokenizer = Tokenizer.load(folder) if Tokenizer.exists(folder) else None
    if tokenizer is None and config.method != "rtn":
        raise UserError("the model has no tokenizer, so it cannot be calibrated", config.model, "use --method rtn")
    for data in (config.data, config.eval_data):
        if data is not None:  # before the model is loaded
            check_documents(data, text_column=config.text_column, reading=config.reading)
    work = _Work(config, top, folder, tokenizer)
    with only_writer(out):
        _check_out(out, folder, config.overwrite)  # it may have been written meanwhile
        values = work.run(out)
    print(json.dumps(values, ensure_ascii=False, indent=2) if config.json else describe(values))
    return 0


def _check_out(out: Path, folder: Path, overwrite: bool) -> None:
    if out.is_file():
        raise UserError("this is a file, not a folder", f"--out {out}")
    if out.exists() and out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError("the model itself is in this folder", f"--out {out}", "choose another --out")
    if out.exists() and not overwrite:
        raise UserError("the output exists already", out, "replace it (--overwrite) or choose another --out")


class _Work:
    """One model on its way to fewer bits."""

    def __init__(self, config: Config, top: Path, folder: Path, tokenizer: Tokenizer | None) -> None:
        import torch

        from yeoul import runtime

        self.config, self.top, self.folder, self.tokenizer = config, top, folder, tokenizer
        self.device = runtime.resolve_device(config.device)
        self.compute = runtime.resolve_dtype("auto", self.device)
        self.dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16

    def run(self, out: Path) -> dict[str, Any]:
        """Reads, quantizes, saves, and only then scores; what was found, JSON-able, as it lies in `RECORD` too."""
        scored = self._quantize(out)
        record = read_object(out / RECORD)
        try:
            self._judge(out, scored, record)
        except BaseException:
            _say(f"{out} is whole, but not fully scored; to score it: yeoul evaluate {shlex.quote(str(out))}")
            raise
        return record

    def _quantize(self, out: Path) -> list[Batch]:
        """The folder, with a record that has no scores; returns what is to be scored."""
        from yeoul.adapt.quantize import quantize_model
        from yeoul.evaluate.perplexity import autocast
        from yeoul.files import replace_folder
        from yeoul.model.checkpoint import load_model
        from yeoul.model.finite import check_finite
        from yeoul.model.quantized import refuse_quantized
        from yeoul.recipes import fitting
        from yeoul.recipes.saving import save_folder

        before = fitting.resident()
        model = load_model(self.folder, self.device).requires_grad_(False)
        refuse_quantized(model, "quantized again")
        check_finite(model, self.folder, "quantized")
        if self.tokenizer is not None:
            self.tokenizer.check_fits(model.config.vocab_size)
        self.context = min(CONTEXT, model.config.max_position_embeddings)
        calibration, scored = self._texts()
        settings = self.config.settings()
        _say(self._memory(model, calibration, before))
        with autocast(self.device, self.compute):
            quantize_model(model, settings, calibration, progress=_say)
        to_dtype(model, self.dtype)
        _say(f"writing {out}")

        def write(target: Path) -> None:
            save_folder(model, self.tokenizer, target)
            if (self.folder / "README.md").is_file():
                (target / "README.md").write_bytes((self.folder / "README.md").read_bytes())
            write_json(target / RECORD, {
                "model": self.config.model, "out": str(out), "bits": settings.bits,
                "group_size": settings.group or None, "method": settings.method, "parameters": model.num_parameters(),
                "before": {"bytes": _bytes(self.folder)}, "after": {"bytes": _bytes(target)}, "scored": False,
            })  # fmt: skip

        replace_folder(out, write)
        return scored

    def _memory(self, model: Decoder, calibration: list[Tensor], before: int) -> str:
        """What quantizing takes at its worst moment, for people.

        Args:
            model: as it was read.
            calibration: rows of ids.
            before: what `fitting.resident` gave before.

        Raises:
            UserError: that is more than there is.
        """
        from torch import nn

        from yeoul.adapt.quant_statistics import sites
        from yeoul.adapt.quantize import targets
        from yeoul.recipes import fitting
        from yeoul.train import memory
        from yeoul.train.activations import block_costs

        settings, itemsize = self.config.settings(), model.dtype.itemsize
        weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
        matrices: list[Tensor] = [model.get_submodule(path).weight for path in targets(model, settings)]  # type: ignore[misc]
        rounding = max(memory.rounding(len(matrix), matrix.shape[1], bool(calibration)) for matrix in matrices)
        needs = [memory.Need(phase="rounding", parts={"weights": weights, "one weight": rounding})]
        if calibration:
            costs = block_costs(model, self.context, dtype=self.compute)
            inputs = [block.get_submodule(site.linears[0]) for block in model.layers[:1] for site in sites(block)]
            moments = sum(module.in_features**2 for module in inputs if isinstance(module, nn.Linear))
            states = itemsize * model.config.hidden_size * sum(ids.numel() for ids in calibration)
            text = memory.calibration(costs, states, ROWS, moments)
            needs = [replace(needs[0], parts=needs[0].parts | {"calibration": states + memory.FLOAT * moments}),
                     memory.Need(phase="calibration", parts={"weights": weights, "calibration": text})]  # fmt: skip
            if settings.embeddings and model.config.tie_embeddings:
                table = memory.predictions(costs, self.context, model.config.vocab_size)
                needs.append(memory.Need(phase="looking at the predictions", parts={"weights": weights, "text": table}))
        place = fitting.place_of(self.device, weights, before)
        return fitting.check(needs, place, flags="fewer --calibration-tokens or --method rtn")

    def _judge(self, out: Path, scored: list[Batch], record: dict[str, Any]) -> None:
        """Scores and speeds into the record, and into its file as soon as each is known."""
        from yeoul.model.checkpoint import load_model

        for name, folder in (("before", self.folder), ("after", out)):
            record[name] |= self._score(load_model(folder, self.device), scored)
            record["scored"] = bool(scored) and name == "after"
            write_json(out / RECORD, record)
        if self.config.speed:
            for name, found in zip(("before", "after"), self._speeds(out), strict=True):
                record[name] |= found
            write_json(out / RECORD, record)

    def _texts(self) -> tuple[list[Tensor], list[Batch]]:
        """Rows of ids (B, T) to calibrate with, and batches (B, T) to score; all begin as the model's texts do."""
        config, tokenizer, T = self.config, self.tokenizer, self.context
        if tokenizer is None:
            return [], []
        wanted = 0 if config.method == "rtn" else -(-config.calibration_tokens // T)
        counted = config.eval_tokens // T + 1 if config.eval_tokens else 0
        kept = {name: self.top / "data" / name for name in ("train", "val")}
        apart = config.eval_data is not None or (config.data is None and kept["val"].is_dir())
        most = wanted * T + (0 if apart else counted * (T + 1))
        stream, place = self._stream(config.data, kept["train"], most), 0
        rows, place = _rows(stream, place, T, wanted)
        calibration = [ids for ids, _ in rows]
        if not counted:
            return calibration, []
        if apart:
            stream, place = self._stream(config.eval_data, kept["val"], counted * (T + 1)), 0
        rows, _ = _rows(stream, place, T + 1, counted)
        if not rows:
            raise UserError("there is no text left to score", fix="give --eval-data, or --eval-tokens 0")
        _say(tokenizer.begins)
        return calibration, [_batch(ids, given) for ids, given in rows]

    def _stream(self, data: str | None, kept: Path, most: int) -> TextStream:
        """At least `most` tokens, where there are so many, of a text or of what a run has kept of its own.

        Of the built-in text where there is neither.
        """
        import numpy as np

        from yeoul.data.documents import read_documents
        from yeoul.data.shards import TokenShards
        from yeoul.data.windows import TextStream

        assert self.tokenizer is not None
        framing = self.tokenizer.framing
        if data is None and kept.is_dir():
            shards = TokenShards.open(kept, framing.begin)
            if shards.meta.fingerprint == self.tokenizer.fingerprint:
                return shards.stream
        end = [] if framing.separator is None else [framing.separator]
        tokens, ends = list[int](), [0]
        columns: dict[str, Any] = {"text_column": self.config.text_column, "reading": self.config.reading}
        for document in read_documents(data or "builtin", **columns) if most else ():
            tokens += [*self.tokenizer.encode(document), *end]
            if len(tokens) > ends[-1]:
                ends.append(len(tokens))
            if len(tokens) >= most:
                break
        return TextStream(np.array(tokens, dtype=np.int64), np.array(ends, dtype=np.int64), framing.begin)

    def _score(self, model: Decoder, rows: list[Batch]) -> dict[str, Any]:
        from yeoul.data.batch import IGNORE
        from yeoul.evaluate.perplexity import score

        if not rows or self.tokenizer is None:
            return {}
        _say(f"scoring {sum(int((batch.labels != IGNORE).sum()) for batch in rows):,} tokens")
        found = score(model, rows, self.tokenizer.byte_lengths(), dtype=self.compute)
        return {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte, "loss": found.loss}

    def _speeds(self, out: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Tokens a second of both, decoding in turns, each in the type that suits it and this machine."""
        from yeoul.evaluate import speed
        from yeoul.model.checkpoint import load_model

        _say("comparing speeds")
        models = {
            "before": load_model(self.folder, self.device, self.compute),
            "after": load_model(out, self.device, None if self.device.type == "cpu" else self.compute),
        }
        longest = min(model.config.max_position_embeddings for model in models.values())
        context = max(1, min(32, longest - speed.decoded(STEPS, TURNS)))
        positions = context + speed.decoded(STEPS, TURNS)
        models = {name: speed.lengthened(model, positions) for name, model in models.items()}
        records = {record.model: record for record in speed.compare(models, [context], steps=STEPS, turns=TURNS)}
        before, after = (
            {"tokens_per_second": r.decode_tokens_per_second, "low": r.decode_low, "high": r.decode_high}
            for r in (records["before"], records["after"])
        )
        return before, after


def to_dtype(model: Decoder, dtype: torch.dtype) -> None:
    """What is not quantized in a type, but for what stays fp32 in every folder."""
    from yeoul.model.checkpoint import stays_fp32
    from yeoul.model.quantized import QuantizedEmbedding

    for name, parameter in model.named_parameters():
        if not stays_fp32(name):
            parameter.data = parameter.data.to(dtype)
    if isinstance(table := model.model.embed_tokens, QuantizedEmbedding):
        table.dtype = dtype


def _rows(stream: TextStream, place: int, length: int, count: int) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Up to `count` rows of a text from `place` on, and where they end.

    A remainder that fills no row is left out, unless there is no other.

    Returns:
        ids (B, length) int64 and which of them are begin tokens (B, length) bool, `ROWS` rows together.
    """
    import torch

    found: list[tuple[Tensor, Tensor]] = []
    text = length - len(stream.begin)
    while len(found) < count and place < stream.size:
        place = stream.text_at(place)
        left = stream.size - place
        if left < text and (found or left < 2):
            break
        ids, given = stream.row(place, min(length, left + length - text))
        found.append((torch.from_numpy(ids), torch.from_numpy(given)))
        place += min(text, left)
    parts = [found[first : first + ROWS] for first in range(0, len(found), ROWS)]
    return [(torch.stack([ids for ids, _ in part]), torch.stack([given for _, given in part])) for part in parts], place


def _batch(ids: Tensor, given: Tensor) -> Batch:
    from yeoul.data.batch import IGNORE, Batch

    return Batch(input_ids=ids[:, :-1], labels=ids.masked_fill(given, IGNORE)[:, 1:], positions=None, seq_ids=None)


def _bytes(folder: Path) -> int:
    from yeoul.model.checkpoint import weight_files

    return sum(file.stat().st_size for file in weight_files(folder))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def describe(values: dict[str, Any]) -> str:
    """The table."""
    before, after = values["before"], values["after"]
    group = f"groups of {values['group_size']}" if values["group_size"] else "a scale for each output"
    lines = [f"{values['out']}: {values['bits']} bits, {group}, {values['method']}", ""]
    lines.append(f"{'':<16}{'before':>14}{'after':>14}{'ratio':>10}")
    for key, name, form in (
        ("bytes", "bytes", "{:,.0f}"), ("perplexity", "perplexity", "{:,.3f}"),
        ("bits_per_byte", "bits per byte", "{:.4f}"), ("tokens_per_second", "tokens/s", "{:,.1f}"),
    ):  # fmt: skip
        one, other = before.get(key), after.get(key)
        if one is not None and other is not None:
            lines.append(f"{name:<16}{form.format(one):>14}{form.format(other):>14}{other / one:>10.4f}")
    share = after["bytes"] / (4 * values["parameters"])
    lines += ["", f"bytes: {share:.3f} of float32, {2 * share:.3f} of bfloat16"]
    if not values["scored"]:
        lines.append(f"not scored; to score it: yeoul evaluate {shlex.quote(values['out'])}")
    return "\n".join(lines)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `yeoul quantize` left beside a model: its source, and perplexities; None where there is no such record.

    Returns:
        "model" (str), "scored" (bool), "before" and "after", each a perplexity or None.
    """
    if not (folder / RECORD).is_file():
        return None
    found = read_object(folder / RECORD)
    sides = [found.get(name) for name in ("before", "after")]
    scores = [side.get("perplexity") if isinstance(side, dict) else None for side in sides]
    before, after = (score if isinstance(score, int | float) else None for score in scores)
    scored = before is not None and after is not None
    return {"model": str(found.get("model")), "scored": scored, "before": before, "after": after}
