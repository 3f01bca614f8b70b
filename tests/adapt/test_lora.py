"""Adapters against PEFT: what either writes the other reads, and both compute and train alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import yeoul
from models import bare_conversion, make, rms_ratio
from yeoul import cli
from yeoul.adapt.linearize import convert
from yeoul.adapt.lora.api import (
    LoraConfig,
    LoraLinear,
    add_lora,
    load_adapter,
    lora_layers,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unmerge,
)
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.decoder import Decoder

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.randint(0, 99, (2, 24), generator=torch.Generator().manual_seed(0))
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "mistral": ("MistralForCausalLM", dict(num_key_value_heads=2, sliding_window=7)),
    "qwen2": ("Qwen2ForCausalLM", dict(num_key_value_heads=2)),
    "qwen3": ("Qwen3ForCausalLM", dict(num_key_value_heads=2, head_dim=24)),
    "gemma": ("GemmaForCausalLM", dict(num_key_value_heads=1, head_dim=16)),
    "gemma2": ("Gemma2ForCausalLM", dict(num_key_value_heads=2, head_dim=24, sliding_window=8)),
    "gemma3_text": ("Gemma3ForCausalLM", dict(num_key_value_heads=2, head_dim=24, sliding_window=8)),
    "exaone4": ("Exaone4ForCausalLM", dict(num_key_value_heads=2)),
    "gpt2": ("GPT2LMHeadModel", dict(n_inner=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)),
    "gpt_neox": ("GPTNeoXForCausalLM", dict(use_parallel_residual=True)),
}
FUSED = ("gpt2", "gpt_neox")
KINDS: dict[str, dict[str, Any]] = {
    "plain": dict(lora_alpha=16),
    "patterns": dict(
        use_rslora=True, rank_pattern={r"(layers|h)\.0\..*": 3}, alpha_pattern={r".*(o_proj|dense|attn\.c_proj)": 5}
    ),
    "dora": dict(use_dora=True, lora_alpha=6),
}
CASES = [(name, kind) for name in BASES for kind in KINDS if name in ("llama", *FUSED) or kind == "patterns"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of a small random model of a published family."""
    transformers = pytest.importorskip("transformers")
    home, made = tmp_path_factory.mktemp("bases"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            kind, options = BASES[name]
            model_class = getattr(transformers, kind)
            torch.manual_seed(2)
            config = model_class.config_class(
                vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
                initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                **({} if name == "gpt2" else {"intermediate_size": 128}), **options,
            )  # fmt: skip
            made[name] = home / name
            model_class(config).save_pretrained(made[name])
        return made[name]

    return folder


def theirs(folder: Path, **options: Any) -> Any:
    return pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def shake(parameters: Any) -> None:
    """Adapters that do something: every number is random."""
    torch.manual_seed(3)
    for name, parameter in parameters:
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif "lora_" in name or ".adapters." in name:
            parameter.data.normal_(std=0.2)


def peft_adapter(base: Path, folder: Path, *, shaken: bool = True, **settings: Any) -> Any:
    """An adapter that PEFT made, saved in `folder`; returns PEFT's model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", **settings})
    model = peft.get_peft_model(theirs(base), config).eval()
    if shaken:
        shake(model.named_parameters())
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_an_adapter_of_peft_computes_the_same(name: str, kind: str, folders: Any, tmp_path: Path) -> None:
    wanted = peft_adapter(folders(name), tmp_path / "theirs", **KINDS[kind])(IDS).logits
    model = load_model(folders(name))
    base, before = model(IDS), {n: p.clone() for n, p in model.named_parameters()}
    load_adapter(model, tmp_path / "theirs")
    assert rms_ratio(base, wanted) > 0.1
    assert rms_ratio(model(IDS), wanted) < 1e-5
    merge_adapters(model)
    assert rms_ratio(model(IDS), wanted) < 1e-5
    unmerge(model)
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if ".adapters." not in n}
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    set_adapter(model, None)
    assert torch.equal(model(IDS), base)
    save_adapter(model, tmp_path / "ours")
    first, second = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("theirs", "ours"))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(("name", "kind"), [*CASES, *((name, "few") for name in FUSED)])
@torch.no_grad()
def test_peft_reads_what_is_saved_here(name: str, kind: str, folders: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = {
        "plain": LoraConfig(r=4, alpha=16),
        "patterns": LoraConfig(rslora=True, rank_pattern={"v_proj": 3}, alpha_pattern={"layers.1.self_attn.k_proj": 5}),
        "dora": LoraConfig(r=3, dora=True),
        "few": LoraConfig(dora=True, target_modules=("q_proj", "v_proj"), layers_to_transform=(1,)),
    }[kind]
    model = load_model(folders(name))
    add_lora(model, config)
    shake(model.named_parameters())
    save_adapter(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs(folders(name)), tmp_path)
    assert rms_ratio(loaded(IDS).logits, model(IDS)) < 1e-5
    again = load_model(folders(name))
    load_adapter(again, tmp_path)
    assert rms_ratio(again(IDS), model(IDS)) < 1e-5
    merge_and_unload(model)
    assert not lora_layers(model) and all(isinstance(layer.mlp.up_proj, torch.nn.Linear) for layer in model.layers)
    assert rms_ratio(model(IDS), again(IDS)) < 1e-5


def losses_of(module: torch.nn.Module) -> torch.Tensor:
    """Of twenty steps of AdamW."""
    data = torch.randint(0, 99, (20, 2, 16), generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.AdamW([p for p in module.train().parameters() if p.requires_grad], lr=1e-2)
    found = []
    for ids in data:
        logits = module(ids)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("name", "kind"), [*(("llama", kind) for kind in KINDS), ("gpt2", "dora"), ("gpt_neox", "patterns")]
)
def test_training_goes_as_in_peft(name: str, kind: str, folders: Any, tmp_path: Path) -> None:
    reference = peft_adapter(folders(name), tmp_path, shaken=False, **KINDS[kind])
    model = load_model(folders(name))
    load_adapter(model, tmp_path)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".adapters." in n for n in trained)
    wanted = losses_of(reference)
    assert rms_ratio(losses_of(model), wanted) < 1e-4
    assert wanted[:3].mean() > wanted[-3:].mean()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fp32_adapters_over_a_bf16_base(kind: str, folders: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    peft_adapter(folders("llama"), tmp_path, **KINDS[kind])
    reference = peft.PeftModel.from_pretrained(theirs(folders("llama"), dtype=torch.bfloat16), tmp_path)
    model = load_model(folders("llama"), dtype=torch.bfloat16)
    load_adapter(model, tmp_path)
    for path, layer in lora_layers(model).items():
        x = torch.randn(3, layer.in_features).bfloat16()
        given, wanted = layer(x), reference.base_model.model.get_submodule(path)(x)
        assert given.dtype == torch.bfloat16 and layer.adapter("default").A.dtype == torch.float32
        assert torch.equal(given, wanted)
    merge_adapters(model)
    reference.merge_adapter()
    for path, layer in lora_layers(model).items():
        assert torch.equal(layer.weight, reference.base_model.model.get_submodule(path).base_layer.weight)


TARGETS: list[dict[str, Any]] = [
    dict(target_modules=["q_proj", "v_proj"]),
    dict(target_modules=["q_proj", "model.layers.0.mlp.up_proj"], layers_to_transform=1),
    dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[0], layers_pattern="layers"),
    dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[0], layers_pattern=["blocks", "layers"]),
    dict(target_modules=r".*\.1\.(self_attn|mlp)\.(k|up)_proj"),
    dict(target_modules="all-linear", exclude_modules=["mlp.up_proj", "k_proj"]),
    dict(target_modules=["o_proj", "up_proj"], exclude_modules=r"model\.layers\.0\..*"),
]


@pytest.mark.parametrize("settings", TARGETS, ids=lambda settings: str(list(settings.values())))
def test_the_same_modules_are_targeted(settings: dict[str, Any], folders: Any, tmp_path: Path) -> None:
    peft_adapter(folders("llama"), tmp_path, **settings)
    model = load_model(folders("llama"))
    load_adapter(model, tmp_path)  # names any tensor that is too many or too few
    adapted = set(lora_layers(model))
    other = load_model(folders("llama"))
    add_lora(other, LoraConfig(**settings))
    assert set(lora_layers(other)) == adapted and 0 < len(adapted) < 14


TOKENS: dict[str, Any] = {
    "llama": [3, 50], "gemma": [7], "gpt2": [50, 3],
    "qwen2": {"embed_tokens": [3, 50], "lm_head": [3, 50]},
    "gpt_neox": {"embed_in": [9, 3], "lm_head": [50]},
}  # fmt: skip
"""Of a model whose output is tied to the embedding, and of one with an output layer of its own."""


@pytest.mark.parametrize("name", TOKENS)
def test_rows_of_tokens_as_in_peft(name: str, folders: Any, tmp_path: Path) -> None:
    """PEFT's trainable tokens: computed, trained, merged, taken off, written and read alike."""
    peft = pytest.importorskip("peft")
    settings = dict(lora_alpha=16, trainable_token_indices=TOKENS[name])
    reference = peft_adapter(folders(name), tmp_path / "theirs", shaken=False, **settings)
    model = load_model(folders(name))
    base, before = model(IDS), {n: p.clone() for n, p in model.named_parameters()}
    load_adapter(model, tmp_path / "theirs")
    assert rms_ratio(model(IDS), base) < 1e-5
    assert rms_ratio(losses_of(model), losses_of(reference)) < 1e-4
    model.eval()
    wanted = reference.eval()(IDS).logits
    assert rms_ratio(model(IDS), wanted) < 1e-4 and rms_ratio(model(IDS), base) > 0.01
    assert rms_ratio(model.hidden(IDS) @ model.output_weight.T, model(IDS)) < 1e-5 or name == "gemma"
    apart = model(IDS)
    merge_adapters(model)
    assert rms_ratio(model(IDS), apart) < 1e-5
    unmerge(model)
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if ".adapters." not in n}
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    save_adapter(model, tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(theirs(folders(name)), tmp_path / "ours")
    again = load_model(folders(name))
    load_adapter(again, tmp_path / "ours")
    for other in (loaded(IDS).logits, again(IDS), merge_and_unload(again)(IDS)):
        assert rms_ratio(other, apart) < 1e-5
    save_model(again, tmp_path / "merged")


@torch.no_grad()
def test_adapters_by_name(tmp_path: Path) -> None:
    model = make("softmax")
    base = model(IDS)
    add_lora(model, LoraConfig(r=2), "first")
    assert torch.equal(model(IDS), base)  # B is zero
    shake(model.named_parameters())
    first = model(IDS)
    add_lora(model, LoraConfig(r=3, target_modules=("q_proj",)), "second")
    assert torch.equal(model(IDS), base)
    assert {n.rpartition(".adapters.")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "second.A", "second.B",
    }  # fmt: skip
    set_adapter(model, "first")
    merge_adapters(model)
    assert rms_ratio(model(IDS), first) < 1e-5
    assert len(model.layers[0].self_attn.q_proj.state_dict()) == 5  # the kept original is not saved
    set_adapter(model, "second")  # which unmerges
    assert torch.equal(model(IDS), base)
    set_adapter(model, "first")
    assert torch.equal(model(IDS), first)
    for call in (lambda: add_lora(model, LoraConfig(), "first"), lambda: set_adapter(model, "third"),
                 lambda: save_adapter(model, tmp_path, "third"), lambda: add_lora(model, LoraConfig(), "a.b"),
                 lambda: add_lora(model, LoraConfig(target_modules=("c_attn",)), "new")):  # fmt: skip
        with pytest.raises(UserError, match="first|third|a.b|c_attn"):
            call()


@torch.no_grad()
def test_dora_of_a_new_adapter_changes_nothing_at_first() -> None:
    model = make("classic")
    base = model(IDS)
    add_lora(model, LoraConfig(dora=True))
    assert rms_ratio(model(IDS), base) < 1e-6


def test_dropout_is_for_training_only() -> None:
    model = make("softmax")
    add_lora(model, LoraConfig(dropout=0.5))
    shake(model.named_parameters())
    x = torch.randn(2, 64)
    layer = model.layers[0].self_attn.q_proj
    assert torch.equal(layer(x), layer(x))
    model.train()
    assert not torch.equal(layer(x), layer(x))


def test_gradients_pass_frozen_layers_with_checkpointing() -> None:
    model = make("hybrid").train()
    model.gradient_checkpointing = True
    add_lora(model, LoraConfig(target_modules=("q_proj",)))
    model(IDS).square().mean().backward()
    gradients = [layer.adapter("default").B.grad for layer in lora_layers(model).values()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    assert sum(p.grad is not None for p in model.parameters()) == 2 * len(gradients)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@torch.no_grad()
def test_the_linearized_form_of_the_base_takes_its_adapter(name: str, folders: Any, tmp_path: Path) -> None:
    """A layer's projections are those of the softmax model, so that they give what they give there."""
    peft_adapter(folders(name), tmp_path / "adapter")
    softmax = load_model(folders(name))
    save_model(convert(softmax, bare_conversion(window=4)), tmp_path / "linear")
    linear = load_model(tmp_path / "linear")
    load_adapter(softmax, tmp_path / "adapter")
    load_adapter(linear, tmp_path / "adapter")
    for path, layer in lora_layers(softmax).items():
        x = torch.randn(3, layer.in_features)
        assert torch.equal(linear.get_submodule(path)(x), layer(x))
    save_adapter(linear, tmp_path / "again")
    names = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    again = load_model(tmp_path / "linear")
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(IDS), linear(IDS))


# -- what is damaged or not supported


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Decoder, Path]:
    model = make("softmax")
    add_lora(model, LoraConfig(r=4, base_model="somebody/base"))
    shake(model.named_parameters())
    save_adapter(model, tmp_path / "adapter")
    return make("softmax"), tmp_path / "adapter"


