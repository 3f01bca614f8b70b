"""Models of model_type "yeoul" in transformers: the same numbers, generation, Trainer, PEFT, folders both ways."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import yeoul
from models import KINDS, VOCAB, make, rms_ratio
from yeoul.errors import UserError
from yeoul.infer.engine import generate_ids
from yeoul.infer.sample import SamplingParams
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.families import FAMILIES
from yeoul.model.remote_code import AUTO_MAP, remote_code_files

transformers = pytest.importorskip("transformers")

from yeoul import hf  # noqa: E402 - it needs transformers

ALL = [*KINDS, "dijiang-official"]
SOME = ["classic", "hybrid-decay", "mixed"]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [100, 3], list(range(20, 45))]
GREEDY = dict(do_sample=False, max_new_tokens=64, pad_token_id=0)


def decoder_of(kind: str) -> Decoder:
    """`make`, and the authors' layers too."""
    if kind in KINDS:
        return make(kind)
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, attention=("dijiang-official",),
                         max_position_embeddings=128, initializer_range=0.15)  # fmt: skip
    return Decoder(config).eval()


def wrapped(decoder: Decoder) -> Any:
    """The decoder's configuration and weights in transformers' model."""
    model = hf.YeoulForCausalLM(hf.YeoulConfig(**decoder.config.to_dict()))
    missing = model.load_state_dict(decoder.state_dict(), strict=False).missing_keys
    assert missing == (["lm_head.weight"] if decoder.config.tie_embeddings else [])
    return model.eval()


