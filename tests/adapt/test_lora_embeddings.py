"""Low-rank parts of the embedding and the output layer: what PEFT computes, writes and trains, and merged, beside
rows of tokens, over few bits, and through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import yeoul
from models import make, rms_ratio
from yeoul.adapt.lora.api import (
    LoraConfig,
    add_lora,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unmerge,
)
from yeoul.adapt.lora.embeddings import token_tables
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.cli import main
from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model
from yeoul.model.decoder import Decoder
from yeoul.recipes.finetune.adapter import LoraOptions
from yeoul.train.loss import language_model_objective, linear_cross_entropy

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 99, (2, 24), generator=torch.Generator().manual_seed(0))
BOTH = ("embed_tokens", "lm_head")
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("LlamaForCausalLM", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "untied": ("Qwen2ForCausalLM", dict(num_key_value_heads=2, tie_word_embeddings=False)),
    "gemma": ("GemmaForCausalLM", dict(num_key_value_heads=1, head_dim=8, tie_word_embeddings=True)),
    "gpt2": ("GPT2LMHeadModel", dict(n_inner=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)),
    "gpt_neox": ("GPTNeoXForCausalLM", dict(tie_word_embeddings=False)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models of published families."""
    home = tmp_path_factory.mktemp("bases")
    for name, (kind, options) in BASES.items():
        torch.manual_seed(2)
        width = {} if name == "gpt2" else {"intermediate_size": 64}
        model_class = getattr(transformers, kind)
        config = model_class.config_class(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0, **width, **options,
        )  # fmt: skip
        model_class(config).save_pretrained(home / name)
    return {name: home / name for name in BASES}


def theirs(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def shake(model: Any) -> None:
    """Adapters that do something: every number is random; those of one memory stay the same."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".adapters." in name:
            parameter.data.normal_(std=0.2)


def peft_adapter(base: Path, folder: Path, *, shaken: bool = True, **settings: Any) -> Any:
    """An adapter that PEFT made, saved in `folder`; returns PEFT's model."""
    model = peft.get_peft_model(theirs(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})).eval()
    if shaken:
        shake(model)
    model.save_pretrained(folder)
    return model


PATTERNS = dict(rank_pattern={"embed_tokens": 6, "lm_head": 6}, alpha_pattern={"embed_tokens": 3, "lm_head": 3})
GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("tied", dict(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True, **PATTERNS)),
    "tied by the output's name": ("tied", dict(target_modules=["q_proj", "lm_head"], ensure_weight_tying=True)),
    "tied, two scales": (
        "tied", dict(target_modules=["embed_tokens"], ensure_weight_tying=True, rank_pattern={"embed_tokens": 6})
    ),
    "tied, by expression": ("gemma", dict(target_modules=".*(q_proj|embed_tokens)", ensure_weight_tying=True)),
    "tied, two parts": ("tied", dict(target_modules=["q_proj", *BOTH])),
    "tied, input alone": ("tied", dict(target_modules=["v_proj", "embed_tokens"], use_rslora=True)),
    "tied, output alone": ("tied", dict(target_modules=["v_proj", "lm_head"])),
    "gpt2": ("gpt2", dict(target_modules=["c_attn", "wte", "lm_head"], ensure_weight_tying=True)),
    "untied": ("untied", dict(target_modules=["q_proj", *BOTH], use_rslora=True, **PATTERNS)),
    "untied, output alone": ("untied", dict(target_modules=["lm_head"])),
    "gpt_neox": ("gpt_neox", dict(target_modules=["query_key_value", "embed_in", "lm_head"])),
}  # fmt: skip
APART = ("tied, two scales", "tied, two parts", "tied, input alone", "tied, output alone")
"""Where input and output are no longer one table."""


