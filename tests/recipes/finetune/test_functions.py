"""`yeoul.finetune` from Python: silent, its results as values that do the work, and what was written before it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from folders import write_small_folder
from yeoul.adapt.lora.api import lora_layers
from yeoul.adapt.lora.config import LoraConfig
from yeoul.data.labelled import LabelledText
from yeoul.errors import UserError
from yeoul.model.decoder import Decoder
from yeoul.recipes.chat import Chat
from yeoul.recipes.classify import load_classifier, score_labels
from yeoul.recipes.embed import load_embedder, search
from yeoul.recipes.finetune.config import TASKS, FinetuneConfig
from yeoul.recipes.finetune.run import FinetuneResult, finetune, plan_finetune, trained_together

WORDS = "강 산 바다 하늘 나무 여름 겨울 친구 음악 시장".split()
QUICK: dict[str, Any] = dict(dtype="float32", eval_every=0, save_every=0, epochs=2, batch_size=8, val_fraction=0.25)
FLAGS = {"classify": dict(lr=3e-3), "embed": dict(whiten=True, freeze_model=True), "dpo": dict(beta=0.2)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and data for every task."""
    home, draw = tmp_path_factory.mktemp("home"), random.Random(0)

    def some() -> str:
        return " ".join(draw.sample(WORDS, 3))

    records: dict[str, list[dict[str, Any]]] = {
        "chat": [{"messages": [{"role": "user", "content": some()}, {"role": "assistant", "content": some()}]}
                 for _ in range(24)],
        "classify": [{"text": f"{some()} {'좋다' if n % 2 else '싫다'}", "label": "부긍"[n % 2]} for n in range(32)],
        "embed": [{"sentence1": some(), "sentence2": some(), "score": draw.random()} for _ in range(24)],
        "dpo": [{"prompt": some(), "chosen": f"{some()} 좋다", "rejected": some()} for _ in range(24)],
    }  # fmt: skip
    for name, lines in records.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (home / f"{name}.jsonl").write_text(text, encoding="utf-8")
    texts = [" ".join(WORDS) + " 좋다 싫다 부 긍"] * 20
    write_small_folder(home / "model", texts, vocab_size=300)
    return home


def tuned(home: Path, task: str, method: str = "full", **place: Any) -> FinetuneResult:
    config = FinetuneConfig.of(task=task, method=method, **QUICK, **FLAGS.get(task, {}))
    return finetune(home / "model", home / f"{task}.jsonl", config, device="cpu", **place)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_in_silence(task: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed and nothing stays on the disk; what is returned does the work."""
    before = sorted(home.rglob("*"))
    result = tuned(home, task, method="full")
    shown = capsys.readouterr()
    assert shown.out == shown.err == "" and sorted(home.rglob("*")) == before
    assert result.folder is None and result.before and result.validation and result.steps == 6 and result.outcome
    assert result.verb == ("chat" if task == "dpo" else task)
    assert (result.classifier is not None) == (task == "classify") == (result.scores is not None)
    assert (result.embedder is not None) == (task == "embed")
    assert not hasattr(result.model, "extra") and not result.model.training
    texts = ["강 산 좋다", "바다 하늘 싫다"]
    if result.classifier is not None:
        found = result.classifier(texts)
        assert [prediction.label for prediction in found] and set(found[0].probabilities) == {"부", "긍"}
    if result.embedder is not None:
        assert result.embedder(texts).shape == (2, 32)
    if result.verb == "chat":
        said: list[str] = []
        chat = Chat(result.model, result.tokenizer, say=said.append)
        chat.params = chat.params.__class__(temperature=0.0, max_tokens=3, ignore_eos=True)
        answer = chat("강 산")
        assert said and (not answer.strip() or chat.messages[-1] == {"role": "assistant", "content": answer})


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_what_is_returned_is_what_is_saved(task: str, home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = tuned(home, task, out=tmp_path / "run", say=said.append)
    assert result.folder == tmp_path / "run" / "model" and any(line.startswith("Model: ") for line in said)
    assert not any("Next:" in line or "yeoul " in line for line in said)
    texts = ["강 산 좋다", "바다 하늘 싫다", "나무"]
    if task == "classify":
        assert result.classifier is not None
        opened = load_classifier(tmp_path / "run", device="cpu")
        assert torch.allclose(opened.logits(texts), result.classifier.logits(texts), atol=1e-5)
        with pytest.raises(UserError, match='no label "무엇"'):
            score_labels(opened, [LabelledText(text="강", label="무엇", where="here")])
        return
    assert result.embedder is not None
    opened_embedder = load_embedder(tmp_path / "run", device="cpu")
    vectors = result.embedder(texts)
    assert torch.allclose(opened_embedder(texts), vectors, atol=1e-4)
    (row, score), *_ = search(opened_embedder, texts[1], vectors.numpy(), top=2)
    assert row == 1 and score == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="but this model's have 32"):
        search(opened_embedder, "강", np.zeros((2, 7), dtype=np.float32))


def test_an_adapter_and_a_plan(home: Path, tmp_path: Path) -> None:
    config = FinetuneConfig.of(task="classify", method="lora", rank=2, **QUICK)
    data = home / "classify.jsonl"
    lines = plan_finetune(home / "model", data, config, out=tmp_path / "run", device="cpu")
    assert any("LoRA of rank 2" in line for line in lines) and "nothing was trained or written" in lines[-1]
    assert not (tmp_path / "run").exists()
    result = finetune(home / "model", data, config, out=tmp_path / "run", device="cpu")
    assert result.mergeable and not result.continued and lora_layers(result.model)
    assert result.trained < result.parameters and result.folder == tmp_path / "run" / "adapter"
    again = finetune(home / "model", data, config, out=tmp_path / "run", device="cpu")
    assert again.validation == result.validation and again.scores is not None and result.scores is not None
    assert again.scores.to_dict() == result.scores.to_dict()


def test_a_model_and_its_head_are_one_module_for_training_alone(home: Path) -> None:
    from yeoul.recipes.loading import load

    model, _ = load(home / "model", device="cpu")
    names = set(dict(model.named_parameters()))
    head = torch.nn.Linear(32, 2, bias=False)
    together = trained_together(model, head)
    assert isinstance(together, Decoder) and set(dict(together.named_parameters())) == names | {"extra.weight"}
    assert all(a is b for a, b in zip(model.parameters(), together.parameters(), strict=False))
    assert set(dict(model.named_parameters())) == names and trained_together(model, None) is model
    ids = torch.arange(5)[None]
    assert torch.equal(together.eval()(ids), model.eval()(ids))


def test_settings_by_the_names_of_flags() -> None:
    config = FinetuneConfig.of(task="embed", temperature=0.1, epochs=1, text_column="body")
    assert (config.embed.temperature, config.train.epochs, config.examples.text_column) == (0.1, 1, "body")
    with pytest.raises(UserError, match="unknown setting"):
        FinetuneConfig.of(tusk="embed")
    with pytest.raises(UserError, match="--task chat does not use this flag"):
        FinetuneConfig.of(word_dropout=0.1)
    with pytest.raises(UserError, match="has no adapter"):
        FinetuneConfig.of(rank=4)


def test_the_adapter_of_the_command_is_that_of_the_library() -> None:
    config = FinetuneConfig.of(method="lora")
    assert config.adapter is not None and config.adapter.config(None) == LoraConfig()