def saved_natively(decoder: Decoder, folder: Path) -> Path:
    """`save_model`, under model_type "yeoul" also where a published family could say it."""
    save_model(decoder, folder)
    if json.loads((folder / "config.json").read_text())["model_type"] != "yeoul":
        description = {"model_type": "yeoul", **FAMILIES["yeoul"].write(decoder.config)}
        (folder / "config.json").write_text(json.dumps(description | {"dtype": "float32"}))
        save_file(decoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def some_ids(rows: int = 2, columns: int = 23) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, columns), generator=torch.Generator().manual_seed(3))


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts in one batch, (B, T) ids and mask."""
    T = max(map(len, PROMPTS))
    rows = [(p, [0] * (T - len(p))) for p in PROMPTS]
    ids = [gap + p if side == "left" else p + gap for p, gap in rows]
    mask = [[0] * len(gap) + [1] * len(p) if side == "left" else [1] * len(p) + [0] * len(gap) for p, gap in rows]
    return torch.tensor(ids), torch.tensor(mask)


# -- folders


@pytest.mark.parametrize("kind", ALL)
@torch.inference_mode()
def test_folders_go_both_ways(kind: str, tmp_path: Path) -> None:
    decoder, ids = decoder_of(kind), some_ids()
    model = transformers.AutoModelForCausalLM.from_pretrained(saved_natively(decoder, tmp_path / "ours"))
    assert type(model) is hf.YeoulForCausalLM and not model.training
    theirs = {name: p.requires_grad for name, p in model.named_parameters()}
    assert theirs == {name: p.requires_grad for name, p in decoder.named_parameters()}
    expected = decoder(ids)
    assert rms_ratio(model(ids).logits, expected) <= 1e-5
    model.save_pretrained(tmp_path / "theirs")
    again, _ = yeoul.load(tmp_path / "theirs", device="cpu")
    assert again.config == decoder.config
    assert torch.equal(again(ids), expected)
    assert load_file(tmp_path / "theirs" / "model.safetensors").keys() == decoder.state_dict().keys()


def test_the_configuration_speaks_both_languages(tmp_path: Path) -> None:
    ours = make("mixed").config.with_(eos_id=2, bos_id=1, tie_embeddings=False)
    config = hf.YeoulConfig(**ours.to_dict())
    assert config.model_config() == ours
    names = dict(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=64, vocab_size=VOCAB,
                 max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
                 pad_token_id=None)  # fmt: skip
    assert {name: getattr(config, name) for name in names} == names
    assert {name: config.to_dict()[name] for name in names} == names
    config.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert again.model_config() == ours and again.to_diff_dict() == config.to_diff_dict()
    assert transformers.AutoConfig.from_pretrained(tmp_path, eos_token_id=7).model_config().eos_id == 7
    assert hf.YeoulConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4).model_config().num_layers == 2
    model = hf.YeoulForCausalLM(config)
    assert model.generation_config.eos_token_id == 2
    with pytest.raises(UserError, match="attention names 3 layers"):
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path, num_layers=2))


def test_feature_maps_and_decays_stay_float32(tmp_path: Path) -> None:
    save_model(make("hybrid-decay"), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = {name: p.dtype for name, p in load_model(tmp_path, dtype=torch.bfloat16).named_parameters()}
    assert {torch.bfloat16, torch.float32} == set(expected.values())
    assert {name: p.dtype for name, p in model.named_parameters()} == expected
    model.save_pretrained(tmp_path / "half")
    again = load_model(tmp_path / "half")
    assert {name: p.dtype for name, p in again.named_parameters()} == expected
    assert torch.equal(again(some_ids()), model(some_ids()).logits)


def test_a_new_model_is_drawn_as_a_decoder_is() -> None:
    config = make("hybrid-decay").config
    torch.manual_seed(3)
    expected = Decoder(config)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(hf.YeoulConfig(**config.to_dict()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    half = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.model.layers[0].self_attn.decay_logit.dtype == torch.float32


def test_a_missing_tensor_is_drawn_anew(tmp_path: Path) -> None:
    decoder, trained = make("hybrid-decay"), make("hybrid-decay")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.25)
    save_model(trained, tmp_path)
    names = ["model.layers.0.self_attn.feature_map.directions", "model.layers.1.self_attn.decay_logit"]
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in names}, tmp_path / "model.safetensors", {"format": "pt"})
    model = hf.YeoulForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        source = decoder if name in names else trained
        torch.testing.assert_close(parameter.data, source.get_parameter(name).data)


# -- numbers


@pytest.mark.parametrize("kind", ALL)
@torch.inference_mode()
def test_in_pieces_and_with_padding(kind: str) -> None:
    decoder = decoder_of(kind)
    model, ids = wrapped(decoder), some_ids()
    expected, cache, pieces = decoder(ids), None, []
    for start, end in ((0, 9), (9, 10), (10, 11), (11, 23)):
        mask = torch.ones(2, end, dtype=torch.int64)
        positions = torch.arange(start, end)[None]
        out = model(ids[:, start:end], mask, positions, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    assert cache.get_seq_length() == 23 and cache.batch_size == 2
    assert rms_ratio(torch.cat(pieces, 1), expected) <= 1e-5
    for side in ("left", "right"):
        rows, mask = padded(side)
        logits = model(rows, mask, use_cache=None).logits
        for row, keep, prompt in zip(logits, mask.bool(), PROMPTS, strict=True):
            assert rms_ratio(row[keep], decoder(torch.tensor([prompt]))[0]) <= 1e-5


@torch.inference_mode()
def test_packed_rows_are_told_by_their_positions() -> None:
    model = wrapped(make("mixed"))
    packed = torch.tensor([sum(PROMPTS, [])])
    positions = torch.tensor([[i for p in PROMPTS for i in range(len(p))]])
    apart = [model(torch.tensor([p])).logits[0] for p in PROMPTS]
    assert rms_ratio(model(packed, position_ids=positions).logits[0], torch.cat(apart)) <= 1e-5


@torch.inference_mode()
def test_outputs() -> None:
    decoder = make("classic")
    model, ids = wrapped(decoder), some_ids()
    whole = model(ids, output_hidden_states=True)
    assert torch.equal(model(ids, logits_to_keep=4).logits, whole.logits[:, -4:])
    some = torch.tensor([1, 5])
    assert torch.equal(model(ids, logits_to_keep=some).logits, whole.logits[:, some])
    assert len(whole.hidden_states) == 3
    assert torch.equal(whole.hidden_states[0], decoder.embed(ids, None))
    assert torch.equal(whole.hidden_states[-1], decoder.hidden(ids))
    loss, logits, cache = model(ids, labels=ids, use_cache=True, return_dict=False)
    assert loss.ndim == 0 and torch.equal(logits, whole.logits) and isinstance(cache, hf.YeoulCache)
    assert model(ids, labels=ids).past_key_values is None
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, whole.logits)


def test_loss_is_shifted_and_counts_items() -> None:
    model, ids = wrapped(make("hybrid")).train(), some_ids()
    labels = ids.clone()
    labels[0, :7] = -100
    with torch.no_grad():
        rows = model(ids).logits[:, :-1].flatten(0, 1)
    total = F.cross_entropy(rows, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    count = int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(model(ids, labels=labels).loss, total / count)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=100).loss, total / 100)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_changes_no_gradient() -> None:
    ids, gradients = some_ids(), []
    for checkpointing in (False, True):
        model = wrapped(make("hybrid-decay")).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        seen: list[int] = []
        model.model.layers[0].input_layernorm.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model(ids, labels=ids).loss.backward()
        assert len(seen) == (2 if checkpointing else 1)
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.inference_mode()
def test_a_longer_vocabulary(tmp_path: Path) -> None:
    for kind in ("hybrid", "learned"):  # tied and not
        model = wrapped(make(kind))
        before = model(some_ids()).logits
        model.resize_token_embeddings(VOCAB + 10)
        after = model(some_ids()).logits
        assert after.shape[-1] == VOCAB + 10 and rms_ratio(after[..., :VOCAB], before) <= 1e-5
        model.save_pretrained(tmp_path / kind)
        assert rms_ratio(load_model(tmp_path / kind)(some_ids()), after) <= 1e-5


# -- generation


@pytest.mark.parametrize("kind", ALL)
def test_greedy_64_tokens_are_yeouls_own(kind: str) -> None:
    decoder = decoder_of(kind)
    expected = generate_ids(decoder, PROMPTS[:1], SamplingParams(max_tokens=64, temperature=0))[0]
    prompt = torch.tensor(PROMPTS[:1])
    out = wrapped(decoder).generate(prompt, **GREEDY)
    assert len(expected) == 64 and out[0, prompt.shape[1] :].tolist() == expected


@pytest.mark.parametrize("kind", SOME)
def test_generation_without_a_cache_is_the_same(kind: str) -> None:
    model, prompt = wrapped(make(kind)), torch.tensor(PROMPTS[:1])
    settings: list[dict[str, Any]] = [
        GREEDY, GREEDY | dict(num_beams=3, max_new_tokens=12), dict(do_sample=True, top_k=20, max_new_tokens=12),
    ]  # fmt: skip
    for setting in settings:
        texts = []
        for use_cache in (True, False):
            torch.manual_seed(7)
            texts.append(model.generate(prompt, use_cache=use_cache, **setting).tolist())
        assert texts[0] == texts[1], setting


@pytest.mark.parametrize("kind", SOME)
def test_a_left_padded_batch_is_as_each_alone(kind: str) -> None:
    model, (ids, mask) = wrapped(make(kind)), padded("left")
    settings = GREEDY | dict(max_new_tokens=24)
    together = model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    alone = [model.generate(torch.tensor([p]), **settings)[0, len(p) :].tolist() for p in PROMPTS]
    assert together.tolist() == alone


def test_generation_goes_on_from_a_cache_and_from_embeddings() -> None:
    model, prompt = wrapped(make("hybrid")), torch.tensor(PROMPTS[:1])
    whole = model.generate(prompt, **GREEDY)
    first = model.generate(prompt, return_dict_in_generate=True, **GREEDY | dict(max_new_tokens=20))
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, **GREEDY | dict(max_new_tokens=44))
    assert torch.equal(rest, whole) and rest.shape[1] == prompt.shape[1] + 64
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **GREEDY)
    assert torch.equal(embedded, whole[:, prompt.shape[1] :])


def test_a_cache_of_constant_size() -> None:
    model, sizes = wrapped(make("hybrid")), []
    for tokens in (16, 64):
        out = model.generate(torch.tensor(PROMPTS[:1]), return_dict_in_generate=True,
                             **GREEDY | dict(max_new_tokens=tokens))  # fmt: skip
        sizes.append(out.past_key_values.nbytes())
    assert sizes[0] == sizes[1] > 0


def test_what_cannot_be_is_said_in_a_sentence() -> None:
    model, prompt = wrapped(make("hybrid")), torch.tensor(PROMPTS[:1])
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(prompt, prompt_lookup_num_tokens=3, **GREEDY)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCAB, **sizes))
    with pytest.raises(UserError, match="takes tokens back"):
        llama.generate(prompt, assistant_model=model, **GREEDY)
    with pytest.raises(UserError, match="takes tokens back"):
        model(prompt).past_key_values.crop(1)
    with pytest.raises(UserError, match="no static cache"):
        model.generate(prompt, cache_implementation="static", **GREEDY)
    with pytest.raises(UserError, match="DynamicCache cannot hold"):
        model(prompt, past_key_values=transformers.DynamicCache())
    with pytest.raises(UserError, match="attention weights"):
        model(prompt, output_attentions=True)
    with pytest.raises(UserError, match="does not fit"):
        model(prompt, attention_mask=torch.ones(1, 3))
    cache = model(prompt).past_key_values
    with pytest.raises(UserError, match="positions follow"):
        model(prompt, position_ids=torch.arange(7)[None], past_key_values=cache)


# -- training


def trainer(model: Any, folder: Path, rows: list[dict[str, list[int]]], **settings: Any) -> Any:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Padded on the right, as collators for training do."""
        T = max(len(e["input_ids"]) for e in examples)
        ids = [e["input_ids"] + [0] * (T - len(e["input_ids"])) for e in examples]
        mask = torch.tensor([[1] * len(e["input_ids"]) + [0] * (T - len(e["input_ids"])) for e in examples])
        labels = torch.tensor(ids).masked_fill(mask == 0, -100)
        return {"input_ids": torch.tensor(ids), "attention_mask": mask, "labels": labels}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
        lr_scheduler_type="constant", remove_unused_columns=False, seed=0, **settings,
    )  # fmt: skip
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate
    )