@pytest.mark.parametrize("case", GIVEN)
@torch.no_grad()
def test_an_adapter_of_peft_computes_the_same(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    name, settings = GIVEN[case]
    wanted = peft_adapter(folders[name], tmp_path / "theirs", **settings)(IDS).logits
    model = load_model(folders[name])
    base, before = model(IDS), {n: p.clone() for n, p in model.named_parameters()}
    load_adapter(model, tmp_path / "theirs")
    apart = model(IDS)
    assert rms_ratio(base, wanted) > 0.1 and rms_ratio(apart, wanted) < 1e-5
    assert rms_ratio(model.cap(model.hidden(IDS) @ model.output_weight.T), apart) < 1e-5
    if case in APART:
        with pytest.raises(UserError, match="in different ways"):
            merge_adapters(model)
    else:
        merge_adapters(model)
        assert rms_ratio(model(IDS), wanted) < 1e-5
        unmerge(model)
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if ".adapters." not in n}
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert torch.equal(model(IDS), apart)
    set_adapter(model, None)
    assert torch.equal(model(IDS), base)
    save_adapter(model, tmp_path / "ours")
    first, second = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("theirs", "ours"))
    first = {n: t for n, t in first.items() if "base_layer" not in n}
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    assert (
        rms_ratio(peft.PeftModel.from_pretrained(theirs(folders[name]), tmp_path / "ours")(IDS).logits, wanted) < 1e-5
    )


MADE: dict[str, tuple[str, LoraConfig]] = {
    "both": ("tied", LoraConfig(r=3, target_modules=("all-linear", *BOTH), rank_pattern={"embed_tokens": 5})),
    "one name": ("tied", LoraConfig(r=3, rslora=True, target_modules=("q_proj", "lm_head"))),
    "rows": ("tied", LoraConfig(r=3, alpha=7, target_modules=("v_proj", "embed_tokens"), token_indices=(5, 17))),
    "gpt2": ("gpt2", LoraConfig(target_modules=("q_proj", "embed_tokens"))),
    "gemma": ("gemma", LoraConfig(target_modules=("q_proj", "embed_tokens"), token_indices=(5,))),
    "untied": ("untied", LoraConfig(r=3, target_modules=("up_proj", *BOTH), rank_pattern={"lm_head": 4})),
    "tables alone": ("gpt_neox", LoraConfig(r=3, target_modules=BOTH)),
    "rows of one": (
        "untied",
        LoraConfig(target_modules=("lm_head",), token_indices={"embed_tokens": (3, 4), "lm_head": (5,)}),
    ),
}


