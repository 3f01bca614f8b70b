"""`yeoul.quantize`: a model's weights in 8 or 4 bits, and what that costs and gains."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yeoul import runtime
from yeoul.adapt.quant_statistics import predicted, sites
from yeoul.adapt.quantize import quantize_model, targets
from yeoul.data.batch import IGNORE, Batch
from yeoul.data.documents import check_documents
from yeoul.errors import UserError
from yeoul.evaluate import perplexity, speed
from yeoul.files import only_writer, replace_folder, write_json
from yeoul.model.checkpoint import load_model, weight_files
from yeoul.model.finite import check_finite
from yeoul.model.parameters import fp32_parameters
from yeoul.model.quantized import QuantizedEmbedding, refuse_quantized
from yeoul.recipes import fitting
from yeoul.recipes.model_folder import ModelFolder
from yeoul.recipes.options import Say, given_or_temporary, silent
from yeoul.recipes.quantize.config import QuantizeConfig
from yeoul.recipes.quantize.record import RECORD
from yeoul.recipes.quantize.texts import ROWS, calibration_and_scored
from yeoul.recipes.saving import save_folder
from yeoul.safe_json import read_object
from yeoul.train import memory
from yeoul.train.activations import block_costs

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

CONTEXT = 512
"""Longest sequence that is calibrated or scored with."""
STEPS, TURNS = 8, 5
"""Of decoding, when speeds are compared."""


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """A quantized model, and what was found of it.

    Attributes:
        model: quantized, as it was saved.
        tokenizer: None where the model has none.
        before, after: of the model as it came and as it is now: `bytes` of the weights' files; `perplexity`,
            `bits_per_byte` and `loss` (nats a token) where it was scored; `tokens_per_second` of decoding with its
            quartiles `low` and `high` where speeds were compared.
        scored: whether both were.
        record: all of it with the settings, JSON-able, as it lies in `quantize.json`.
        folder: of the model; None where nothing was to be left.
    """

    model: Decoder
    tokenizer: Tokenizer | None
    before: dict[str, float]
    after: dict[str, float]
    scored: bool
    record: dict[str, Any]
    folder: Path | None


def quantize(
    model: str | Path,
    config: QuantizeConfig | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> QuantizeResult:
    """Quantize a model's weights to 8 or 4 bits, and compare it before and after.

    It is written before it is scored, so it survives an interruption of the scoring.

    Args:
        model: a folder, a run, or an id on the hub; softmax or linearized.
        config: settings; None for the defaults.
        out: folder of the result; None keeps nothing but what is returned.
        overwrite: replace the folder if it exists.
        device: "auto", "cpu", "cuda" or "cuda:N".
        say: called with progress messages; None for no output.

    Raises:
        UserError: the settings, the data or the model cannot be used.
    """
    config, say, source = config or QuantizeConfig(), say or silent, ModelFolder.open_whole(model)
    with given_or_temporary(out) as folder:
        target = folder if out is not None else folder / "model"
        _check_out(target, source, overwrite)
        runtime.set_threads()
        work = _Quantizing(config, source, device, say)
        with only_writer(target):
            _check_out(target, source, overwrite)  # it may have been written meanwhile
            record = work.run(target)
        made = load_model(target, work.device)
    return QuantizeResult(
        model=made, tokenizer=source.tokenizer, before=record["before"], after=record["after"],
        scored=record["scored"], record=record, folder=None if out is None else target,
    )  # fmt: skip


def _check_out(out: Path, source: ModelFolder, overwrite: bool) -> None:
    if out.is_file():
        raise UserError("this is a file, not a folder", f"--out {out}")
    if out.exists() and source.holds(out):
        raise UserError("the model itself is in this folder", f"--out {out}", "choose another --out")
    if out.exists() and not overwrite:
        raise UserError("the output exists already", out, "replace it (--overwrite) or choose another --out")


class _Quantizing:
    """One model on its way to fewer bits."""

    def __init__(self, config: QuantizeConfig, model: ModelFolder, device: str, say: Say) -> None:
        self.config, self.model, self.say = config, model, say
        if model.tokenizer is None and config.weights.method != "rtn":
            raise UserError("the model has no tokenizer, so it cannot be calibrated", model.name, "use --method rtn")
        for data in (config.data, config.eval_data):
            if data is not None:  # before the model is loaded
                check_documents(data, text_column=config.text_column, reading=config.reading)
        self.device = runtime.resolve_device(device)
        self.compute = runtime.resolve_dtype("auto", self.device)
        self.held = torch.float32 if self.compute == torch.float32 else None
        """Of the weights while something is computed: where the machine has no products of bfloat16, those of a model
        that is stored so are several times slower than float32. None keeps what the files have."""
        self.dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16

    def run(self, out: Path) -> dict[str, Any]:
        """Reads, quantizes, saves, and only then scores; what was found, JSON-able, as it lies in `RECORD` too."""
        scored = self._quantize(out)
        record = read_object(out / RECORD)
        try:
            self._score_both(out, scored, record)
        except BaseException:
            self.say(f"{out} is whole, but not fully scored; to score it: yeoul evaluate {shlex.quote(str(out))}")
            raise
        return record

    def _quantize(self, out: Path) -> list[Batch]:
        """The folder, with a record that has no scores; returns what is to be scored."""
        folder, settings = self.model.path, self.config.weights
        before = fitting.resident()
        model = self.model.load(self.device, self.held).requires_grad_(False)
        refuse_quantized(model, "quantized again")
        check_finite(model, folder, "quantized")
        context = min(CONTEXT, model.config.max_position_embeddings)
        kept = self.model.top / "data"
        calibration, scored = calibration_and_scored(self.config, self.model.tokenizer, context, kept, self.say)
        self.say(self._memory(model, calibration, context, before))
        with perplexity.autocast(self.device, self.compute):
            quantize_model(model, settings, calibration, progress=self.say)
        to_dtype(model, self.dtype)
        self.say(f"writing {out}")

        def write(target: Path) -> None:
            save_folder(model, self.model.tokenizer, target)
            if (folder / "README.md").is_file():
                (target / "README.md").write_bytes((folder / "README.md").read_bytes())
            write_json(target / RECORD, {
                "model": self.model.name, "out": str(out), "bits": settings.bits,
                "group_size": settings.group or None, "method": settings.method, "parameters": model.num_parameters(),
                "before": {"bytes": _bytes(folder)}, "after": {"bytes": _bytes(target)}, "scored": False,
            })  # fmt: skip

        replace_folder(out, write)
        return scored

    def _memory(self, model: Decoder, calibration: list[Tensor], context: int, before: int) -> str:
        """What quantizing takes at its worst moment, for people.

        Args:
            model: as it was read.
            calibration: rows of ids.
            context: their length.
            before: what `fitting.resident` gave before.

        Raises:
            UserError: that is more than there is.
        """
        settings, itemsize = self.config.weights, model.dtype.itemsize
        weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
        matrices: list[Tensor] = [model.get_submodule(path).weight for path in targets(model, settings)]  # type: ignore[misc]
        rounding = max(memory.rounding(len(matrix), matrix.shape[1], bool(calibration)) for matrix in matrices)
        needs = [memory.Need(phase="rounding", parts={"weights": weights, "one weight": rounding})]
        if calibration:
            costs = block_costs(model, context, dtype=self.compute)
            inputs = [block.get_submodule(site.linears[0]) for block in model.layers[:1] for site in sites(block)]
            moments = sum(module.in_features**2 for module in inputs if isinstance(module, nn.Linear))
            states = itemsize * model.config.hidden_size * sum(ids.numel() for ids in calibration)
            text = memory.calibration(costs, states, ROWS, moments)
            needs = [replace(needs[0], parts=needs[0].parts | {"calibration": states + memory.FLOAT * moments}),
                     memory.Need(phase="calibration", parts={"weights": weights, "calibration": text})]  # fmt: skip
            if settings.embeddings and model.config.tie_embeddings:
                vocabulary = model.config.vocab_size
                table = memory.predictions(costs, context, predicted(vocabulary, context) * vocabulary)
                needs.append(memory.Need(phase="looking at the predictions", parts={"weights": weights, "text": table}))
        place = fitting.place_of(self.device, weights, before)
        return fitting.check(needs, place, flags="fewer --calibration-tokens or --method rtn")

    def _score_both(self, out: Path, scored: list[Batch], record: dict[str, Any]) -> None:
        """Scores and speeds into the record, and into its file as soon as each is known."""
        for name, folder in (("before", self.model.path), ("after", out)):
            record[name] |= self._score(load_model(folder, self.device, self.held), scored)
            record["scored"] = bool(scored) and name == "after"
            write_json(out / RECORD, record)
        if self.config.speed:
            for name, found in zip(("before", "after"), self._speeds(out), strict=True):
                record[name] |= found
            write_json(out / RECORD, record)

    def _score(self, model: Decoder, rows: list[Batch]) -> dict[str, Any]:
        tokenizer = self.model.tokenizer
        if not rows or tokenizer is None:
            return {}
        self.say(f"scoring {sum(int((batch.labels != IGNORE).sum()) for batch in rows):,} tokens")
        found = perplexity.score(model, rows, tokenizer.byte_lengths(), dtype=self.compute)
        return {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte, "loss": found.loss}

    def _speeds(self, out: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Tokens a second of both, decoding in turns, each in the type that suits it and this machine."""
        self.say("comparing speeds")
        models = {
            "before": self.model.load(self.device, self.compute),
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
    kept = fp32_parameters(model)
    for name, parameter in model.named_parameters():
        if name not in kept:
            parameter.data = parameter.data.to(dtype)
    if isinstance(table := model.model.embed_tokens, QuantizedEmbedding):
        table.dtype = dtype


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))