ROWS = [{"input_ids": p} for p in (PROMPTS[0], PROMPTS[2])]


def test_trainer_trains_and_saves(tmp_path: Path) -> None:
    run = trainer(wrapped(make("mixed")), tmp_path / "run", ROWS, max_steps=8, learning_rate=3e-3)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 8 and losses[-1] < 0.8 * losses[0]
    assert run.evaluate()["eval_loss"] < losses[0]
    run.save_model(str(tmp_path / "trained"))
    again, _ = yeoul.load(tmp_path / "trained", device="cpu")
    run.model.eval()
    with torch.inference_mode():
        assert rms_ratio(again(some_ids()), run.model(some_ids()).logits) <= 1e-5


def test_trainer_accumulates_over_tokens_not_batches(tmp_path: Path) -> None:
    """One step over two rows of unequal length is one step over the two micro-batches."""
    weights = []
    for batch, steps in ((2, 1), (1, 2)):
        run = trainer(
            wrapped(make("hybrid")), tmp_path / f"{steps}", ROWS, max_steps=1, learning_rate=0.1, optim="sgd",
            per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
        )  # fmt: skip
        run.train()
        weights.append({name: p.detach() for name, p in run.model.named_parameters()})
    before = dict(make("hybrid").named_parameters())
    name = "model.layers.0.self_attn.v_proj.weight"
    assert rms_ratio(weights[0][name], before[name].detach()) > 1e-4
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)