@pytest.mark.parametrize("case", MADE)
@torch.no_grad()
def test_peft_reads_what_is_saved_here(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Rows of tokens beside a low-rank part, too: PEFT has no such thing, and gets the same function."""
    name, config = MADE[case]
    model = load_model(folders[name])
    base = model(IDS)
    add_lora(model, config)
    assert rms_ratio(model(IDS), base) < 1e-6  # B is zero
    shake(model)
    wanted = model(IDS)
    assert rms_ratio(wanted, base) > 0.05
    save_adapter(model, tmp_path)
    merge_adapters(model)
    assert rms_ratio(model(IDS), wanted) < 1e-5
    save_adapter(model, tmp_path / "merged")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "merged"))
    assert all(torch.equal(first[n], second[n]) for n in first)
    merge_and_unload(model)
    assert not token_tables(model) and rms_ratio(model(IDS), wanted) < 1e-5
    loaded = peft.PeftModel.from_pretrained(theirs(folders[name]), tmp_path)
    again = load_model(folders[name])
    load_adapter(again, tmp_path)
    for other in (loaded(IDS).logits, again(IDS)):
        assert rms_ratio(other, wanted) < 1e-5


def losses_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Of ten steps; without token 0, whose row transformers does not train where it is the padding."""
    data = torch.randint(1, 99, (10, 2, 16), generator=torch.Generator().manual_seed(4))
    found = []
    for ids in data:
        logits = model(ids)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def really_tied(reference: Any) -> None:
    """One parameter where PEFT has two in one memory, to each of which AdamW would make a step of its own."""
    embedding, output = reference.get_input_embeddings(), reference.get_output_embeddings()
    A, B = (getattr(output, f"lora_{letter}")["default"] for letter in "AB")
    for linear, matrix in ((A, embedding.lora_embedding_B), (B, embedding.lora_embedding_A)):
        del linear.weight
        linear.weight = matrix["default"].T
        linear.register_forward_pre_hook(lambda module, _, m=matrix: setattr(module, "weight", m["default"].T))


@pytest.mark.parametrize("kind", ["sgd", "adamw", "untied"])
def test_training_goes_as_in_peft(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    name = "untied" if kind == "untied" else "tied"
    settings = dict(target_modules=["q_proj", "down_proj", *BOTH], ensure_weight_tying=name == "tied", **PATTERNS)
    reference = peft_adapter(folders[name], tmp_path, shaken=False, **settings)
    model = load_model(folders[name])
    load_adapter(model, tmp_path)
    if kind == "adamw":
        really_tied(reference)
    make_one = (lambda p: torch.optim.SGD(p, lr=0.05)) if kind == "sgd" else (lambda p: torch.optim.AdamW(p, lr=3e-3))
    wanted = losses_of(reference, make_one(trained(reference)))
    got = losses_of(model, make_one(trained(model)))
    assert rms_ratio(got, wanted) < 1e-5
    assert (wanted - wanted[0]).abs().max() > 0.02  # the steps did something
    assert rms_ratio(model(IDS), reference(IDS).logits) < 1e-3 < rms_ratio(load_model(folders[name])(IDS), model(IDS))


@pytest.mark.parametrize("kind", ["softmax", "learned", "gemma-like"])
def test_the_objective_has_the_gradient_of_the_logits(kind: str) -> None:
    """The loss in pieces, through the whole table, against logits; tied, untied and capped, with rows of tokens."""
    model = make(kind)
    tokens = dict.fromkeys(BOTH, (5, 17)) if kind == "learned" else (5, 17)
    add_lora(model, LoraConfig(r=3, target_modules=("q_proj", *BOTH), token_indices=tokens))
    shake(model)
    ids = torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(1))
    ids[0, 3], ids[1, 7] = 5, 17
    language_model_objective(model, Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])).total.backward()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    got = {n: model.get_parameter(n).grad.clone() for n in names}  # type: ignore[union-attr]
    model.zero_grad()
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    assert {n.rpartition(".")[2] for n in names} == {"A", "B", "rows"}
    for n in names:
        assert rms_ratio(got[n], model.get_parameter(n).grad) < 1e-4, n  # type: ignore[arg-type]


def test_the_loss_of_a_sum_of_two_products() -> None:
    """In pieces and capped, as with the sum of the weights; a frozen table gets no gradient."""
    torch.manual_seed(0)
    shapes = ((23, 8), (31, 8), (3, 8), (31, 3))
    hidden, weight, A, B = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    labels = torch.randint(31, (23,))
    labels[::5] = IGNORE
    given, dense = ([t.clone().requires_grad_() for t in (hidden, A, B)] for _ in range(2))
    total, count = linear_cross_entropy(given[0], weight, labels, chunk=7, softcap=3.0, low=(given[1], given[2]))
    wanted, _ = linear_cross_entropy(dense[0], weight + dense[2] @ dense[1], labels, softcap=3.0)
    assert count == 18 and rms_ratio(total, wanted) < 1e-12
    total.backward()
    wanted.backward()
    for one, other in zip(given, dense, strict=True):
        assert rms_ratio(one.grad, other.grad) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["tied", "untied"])
@torch.no_grad()
def test_fp32_parts_over_a_bf16_base(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    peft_adapter(folders[case], tmp_path, target_modules=[*BOTH], ensure_weight_tying=case == "tied")
    reference = peft.PeftModel.from_pretrained(theirs(folders[case], dtype=torch.bfloat16), tmp_path)
    model = load_model(folders[case], dtype=torch.bfloat16)
    load_adapter(model, tmp_path)
    x = torch.randn(2, 5, 32).bfloat16()
    found = model.model.embed_tokens(IDS), model.output_table.product(x)  # type: ignore[operator,union-attr]
    wanted = reference.get_input_embeddings()(IDS), reference.get_output_embeddings()(x)
    for ours, other in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, other)