Q = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
ROWS = "token_adapter.trainable_tokens_delta"


def rewrite(folder: Path, settings: dict[str, Any], tensors: dict[str, torch.Tensor | None]) -> None:
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    found = load_file(weights) | tensors
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, weights)


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        ({"r": 5}, {}, "(4, 64)"),
        ({"rank_pattern": {"q_proj": 2}}, {}, "somebody/base"),
        ({}, {f"{Q}.lora_A.weight": None}, f"{Q}.lora_A.weight' is missing"),
        ({}, {f"{Q}.lora_A.weight": None, f"{Q}.lora_B.weight": None}, f"{Q}.lora_A.weight' is missing"),
        ({}, {f"{Q}.lora_A.weight": torch.zeros(4, 32)}, "(4, 32)"),
        ({}, {f"{Q}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int64)}, "int64"),
        ({}, {f"{Q}.lora_magnitude_vector": torch.ones(64)}, "use_dora"),
        ({"use_dora": True}, {}, "lora_magnitude_vector' is missing"),
        ({}, {f"{Q}.lora_A.default.weight": torch.zeros(4, 64)}, "lora_A.default"),
        ({}, {"surprise": torch.zeros(1)}, "surprise"),
        ({}, {f"{EMBEDDING}.lora_embedding_A": torch.zeros(4, 101)}, "not among the target modules"),
        ({}, {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "lm_head"),
        ({"target_modules": ["up_proj"]}, {}, "not among the target modules"),
        ({"target_modules": ["c_attn"]}, {}, "not among the target modules"),
        ({"target_modules": None}, {}, "target_modules"),
        ({"target_modules": "(q_proj"}, {}, "regular expression"),
        ({"rank_pattern": {"(": 4}}, {}, "regular expression"),
        ({"rank_pattern": 3}, {}, "rank_pattern"),
        ({"r": "4"}, {}, "'4'"),
        ({"lora_alpha": float("nan")}, {}, "NaN"),
        ({"lora_alpha": 0}, {}, "[0]"),
        ({"lora_dropout": 1.5}, {}, "1.5"),
        ({"peft_type": "IA3"}, {}, "peft_type"),
        ({"bias": "all"}, {}, "bias"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa"),
        ({"use_qalora": True}, {}, "use_qalora"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, {}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, {}, "megatron_config"),
        ({"trainable_token_indices": [1]}, {}, "the rows of 'model.embed_tokens' are missing"),
        ({"trainable_token_indices": [1, 1]}, {}, "different ids"),
        ({"trainable_token_indices": [1]}, {f"{EMBEDDING}.{ROWS}": torch.zeros(2, 64)}, "(2, 64)"),
        ({}, {f"{EMBEDDING}.{ROWS}": torch.zeros(2, 64)}, "do not belong to any tokens"),
        ({"alora_invocation_tokens": [1]}, {}, "alora_invocation_tokens"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"target_parameters": ["experts"]}, {}, "target_parameters"),
        ({"something_new": 3}, {}, "something_new"),
    ],
)
def test_what_does_not_fit_is_named(
    settings: dict[str, Any], tensors: dict[str, Any], said: str, saved: tuple[Decoder, Path]
) -> None:
    model, folder = saved
    rewrite(folder, settings, tensors)
    with pytest.raises(UserError) as caught:
        load_adapter(model, folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not lora_layers(model)


def test_a_wrong_name_is_an_adapters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the adapter is not available"):
        load_adapter(make("softmax"), tmp_path / "nowhere")


@pytest.mark.parametrize("how", ["truncated", "empty", "pickle", "missing", "json", "no config"])
def test_damaged_files_are_named(how: str, saved: tuple[Decoder, Path]) -> None:
    model, folder = saved
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif how == "missing":
        weights.unlink()
    elif how == "json":
        config.write_text("{")
    elif how == "no config":
        config.unlink()
    with pytest.raises(UserError, match="pickle" if how == "pickle" else "adapter_") as caught:
        load_adapter(model, folder)
    assert "\n" not in str(caught.value)


def test_every_key_of_peft_is_decided_upon(tmp_path: Path) -> None:
    """PEFT's default of each of its settings is read; what it writes today has no unknown key."""
    peft = pytest.importorskip("peft")
    written = peft.LoraConfig(target_modules=["q_proj"]).to_dict() | {"peft_type": "LORA", "target_modules": ["q_proj"]}
    assert LoraConfig.from_dict(written) == LoraConfig(target_modules=("q_proj",), alpha=8)
    few = {"peft_type": "LORA", "target_modules": ["q_proj"]}  # a file that leaves keys out means PEFT's own values
    assert LoraConfig.from_dict(few) == LoraConfig(
        r=written["r"], alpha=written["lora_alpha"], target_modules=("q_proj",)
    )
    ours = LoraConfig(target_modules=("q_proj",), rank_pattern={"k_proj": 3}, base_model="a/b", alpha=7)
    assert LoraConfig.from_dict(ours.to_dict()) == ours
    read = peft.LoraConfig.from_peft_type(**ours.to_dict())
    assert (read.r, read.lora_alpha, read.rank_pattern, read.target_modules) == (8, 7, {"k_proj": 3}, {"q_proj"})


def test_a_base_that_is_not_plain_linear() -> None:
    class Shell(torch.nn.Module):
        """A linear layer whose weight is not to be had, as of a quantized model."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.kept, self.in_features, self.out_features = linear, linear.in_features, linear.out_features

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.kept(x)

    model, plain = make("softmax"), make("softmax")
    model.layers[0].mlp.up_proj = Shell(model.layers[0].mlp.up_proj)
    for each in (model, plain):
        add_lora(each, LoraConfig())
        shake(each.named_parameters())
    assert torch.equal(model(IDS), plain(IDS))
    with pytest.raises(UserError, match="quantized"):
        merge_adapters(model)
    assert not any(layer.merged for layer in lora_layers(model).values())
    for name in ("dora", "dora"):  # the first leaves nothing behind
        with pytest.raises(UserError, match="quantized"):
            add_lora(model, LoraConfig(dora=True), name)


# -- from the outside


@pytest.fixture
def run_with_tokenizer(tmp_path: Path) -> Path:
    """A small model with a tokenizer, and an adapter that names it as its base."""
    tokenizer = ["tokenizer", "train", "builtin:60KB", "--vocab-size", "1200", "--out", f"{tmp_path}/base"]
    assert cli.main(tokenizer) == 0
    torch.manual_seed(0)
    config = make("softmax").config.with_(vocab_size=1200)
    model = Decoder(config).eval()
    save_model(model, tmp_path / "base")
    add_lora(model, LoraConfig(base_model=str(tmp_path / "base")))
    shake(model.named_parameters())
    save_adapter(model, tmp_path / "adapter")
    save_adapter(model, tmp_path / "ad.two")
    merge_and_unload(model)
    save_model(model, tmp_path / "merged")
    return tmp_path


@torch.no_grad()
def test_load_and_generate_with_an_adapter(run_with_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = run_with_tokenizer
    merged = yeoul.load(home / "merged", device="cpu")[0](IDS)
    assert rms_ratio(yeoul.load(home / "base", device="cpu")[0](IDS), merged) > 0.1
    ways: list[tuple[Path, Any]] = [
        (home / "base", home / "adapter"),
        (home / "base", [home / "adapter", home / "ad.two"]),
        (home / "adapter", None),
    ]  # fmt: skip
    for path, adapter in ways:
        model, tokenizer = yeoul.load(path, device="cpu", adapter=adapter)
        assert tokenizer is not None and isinstance(model.layers[0].mlp.up_proj, LoraLinear)
        assert rms_ratio(model(IDS), merged) < 1e-5
    outputs = []
    common = ["--max-tokens", "6", "--temperature", "0", "--ignore-eos", "--device", "cpu"]
    for arguments in ([f"{home}/base", "옛날", "--adapter", f"{home}/adapter"], [f"{home}/adapter", "옛날"]):
        capsys.readouterr()
        assert cli.main(["generate", *arguments, *common]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].strip()


def test_a_base_that_is_not_there_is_said(saved: tuple[Decoder, Path], tmp_path: Path) -> None:
    _, folder = saved
    rewrite(folder, {"base_model_name_or_path": str(tmp_path / "moved")}, {})
    with pytest.raises(UserError, match="the adapter is for .*moved.*no such model folder"):
        yeoul.load(folder)
    rewrite(folder, {"base_model_name_or_path": None}, {})
    with pytest.raises(UserError, match="which model it is for"):
        yeoul.load(folder)


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "adapters.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) > 2
    for block in blocks:
        exec(compile(block, "adapters.md", "exec"), {"__name__": "docs"})
