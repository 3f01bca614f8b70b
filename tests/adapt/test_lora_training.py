"""Training of adapters: step by step as PEFT does it, and of nothing but the adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import make, rms_ratio
from yeoul.adapt.lora.api import LoraConfig, add_lora, load_adapter
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.data.batch import IGNORE
from yeoul.data.examples import Example, ExampleLoader
from yeoul.model.checkpoint import load_model
from yeoul.train.config import TrainConfig
from yeoul.train.log import MetricsLog
from yeoul.train.loop import train
from yeoul.train.loss import language_model_objective

VOCAB, STEPS = 99, 20
SETTINGS = TrainConfig(
    tokens=STEPS * 4 * 24, batch_size=4, context=24, lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.1,
    grad_clip=0.5, dtype="float32", log_every=1, eval_every=0, save_every=0,
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "lora": dict(r=8, lora_alpha=16),
    "rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    "dora": dict(r=4, lora_alpha=8, use_dora=True),
}


def examples(count: int = 30) -> list[Example]:
    """Sequences of 3 to 24 tokens that can be learned, the later part of each trained."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        length, start = int(generator.integers(4, 26)), int(generator.integers(VOCAB))
        ids = ((start + 7 * np.arange(length)) % VOCAB).astype(np.int32)
        made.append(Example(ids, np.arange(length) >= length // 3))
    return made


def loader(**changes: Any) -> ExampleLoader:
    settings = {"batch_size": 4, "context": 24, "seed": 3, "packing": False, "pad_id": 0} | changes
    return ExampleLoader(examples(), **settings)


def losses_of(model: Any, folder: Path, settings: TrainConfig = SETTINGS, **changes: Any) -> torch.Tensor:
    """Losses of our loop, a step each."""
    train(model, loader(**changes), language_model_objective, settings, folder, save_model=lambda f: f.mkdir())
    lines = MetricsLog(folder / "metrics.jsonl").read()
    return torch.tensor([line["loss"] for line in lines if line["kind"] == "train"], dtype=torch.float64)


def losses_of_peft(model: Any) -> torch.Tensor:
    """The same steps with PEFT's model, torch's AdamW and clipping, and the mean over the labels of a batch."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in trained if p.ndim > 1], "weight_decay": SETTINGS.weight_decay},
         {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}],
        lr=SETTINGS.lr, betas=SETTINGS.betas,
    )  # fmt: skip
    batches, losses = loader(), []
    model.train()
    for _ in range(STEPS):
        batch = batches.next_batch()
        logits = model(input_ids=batch.input_ids, attention_mask=(batch.seq_ids >= 0).long()).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, SETTINGS.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_as_in_peft(kind: str, tmp_path: Path) -> None:
    """Same initial numbers, data and model (transformers' Llama): the losses of our loop are those of PEFT."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(2)
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **KINDS[kind]})
    theirs = peft.get_peft_model(base, config)
    theirs.save_pretrained(tmp_path / "adapter")  # A as PEFT draws it, B zero
    ours = load_model(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter")
    wanted = losses_of_peft(theirs)
    got = losses_of(ours, tmp_path / "run")
    assert wanted[-1] < 0.8 * wanted[0]  # something was learned
    assert rms_ratio(got, wanted) <= 1e-4, (got, wanted)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("kind", ["softmax", "hybrid", "delta-hybrid"])
def test_only_the_adapter_learns(kind: str, bits: int | None, tmp_path: Path) -> None:
    """Beside whole weights and beside those of few bits, of every kind of attention, packed."""
    torch.manual_seed(0)
    model = make(kind)
    if bits is not None:
        quantize_model(model, QuantizationConfig.rounded(bits=bits, group_size=32))
    add_lora(model, LoraConfig(r=4, alpha=16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = losses_of(model, tmp_path, packing=True)
    assert losses[-3:].mean() < 0.9 * losses[:3].mean()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".adapters." in name for name in changed)


def test_accumulated_halves_are_a_whole_batch(tmp_path: Path) -> None:
    """The mean is over the labels of the step, however they are spread over its micro-batches."""
    results = []
    for name, batch_size, accumulate in (("whole", 4, 1), ("halves", 2, 2)):
        torch.manual_seed(0)
        model = make("softmax")
        add_lora(model, LoraConfig(r=4, alpha=16))
        settings = replace(SETTINGS, tokens=6 * 96, batch_size=batch_size, accumulate=accumulate)
        results.append(losses_of(model, tmp_path / name, settings, batch_size=batch_size, packing=True))
    assert rms_ratio(results[1], results[0]) < 1e-5