@pytest.mark.parametrize("kind", ["softmax", "learned"])
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_beside_tables_of_few_bits(kind: str, bits: int) -> None:
    """As beside the numbers that the bits stand for; nothing can be merged."""
    model, plain = make(kind), make(kind)
    quantize_model(model, QuantizationConfig.rounded(bits=bits, group_size=32, embeddings=True, head=True))
    plain.model.embed_tokens.weight.copy_(model.model.embed_tokens.dequantized())  # type: ignore[operator]
    if kind == "learned":
        plain.lm_head.weight.copy_(model.lm_head.dequantized())  # type: ignore[operator]
    tokens = dict.fromkeys(BOTH, (5, 17)) if kind == "learned" else (5, 17)
    for each in (model, plain):
        add_lora(each, LoraConfig(target_modules=BOTH, token_indices=tokens))
        shake(each)
    hidden = torch.randn(2, 7, 64)
    assert rms_ratio(model.embed(IDS, None), plain.embed(IDS, None)) < 1e-6
    assert rms_ratio(model.unembed(hidden), plain.unembed(hidden)) < 1e-5
    assert rms_ratio(model.output_weight, plain.output_weight) < 1e-6
    with pytest.raises(UserError, match="quantized"):
        merge_adapters(model)


@pytest.mark.parametrize("kind", ["hybrid", "dijiang-decay", "gemma-like-hybrid"])
@torch.no_grad()
def test_step_by_step_with_a_cache(kind: str, tmp_path: Path) -> None:
    """Linear and hybrid models: token by token as at once, saved and read again; beside another adapter."""
    model = make(kind)
    base = model(IDS)
    add_lora(model, LoraConfig(target_modules=("q_proj",)), "first")
    add_lora(model, LoraConfig(r=3, target_modules=("all-linear", "embed_tokens"), token_indices=(5,)), "second")
    shake(model)
    whole, cache = model(IDS), model.new_cache(2)
    steps = torch.cat([model(IDS[:, t : t + 1], cache=cache) for t in range(IDS.shape[1])], 1)
    assert rms_ratio(steps, whole) < 1e-4
    save_adapter(model, tmp_path, "second")
    again = make(kind)
    load_adapter(again, tmp_path)
    assert rms_ratio(again(IDS), whole) < 1e-5
    set_adapter(model, "first")
    first = model(IDS)
    assert rms_ratio(first, whole) > 0.05 and rms_ratio(first, base) > 0.05
    set_adapter(model, None)
    assert torch.equal(model(IDS), base)


# -- what does not fit

