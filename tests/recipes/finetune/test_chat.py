"""`yeoul finetune --task chat`: what is learned, kept and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from commands.finetuning import ANSWERS, ATTENTION, PAIRS, SMALL, finetune, ids_of, low_bit_folder, quickly, report
from yeoul import cli
from yeoul.adapt.lora.api import lora_layers
from yeoul.commands.finetune import Config
from yeoul.config import parse_flags
from yeoul.errors import UserError
from yeoul.model.config import preset
from yeoul.model.decoder import Decoder
from yeoul.recipes.finetune.data import show_loss_mask, train_val_split
from yeoul.recipes.saving import save_folder
from yeoul.text.chat import PLAIN_TEMPLATE
from yeoul.text.tokenizer import Tokenizer

RECIPES = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.yaml"))
# -- what is learned and kept


@pytest.mark.parametrize(
    ("model", "method"),
    [*((model, "lora") for model in ATTENTION), ("softmax", "full"), ("delta", "full"), ("hybrid", "qlora")],
)
def test_every_model_by_every_method(
    model: str, method: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, group = tmp_path / "run", ["--group-size", "32"] if method == "qlora" else []
    assert finetune(home, out, "--method", method, *group, model=model) == 0
    said, done = capsys.readouterr().out, report(out)
    assert done["after"]["perplexity"] < 0.9 * done["before"]["perplexity"]
    before, after = (f"{done[key]['perplexity']:.4g}" for key in ("before", "after"))
    assert f"Answer perplexity {before} before, {after} after." in said
    assert "60 conversations" in said and "[<|user|>│" in said
    tuned, tokenizer = yeoul.load(out, device="cpu")
    assert tokenizer is not None and tokenizer.chat_template is not None
    base, _ = yeoul.load(home / model, device="cpu")
    ids = torch.tensor([tokenizer.encode("안녕, 강가에 갈까")])
    assert not torch.allclose(tuned(ids), base(ids), atol=1e-2)
    if method == "full":
        assert (out / "model" / "config.json").is_file() and done["trained"] > 0.9 * done["parameters"]
        assert f"yeoul chat {out}\n" in said
        return
    assert not (out / "model").exists() and len(list(out.glob("checkpoints/*/model/model.safetensors"))) == 0
    assert lora_layers(tuned) and done["trained"] < 0.2 * done["parameters"]
    beside, _ = yeoul.load(home / model, adapter=out / "adapter", device="cpu")
    assert torch.equal(beside(ids), tuned(ids))
    assert f"yeoul chat {home / model} --adapter {out / 'adapter'}" in said
    checkpoint = next((out / "checkpoints").glob("step-*"))
    assert torch.equal(yeoul.load(checkpoint, device="cpu")[0](ids), tuned(ids))


def test_an_adapter_beside_a_folder_of_few_bits(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low_bit_folder(home)
    assert finetune(home, tmp_path, "--method", "lora", model="low-bit") == 0
    done = report(tmp_path)
    assert done["after"]["loss"] < 0.95 * done["before"]["loss"]
    assert "yeoul export" not in capsys.readouterr().out  # nothing can be merged into it
    assert lora_layers(yeoul.load(tmp_path, device="cpu")[0])


def test_an_adapter_is_merged_by_export(home: Path, tmp_path: Path) -> None:
    assert finetune(home, tmp_path / "run", "--method", "lora", "--dora", "--target-modules", "q_proj", "up_proj") == 0
    assert cli.main(["export", str(tmp_path / "run"), "--format", "hf", "--out", str(tmp_path / "merged")]) == 0
    (merged, tokenizer), (beside, _) = (yeoul.load(tmp_path / name, device="cpu") for name in ("merged", "run"))
    ids = torch.arange(20)[None]
    assert not lora_layers(merged) and torch.allclose(merged(ids), beside(ids), atol=1e-4)
    assert tokenizer is not None and tokenizer.chat_template is not None
    assert {path.rpartition(".")[2] for path in lora_layers(beside)} == {"q_proj", "up_proj"}
    assert finetune(home, tmp_path / "more", model=str(tmp_path / "merged")) == 0


def test_an_adapter_is_trained_further(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "lora", "--target-modules", "q_proj", "embed_tokens", "--embedding-rank", "4"]
    assert finetune(home, tmp_path / "first", *flags) == 0
    capsys.readouterr()
    assert finetune(home, tmp_path / "second", "--method", "lora", model=str(tmp_path / "first")) == 0
    said = capsys.readouterr().out
    assert f"the adapter in {tmp_path / 'first' / 'adapter'} trained further" in said
    assert f"Next: yeoul chat {tmp_path / 'second'}\n" in said
    first, second = (report(tmp_path / name) for name in ("first", "second"))
    assert second["before"]["loss"] == pytest.approx(first["after"]["loss"], rel=1e-5)
    assert second["after"]["loss"] < second["before"]["loss"]
    configs = [
        json.loads((tmp_path / name / "adapter" / "adapter_config.json").read_text()) for name in ("first", "second")
    ]
    assert configs[0] == configs[1]
    assert finetune(home, tmp_path / "first", "--method", "lora", "--overwrite", model=str(tmp_path / "first")) == 2
    assert "the adapter itself is in this folder" in capsys.readouterr().err
    assert finetune(home, tmp_path / "third", "--method", "lora", "--rank", "4", model=str(tmp_path / "first")) == 2
    assert "keeps its settings (--rank)" in capsys.readouterr().err
    labels = ["--task", "classify", "--method", "lora"]
    assert finetune(home, tmp_path / "third", *labels, model=str(tmp_path / "first")) == 2
    assert "--task classify cannot train an adapter further" in capsys.readouterr().err


def test_the_tokens_of_the_template_have_rows_of_their_own(home: Path, tmp_path: Path) -> None:
    """A pretrained model has never met them, so an adapter of layers alone cannot end an answer."""
    tokenizer = Tokenizer.load(home / "tokenizer")
    met = [tokenizer.token_id(token) for token in ("<|user|>", "<|assistant|>", "<|end|>")]
    losses = {}
    for flag in ("--train-tokens", "--no-train-tokens"):
        assert finetune(home, tmp_path / flag, "--method", "lora", flag) == 0
        config = json.loads((tmp_path / flag / "adapter" / "adapter_config.json").read_text())
        assert config["trainable_token_indices"] == (sorted(met) if flag == "--train-tokens" else None)
        losses[flag] = report(tmp_path / flag)["after"]["loss"]
    assert losses["--train-tokens"] < losses["--no-train-tokens"] - 0.1
    added = report(tmp_path / "--train-tokens")["trained"] - report(tmp_path / "--no-train-tokens")["trained"]
    assert added == 3 * SMALL["hidden_size"]


def test_info_of_an_adapter(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(home, tmp_path, "--method", "lora", "--rank", "4", "--epochs", "1") == 0
    capsys.readouterr()
    assert cli.main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "LoRA of rank 4 at q_proj" in said and f"yeoul chat {tmp_path}" in said and "linearize" not in said


def test_a_model_without_template_gets_one(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    base, out = tmp_path / "base", tmp_path / "out"
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: number for number, letter in enumerate(alphabet, 1)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    base.mkdir()
    made.save(str(base / "tokenizer.json"))
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    tokenizer = Tokenizer.load(base)
    save_folder(Decoder(preset("1m", **SMALL, **ids_of(tokenizer))), tokenizer, base)
    assert finetune(home, out, "--method", "lora", "--context", "96", model=str(base)) == 0
    assert "has no chat template; the default one is saved with it" in capsys.readouterr().out
    assert (out / "adapter" / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    for _, loaded in (yeoul.load(out), yeoul.load(base, adapter=out)):
        assert loaded is not None and loaded.chat_template == PLAIN_TEMPLATE


# -- the data


def prepared(home: Path, *arguments: object, data: str = "dialogs.jsonl", model: str = "softmax") -> Any:
    """The task after it has read its data."""
    argv = [str(home / model), "--data", str(home / data), *map(str, arguments)]
    config = parse_flags(Config, quickly(argv), program="yeoul finetune")
    assert config is not None
    loaded, tokenizer = yeoul.load(home / model, device="cpu")
    assert tokenizer is not None
    task = config.settings.make_task(config.data)
    task.check_data()
    task.prepare(loaded, tokenizer)
    return task


def labels_of(task: Any) -> list[str]:
    """Text of the labels of each example."""
    return [
        task.tokenizer.decode([i for i, t in zip(ids[1:], trained[1:], strict=True) if t])
        for ids, trained in task.train
    ]


def test_answers_are_learned_or_everything(home: Path) -> None:
    answers = prepared(home, "--val-fraction", "0")
    assert labels_of(answers)[:2] == ["반가워요" * 2, "강가를 걸어요네, 먹었어요"]
    everything = prepared(home, "--val-fraction", "0", "--train-on", "all")
    assert all(trained.all() for _, trained in everything.train)
    assert answers.identity() != everything.identity()


@pytest.mark.parametrize("packing", [True, False])
def test_long_texts_are_learned_whole(packing: bool, home: Path, tmp_path: Path) -> None:
    """Every token but the first of a text is a label once, whatever the context."""
    texts = ["강가에 다람쥐가 살았습니다. " * 9, "짧은 글", "바람이 시원해요. " * 5]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name in ("text.txt", "text.jsonl"):
        how = "--packing" if packing else "--no-packing"
        task = prepared(home, how, "--context", "16", "--val-fraction", "0", data=str(tmp_path / name))
        assert (task.material.texts, task.material.conversations, task.packing) == (3, 0, packing)
        whole = [[*task.tokenizer.encode(text), task.tokenizer.eos_id] for text in texts]
        assert max(map(len, whole)) > 60 and max(len(ids) for ids, _ in task.train) == 17
        labels = [ids[1:].tolist() for ids, trained in task.train if trained.all()]
        assert sum(labels, []) == [token for ids in whole for token in ids[1:]]


def test_text_of_a_field_then_its_instructions(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Domain adaptation: the second run begins with what the first one left."""
    (tmp_path / "table.csv").write_text("title,body\n" + "".join(f"제목,강가의 다람쥐 {n}\n" for n in range(40)))
    field = ["--text-column", "body", "--context", "32"]
    assert finetune(home, tmp_path / "field", *field, data=str(tmp_path / "table.csv")) == 0
    said = capsys.readouterr().out
    assert "40 texts" in said and "Perplexity" in said and "packed into rows" in said and "yeoul generate" in said
    assert not (tmp_path / "field/model/chat_template.jinja").exists()
    assert finetune(home, tmp_path / "chat", "--method", "lora", model=str(tmp_path / "field")) == 0
    named = json.loads((tmp_path / "chat/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "field" / "model")


def test_bad_records_stop_or_are_counted(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (home / "dialogs.jsonl").read_text()
    (tmp_path / "data.jsonl").write_text(good + '{"messages": [{"role": "user", "content": "아무도 없나"}]}\n')
    assert finetune(home, tmp_path / "run", data=str(tmp_path / "data.jsonl")) == 2
    assert "data.jsonl:61" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert finetune(home, tmp_path / "run", "--on-bad-record", "skip", data=str(tmp_path / "data.jsonl")) == 0
    assert "Left out: 1 unusable record. The first: " in capsys.readouterr().out


def test_questions_and_answers_of_a_table_and_validation_of_its_own(home: Path, tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_text("Q,A,label\n" + "".join(f'{q},"{a}",0\n' for q, a in PAIRS))
    columns = ["--question-column", "Q", "--answer-column", "A"]
    task = prepared(home, *columns, "--val-data", tmp_path / "qa.csv", data=str(tmp_path / "qa.csv"))
    assert labels_of(task) == list(ANSWERS) and len(task.val) == 5


def test_division_does_not_depend_on_order_and_keeps_equals_together() -> None:
    records = [f"r{n % 50}" for n in range(200)]
    train, val = train_val_split(records, 0.1, 100, str)
    assert len(set(val)) == 5 and len(val) == 20 and not set(train) & set(val) and len(train) == 180
    assert set(train_val_split(records[::-1], 0.1, 100, str)[1]) == set(val)
    assert len(set(train_val_split(records, 0.5, 3, str)[1])) == 3 and train_val_split(records, 0.0, 3, str)[1] == []
    with pytest.raises(UserError, match="cannot be divided"):
        train_val_split(["a", "a"], 0.5, 9, str)


def test_the_example_shows_what_is_trained(home: Path) -> None:
    tokenizer = Tokenizer.load(home / "tokenizer")
    ids = tokenizer.encode("가\n나") + [tokenizer.token_id("<|end|>")]
    shown = show_loss_mask(tokenizer, ids, [n >= len(ids) - 1 for n in range(len(ids))]).splitlines()[1].strip()
    assert shown.endswith("]│<|end|>") and shown.startswith("[") and "⏎" in shown


# -- recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse(path: Path) -> None:
    """By the command that stands in the first line of each."""
    program, verb, *arguments = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split()
    assert (program, verb) == ("yeoul", "finetune") and f"configs/{path.name}" in arguments
    arguments[arguments.index(f"configs/{path.name}")] = str(path)
    config = parse_flags(Config, arguments, program="yeoul finetune")
    assert config is not None and config != Config(config.model, data=config.data, out=config.out)


def test_there_are_recipes() -> None:
    assert {"chat-lora", "domain-1-text", "domain-2-instructions"} <= {path.stem for path in RECIPES}