def test_peft_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    torch.manual_seed(0)
    base, ids = wrapped(make("hybrid-decay")), some_ids()
    with torch.no_grad():
        before = base(ids).logits
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # layers, projections, two matrices
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.inference_mode():
        adapted = model(ids).logits
        text = model.generate(input_ids=torch.tensor(PROMPTS[:1]), **GREEDY | dict(max_new_tokens=8))
        assert text.shape[1] == len(PROMPTS[0]) + 8 and rms_ratio(adapted, before) > 1e-3
        model.merge_and_unload().save_pretrained(tmp_path)
        assert rms_ratio(load_model(tmp_path)(ids), adapted) <= 1e-5


# -- whole folders with a tokenizer


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from text.samples import small_corpus
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(small_corpus(), TokenizerConfig(vocab_size=560), folder)
    config = make("hybrid").config.with_(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    torch.manual_seed(0)
    wrapped(Decoder(config)).save_pretrained(folder)
    return folder


TEXT = "옛날 옛적에 강가에서"


def test_pipeline(with_tokenizer: Path) -> None:
    pipe = transformers.pipeline("text-generation", model=str(with_tokenizer), device="cpu")
    (answer,) = pipe(TEXT, do_sample=False, max_new_tokens=12, return_tensors=True)
    model, tokenizer = yeoul.load(with_tokenizer, device="cpu")
    assert tokenizer is not None
    prompt = tokenizer.encode(TEXT)
    expected = generate_ids(model, [prompt], SamplingParams(max_tokens=12, temperature=0))[0]
    assert answer["generated_token_ids"] == prompt + expected
    (answer,) = pipe(TEXT, do_sample=False, max_new_tokens=12)
    assert answer["generated_text"].startswith(TEXT)


def test_a_saved_folder_carries_the_file_that_only_imports(with_tokenizer: Path) -> None:
    assert json.loads((with_tokenizer / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {f.name: f.read_text() for f in with_tokenizer.glob("*.py")} == remote_code_files()
    (text,) = remote_code_files().values()
    code = [line for line in text.split('"""')[2].splitlines() if line]
    assert code == ["from yeoul.hf import YeoulConfig, YeoulForCausalLM  # noqa: F401"]


PROGRAM = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not [name for name in sys.modules if name.startswith("yeoul")]
folder, text, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
from safetensors.torch import save_file
save_file({"ids": batch.input_ids, "logits": model(**batch).logits.detach()}, out + "/result.safetensors")
model.save_pretrained(out + "/again")
"""


def test_trust_remote_code_without_the_import(with_tokenizer: Path, tmp_path: Path) -> None:
    import os

    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    source = str(Path(yeoul.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(with_tokenizer), TEXT, str(tmp_path)],
        capture_output=True, text=True, timeout=240, env={**os.environ, **home, "PYTHONPATH": source},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = load_file(tmp_path / "result.safetensors")
    model, tokenizer = yeoul.load(with_tokenizer, device="cpu")
    assert tokenizer is not None and result["ids"].tolist() == [tokenizer.encode(TEXT)]
    with torch.inference_mode():
        assert rms_ratio(result["logits"], model(result["ids"])) <= 1e-5
    assert {f.name for f in (tmp_path / "again").glob("*.py")} == set(remote_code_files())
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP


@pytest.mark.parametrize("present", [None, types.ModuleType("transformers")], ids=["absent", "old"])
def test_a_missing_or_old_transformers(present: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", present)
    monkeypatch.delitem(sys.modules, "yeoul.hf")
    with pytest.raises(ImportError, match=r"^yeoul.hf needs transformers 5 or later: pip install 'yeoul\[hf\]'$"):
        importlib.import_module("yeoul.hf")


GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "transformers.md"


def test_the_guide_runs(with_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="the guide uses transformers' Trainer")
    pytest.importorskip("peft", reason="the guide uses PEFT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    shutil.copytree(with_tokenizer, tmp_path / "runs" / "demo" / "linear" / "model")
    text = GUIDE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) == 5
    for block in blocks:
        lines = "\n" * text[: block.start(1)].count("\n") + block[1]  # so that a traceback names the page and its line
        exec(compile(lines, str(GUIDE), "exec"), {"__name__": "docs"})