E, H = "base_model.model.model.embed_tokens", "base_model.model.lm_head"


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        ({}, {f"{E}.base_layer.weight": torch.zeros(101, 64)}, "another table than the model's"),
        ({}, {f"{E}.base_layer.weight": torch.zeros(99, 64)}, "(99, 64), and the model's table (101, 64)"),
        ({}, {f"{E}.lora_embedding_A": None}, "lora_embedding_A' is missing"),
        ({}, {f"{H}.lora_B.weight": None}, "lora_B.weight' is missing"),
        ({}, {f"{E}.lora_embedding_A": None, f"{E}.lora_embedding_B": None}, "lora_embedding_A' is missing"),
        ({}, {f"{E}.lora_embedding_A": torch.zeros(4, 99)}, "(4, 99), but rank 4 and this model need (4, 101)"),
        ({}, {f"{H}.lora_A.weight": torch.zeros(5, 64)}, "(5, 64)"),
        ({"rank_pattern": {"embed_tokens": 5}}, {}, "rank 5"),
        ({}, {f"{H}.lora_magnitude_vector": torch.ones(101)}, "lora_magnitude_vector"),
        ({"use_dora": True}, {}, "DoRA"),
        ({"target_modules": ["q_proj"]}, {}, "not among the target modules"),
        ({"target_modules": "all-linear"}, {}, "not among the target modules"),
        ({"exclude_modules": ["embed_tokens", "lm_head"]}, {}, "not among the target modules"),
        ({"trainable_token_indices": [3]}, {}, "the rows of 'model.embed_tokens' are missing"),
    ],
)
def test_what_does_not_fit_is_named(
    settings: dict[str, Any], tensors: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = make("softmax")
    add_lora(model, LoraConfig(r=4, target_modules=("q_proj", "embed_tokens")))
    shake(model)
    save_adapter(model, tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    found = load_file(weights) | tensors
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, weights)
    base = make("softmax")
    with pytest.raises(UserError) as caught:
        load_adapter(base, tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not token_tables(base) and isinstance(base.layers[0].self_attn.q_proj, torch.nn.Linear)


def test_dora_is_refused_before_anything_changes() -> None:
    model = make("softmax")
    with pytest.raises(UserError, match="DoRA"):
        add_lora(model, LoraConfig(dora=True, target_modules=("all-linear", "embed_tokens")))
    assert all(type(module).__name__ != "LoraLinear" for module in model.modules())


# -- the command


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (dict(embedding_rank=16), "--embedding-rank 16"),
        (dict(embedding_rank=0, target_modules=("embed_tokens",)), "is 0, but must be at least 1"),
        (dict(dora=True, target_modules=("all-linear", "lm_head")), "--dora"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LoraOptions(**flags).config(None)


def test_the_part_of_the_table_is_multiplied_by_the_same_number() -> None:
    for rslora in (False, True):
        flags = LoraOptions(
            rank=2, alpha=6, rslora=rslora, embedding_rank=8, target_modules=("all-linear", "embed_tokens")
        )
        config = flags.config(None)
        assert config.rank("model.embed_tokens") == 8 and config.rank("model.layers.0.mlp.up_proj") == 2
        assert config.scaling("model.embed_tokens") == (6 / 8**0.5 if rslora else 3)
        assert flags.described() == "of rank 2, of the embedding 8"


def test_finetune_with_the_embedding(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tied, with rows of the chat template's tokens: learned, stopped and gone on with, read and merged."""
    data = tmp_path / "dialogs.jsonl"
    turns = [(("user", f"{n}은 무엇인가?"), ("assistant", f"수 {n}")) for n in range(24)]
    lines = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    out = tmp_path / "run"
    command = [
        "finetune", str(tiny_folder), "--data", str(data), "--out", str(out), "--method", "lora", "--rank", "2",
        "--alpha", "4", "--target-modules", "all-linear", "embed_tokens", "--embedding-rank", "8", "--epochs", "2",
        "--batch-size", "4", "--lr", "5e-3", "--device", "cpu", "--dtype", "float32", "--val-fraction", "0.2",
        "--save-every", "3",
    ]  # fmt: skip
    assert main(command) == 0
    assert "LoRA of rank 2, of the embedding 8 and the embeddings of" in capsys.readouterr().out
    done = json.loads((out / "finetune.json").read_text())
    assert done["after"]["loss"] < done["before"]["loss"]
    model, _ = yeoul.load(out, device="cpu")
    assert isinstance(model, Decoder) and token_tables(model)
    wanted = load_file(out / "adapter" / "adapter_model.safetensors")
    steps = sorted((out / "checkpoints").glob("step-*"))
    assert len(steps) > 1
    shutil.rmtree(steps[-1])
    assert main(command) == 0 and steps[-1].is_dir()
    again = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    assert main(["export", str(out), "--format", "hf", "--out", str(tmp_path / "merged")]) == 0
    merged, _ = yeoul.load(tmp_path / "merged", device="cpu")
    with torch.no_grad():
        assert not token_tables(merged) and rms_ratio(merged(IDS), model(IDS)) < 1e-4
        assert rms_ratio(yeoul.load(tiny_folder, device="cpu")[0](IDS), model(IDS)) > 0.01
