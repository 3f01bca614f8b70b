"""What finished runs left behind, put together as a report: from softmax pretraining to the linear model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.recipes.machine import machine_facts
from yeoul.report.content import Text, Words
from yeoul.safe_json import read_object

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.report.content import Curve, Role, Sample, SpeedPoint, Stage
    from yeoul.text.tokenizer import Tokenizer

UNITS = {"align": "relative error of a layer", "distil": "KL to the teacher, nats"}
NAMES = {"teacher": "softmax", "converted": "DiJiang"}


def collect(pretrained: Path | None, linear: Path) -> dict[str, Any]:
    """Fields of a `Report` from the folders of `yeoul pretrain` and `yeoul linearize`.

    Args:
        pretrained: None where the softmax model came from elsewhere.

    Raises:
        UserError: the linearize run is not finished.
    """
    from yeoul.report.content import ModelRow, curves, read_metrics

    values = linear_results(linear)
    stages: list[Stage] = []
    lines_of: list[Curve] = []
    if pretrained is not None:
        lines = read_metrics(pretrained / "metrics.jsonl")
        lines_of += curves(lines, "pretrain")
        stages += [_pretrain_stage(lines)]
    for folder in sorted((linear / "stages").glob("*-*")):
        name = folder.name.split("-", 1)[1]
        unit = UNITS.get(name, "nats per token")
        train = [c for c in curves(read_metrics(folder / "metrics.jsonl"), name, unit=unit) if c.name == "train"]
        lines_of += train
    stages += _linear_stages(values)
    rows = tuple(
        ModelRow(
            name=NAMES.get(name, name),
            role=_role(name),
            loss=score["loss"],
            perplexity=score["perplexity"],
            bits_per_byte=score["bits_per_byte"],
        )
        for name, score in values["scores"].items()
    )
    return {
        "stages": tuple(stages),
        "models": rows,
        "curves": tuple(lines_of),
        "speeds": tuple(_speeds(values["speed"])),
        "configuration": configurations(pretrained, linear),
        "machine": machine_facts(),
    }


def linear_results(linear: Path) -> dict[str, Any]:
    """What `yeoul linearize` wrote into OUT/linearize.json.

    Raises:
        UserError: it is not there or damaged.
    """
    path = linear / "linearize.json"
    if not path.exists():
        raise UserError("the linearize run is not finished", linear, "run the same command again")
    return read_object(path, finite=False, fix="run `yeoul linearize` again")


def _role(name: str) -> Role:
    return "teacher" if name == "teacher" else "converted" if name == "converted" else "ablation"


def _pretrain_stage(lines: list[dict[str, Any]]) -> Stage:
    from yeoul.report.content import Stage

    train = [line for line in lines if line.get("kind") == "train"]
    val = [line for line in lines if line.get("kind") == "val"]
    last = train[-1] if train else {}
    return Stage(
        name="pretrain",
        tokens=last.get("tokens"),
        seconds=last.get("seconds"),
        result=(_validation_words(val[-1]) if val else None) or "",
    )


def _linear_stages(values: Mapping[str, Any]) -> list[Stage]:
    from yeoul.report.content import Stage

    what = {
        "align": Text(
            "each layer's linear attention learned to reproduce its softmax attention",
            "층마다 선형 어텐션이 소프트맥스 어텐션의 출력을 따라 하도록 학습",
        ),
        "distil": Text("the model learned to match the teacher's predictions", "교사의 예측을 따라 하도록 학습"),
        "finetune": Text("the model was trained on the text", "텍스트로 학습"),
    }
    dropped = Text("which was no better than before, and is not kept", "이전보다 낫지 않아 버림")
    return [
        Stage(
            name=name,
            tokens=stage["tokens"],
            seconds=stage["seconds"],
            result=_joined(what.get(name), _validation_words(stage), None if stage.get("kept", True) else dropped),
        )
        for name, stage in values["stages"].items()
    ]


def _validation_words(line: Mapping[str, Any]) -> Text | None:
    bits = line.get("bits_per_byte")
    if not isinstance(bits, float):
        return None
    return Text(f"{bits:.3f} bits per byte on held-out text", f"따로 떼어 둔 텍스트에서 바이트당 {bits:.3f}비트")


def _joined(*parts: Text | None) -> Words:
    given = [part for part in parts if part is not None]
    return Text("; ".join(part.en for part in given), "; ".join(part.ko for part in given)) if given else ""


def _speeds(records: Iterable[Mapping[str, Any]]) -> Iterable[SpeedPoint]:
    from yeoul.report.content import SpeedPoint

    for r in records:
        yield SpeedPoint(
            model=NAMES.get(r["model"], r["model"]),
            role=_role(r["model"]),
            context=r["context"],
            prefill=r["prefill_tokens_per_second"],
            decode=r["decode_tokens_per_second"],
            decode_low=r["decode_low"],
            decode_high=r["decode_high"],
            cache_bytes=r["cache_bytes"],
            peak_bytes=r["peak_bytes"],
        )


def configurations(pretrained: Path | None, linear: Path) -> dict[str, dict[str, Any]]:
    """Settings of both runs and the shape of the converted model."""
    from yeoul.config import read_yaml
    from yeoul.model.checkpoint import load_config, model_folder

    found = {}
    for name, folder in (("yeoul pretrain", pretrained), ("yeoul linearize", linear)):
        if folder is not None and (folder / "config.yaml").is_file():
            found[name] = read_yaml(folder / "config.yaml")
    found["model"] = load_config(model_folder(linear)).to_dict()
    return found


def samples(
    before: Decoder,
    after: Decoder,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> tuple[Sample, ...]:
    """The same prompts continued by both models with the same settings and seed."""
    from yeoul.infer.engine import generate
    from yeoul.report.content import Sample

    prompts = list(prompts)
    old, new = (
        generate(model, tokenizer, prompts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
        for model in (before, after)
    )
    return tuple(Sample(prompt=p, before=b, after=a) for p, b, a in zip(prompts, old, new, strict=True))
