"""Pretraining, linearizing and saving as functions: values come back, nothing is printed, the folder is optional."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from models import make
from yeoul.config import flat_values, parse_flags
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.config import FeatureMapConfig

TINY: dict[str, Any] = {
    "preset": "1m", "hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 400, "context": 32, "batch_size": 2,
    "tokens": 256, "val_fraction": 0.1, "val_tokens": 200, "dtype": "float32", "log_every": 1,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "tokens": 1024, "window": 8, "context": 32, "batch_size": 2, "val_tokens": 200, "compare_tokens": 0,
    "contexts": (16,), "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"{i}번째 강가에 작은 마을이 있었습니다. 아이는 {i * 7 % 31}개의 돌을 셌습니다." for i in range(300)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def pretrained(text: str) -> Any:
    return yeoul.pretrain(text, yeoul.PretrainConfig.of(**TINY), device="cpu")


def test_pretraining_gives_a_model_and_leaves_nothing(
    pretrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = yeoul.pretrain(text, yeoul.PretrainConfig.of(**TINY), device="cpu")
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []
    assert result.folder is None and result.tokens == 256 and result.validation["loss"] > 0
    ids = torch.tensor([result.tokenizer.encode("강가에")])
    assert torch.equal(result.model(ids), pretrained.model(ids)), "the same settings give the same model"
    assert len(yeoul.generate(result.model, result.tokenizer, "강가에", max_tokens=2, temperature=0)) > 0


def test_what_is_said_goes_to_the_callable(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    config = yeoul.PretrainConfig.of(**TINY)
    result = yeoul.pretrain(text, config, out=tmp_path / "run", device="cpu", say=said.append)
    assert capsys.readouterr().out == "" and any(line.startswith("Data: ") for line in said)
    assert not any("yeoul generate" in line for line in said), "next commands are the command line's own"
    assert result.folder == tmp_path / "run" / "model"
    again, _ = yeoul.load(tmp_path / "run", device="cpu")
    assert torch.equal(again.output_weight, result.model.output_weight)


def test_a_model_in_memory_is_linearized_and_stays_as_it_is(
    pretrained: Any, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.clone() for name, tensor in pretrained.model.state_dict().items()}
    result = yeoul.linearize(pretrained.model, text, yeoul.LinearizeConfig.of(**SHORT), tokenizer=pretrained.tokenizer)
    assert capfd.readouterr() == ("", "")
    assert set(result.model.config.attention) == {"hybrid"} and result.folder is None and result.comparison is None
    assert list(result.stages) == ["align", "distil"] and result.scores["converted"].loss > 0
    assert [record.model for record in result.speeds] == ["teacher", "converted"]
    assert all(torch.equal(before[name], tensor) for name, tensor in pretrained.model.state_dict().items())


def test_memory_and_folder_give_the_same(pretrained: Any, text: str, tmp_path: Path) -> None:
    folder = yeoul.save(pretrained.model, tmp_path / "base", pretrained.tokenizer)
    config = yeoul.LinearizeConfig.of(**SHORT)
    one = yeoul.linearize(folder, text, config, out=tmp_path / "linear", device="cpu")
    other = yeoul.linearize(pretrained.model, text, config, tokenizer=pretrained.tokenizer)
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(UserError, match="needs a tokenizer"):
        yeoul.linearize(pretrained.model, text, config)


def test_saving_replaces_only_what_it_may(pretrained: Any, tmp_path: Path) -> None:
    yeoul.save(pretrained.model, tmp_path / "model", pretrained.tokenizer)
    with pytest.raises(UserError, match="already exists"):
        yeoul.save(pretrained.model, tmp_path / "model")
    yeoul.save(pretrained.model, tmp_path / "model", overwrite=True)
    assert yeoul.load(tmp_path / "model")[1] is None


def test_settings_by_the_names_of_the_flags() -> None:
    config = yeoul.LinearizeConfig.of(window=128, lr=1e-5, text_column="body")
    assert (config.conversion.window, config.training.lr, config.text.text_column) == (128, 1e-5, "body")
    with pytest.raises(UserError, match='unknown setting "windw".*did you mean "window"'):
        yeoul.LinearizeConfig.of(windw=128)


@pytest.mark.parametrize("verb", ["pretrain", "linearize"])
def test_the_command_has_the_librarys_defaults(verb: str) -> None:
    import importlib

    command = importlib.import_module(f"yeoul.commands.{verb}")
    config = parse_flags(command.Config, ["x"], program=f"yeoul {verb}")
    assert config is not None
    assert flat_values(config.settings) == flat_values(getattr(yeoul, f"{verb.capitalize()}Config")())


def test_a_conversion_by_itself_is_the_commands() -> None:
    from yeoul.adapt.linearize import Conversion
    from yeoul.recipes.linearize.config import ConversionOptions

    teacher = make("softmax").config.with_(max_position_embeddings=2048)
    assert ConversionOptions().conversion(teacher).apply(teacher) == Conversion().apply(teacher)
    alone = Conversion(
        attention="dijiang", feature_map=FeatureMapConfig(name="fourier", separate=True), state_update="delta",
        short_conv=4,
    )  # fmt: skip
    assert ConversionOptions(attention="dijiang").conversion(teacher).apply(teacher) == alone.apply(teacher)


def test_what_a_model_and_its_context_decide_of_a_conversion() -> None:
    from yeoul.recipes.linearize.config import ConversionOptions

    plain = make("softmax").config.with_(max_position_embeddings=1024)
    chosen = ConversionOptions().conversion(plain).apply(plain)
    assert (chosen.window, chosen.exact, chosen.sinks) == (64, (64, 64), 4)
    assert ConversionOptions().conversion(plain, context=512).apply(plain).exact == (32, 32)
    assert ConversionOptions().conversion(plain.with_(max_position_embeddings=10**6), context=10**6).exact == (256,) * 2
    costs = {0: 0.01, 1: 0.09}
    assert ConversionOptions().conversion(plain, costs=costs).exact == (64, 64)
    assert ConversionOptions(exact_total=40).conversion(plain, costs=costs).exact == (10, 30)
    assert ConversionOptions(exact_total=40).conversion(plain).exact == (20, 20)
    assert ConversionOptions(exact_total=10_000).conversion(plain).exact == (1024 - 64 - 4,) * 2  # all there is
    assert ConversionOptions(exact="7,9").conversion(plain, costs=costs).exact == (7, 9)
    assert ConversionOptions(exact="5").conversion(plain, kept=(0,)).exact == (0, 5)
    sliding = make("gemma-like").config
    beside = ConversionOptions(exact="3").conversion(sliding).apply(sliding)
    assert (beside.window, beside.sinks, beside.sliding_sinks, beside.exact) == (7, 4, 0, (0, 3))
    with pytest.raises(UserError, match="2 numbers of pairs for 1 converted layer"):
        ConversionOptions(exact="7,9").conversion(sliding)
    for wrong in ("many", "-1", "1,", ""):
        with pytest.raises(UserError, match="--exact"):
            ConversionOptions(exact=wrong)
    with pytest.raises(UserError, match="instead of --exact"):
        ConversionOptions(exact="64", exact_total=128)


def test_learning_rates_follow_the_map_and_the_size_of_the_model() -> None:
    rates = lambda flags, parameters: (  # noqa: E731
        (stages := yeoul.LinearizeConfig.of(**flags).stages(parameters)).align_lr, stages.map_lr, stages.lr,
        stages.finetune_lr,
    )  # fmt: skip
    assert rates({}, 10_000_000) == (5e-4, 5e-4, 1e-4, 1e-4)
    assert rates({"map": "fourier"}, 10_000_000) == (5e-3, 5e-3, 1e-4, 1e-4)
    assert rates({}, 268_098_176) == (5e-4, 5e-4, 3e-5, 3e-5)
    assert rates({"train_distil": "all", "train_finetune": "low-rank"}, 268_098_176) == (5e-4, 5e-4, 1e-5, 1e-4)
    assert rates({"lr": 3e-4, "map_lr": 1e-3, "align_lr": 2e-3}, 268_098_176) == (2e-3, 1e-3, 3e-4, 3e-5)
    planned = yeoul.LinearizeConfig().planned(1_000_000, 1024, 268_098_176)
    assert planned["align"].lr == 5e-4 and planned["distil"].lr == 3e-5


def test_a_conversion_begins_on_all_of_its_text(
    pretrained: yeoul.PretrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two sources that follow one another the first alone would not do."""
    from yeoul.recipes.linearize import run

    for name, word in (("a", "강가에 "), ("b", "다람쥐 ")):
        lines = [json.dumps({"text": word * 60}, ensure_ascii=False) for _ in range(150)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(run, "calibrate", lambda _, __, batches, progress: seen.extend(b.input_ids for b in batches))
    config = yeoul.LinearizeConfig.of(**SHORT | {"exact": "0"})
    yeoul.linearize(pretrained.model, f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", config, tokenizer=pretrained.tokenizer)
    ids = torch.cat([batch.flatten() for batch in seen]).tolist()
    shares = [pretrained.tokenizer.decode(ids).count(word) / len(ids) for word in ("강가", "다람쥐")]
    assert min(shares) > 0.2 * max(shares) > 0


def test_pairs_go_to_the_layers_that_need_distance_and_stay_there(
    pretrained: yeoul.PretrainResult, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yeoul.recipes.linearize import layers

    asked: list[int] = []

    def costs(teacher: yeoul.Decoder, batches: Callable[[], Iterable[Batch]], **_: object) -> dict[int, float]:
        asked.append(len(list(batches())))
        return {0: 0.09, 1: 0.01} if len(asked) == 1 else {0: 0.01, 1: 0.09}

    monkeypatch.setattr(layers, "layer_costs", costs)
    convert = lambda: yeoul.linearize(  # noqa: E731
        pretrained.model, text, yeoul.LinearizeConfig.of(**SHORT, exact_total=8), tokenizer=pretrained.tokenizer,
        out=tmp_path / "run",
    )  # fmt: skip
    assert convert().model.config.exact == (6, 2)
    assert convert().model.config.exact == (6, 2) and len(asked) == 1  # as the first session chose


def test_large_models_get_small_steps_and_recall_texts() -> None:
    for flags, parameters, batch, recall in (
        ({}, 10_000_000, 8, 0.0), ({}, 268_098_176, 1, 0.2), ({"batch_size": 4}, 268_098_176, 4, 0.2),
        ({"exact": "0"}, 268_098_176, 1, 0.0), ({"attention": "dijiang"}, 268_098_176, 1, 0.0),
        ({"recall_share": 0.0}, 268_098_176, 1, 0.0), ({"recall_share": 0.5}, 10_000_000, 8, 0.5),
    ):  # fmt: skip
        config = yeoul.LinearizeConfig.of(**flags)
        assert config.stages(parameters).recall_share == recall
        assert {s.batch_size for s in config.planned(200_000, 512, parameters).values()} == {batch}
    rows = lambda budget: yeoul.LinearizeConfig().planned(budget, 2048, 268_098_176)["distil"].batch_size  # noqa: E731
    assert [rows(budget) for budget in (20_000, 4_096_000, 100_000_000)] == [1, 4, 8]
    with pytest.raises(UserError, match="--recall-share"):
        yeoul.LinearizeConfig.of(recall_share=1.5)


@pytest.mark.parametrize(
    ("flags", "parameters", "trains_all"),
    [
        ({}, 10_000_000, True), ({}, 268_098_176, False), ({"train_distil": "all"}, 268_098_176, True),
        ({"train_distil": "maps"}, 10_000_000, False),
        ({"train_distil": "maps", "finetune_share": 0.1}, 10_000_000, True),
    ],
)  # fmt: skip
def test_what_is_trained_follows_the_size_of_the_model(
    flags: dict[str, Any], parameters: int, trains_all: bool
) -> None:
    stages = yeoul.LinearizeConfig.of(**flags).stages(parameters)
    assert stages.trained["distil"] == flags.get("train_distil", "all" if parameters < 1e8 else "attention")
    assert stages.trains_all == trains_all
