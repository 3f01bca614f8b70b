"""Damaged model folders, made from small healthy ones by a seeded mutator.

`python tests/model/damage.py --count 5000` makes so many, loads each, and prints what was said of it. With `--wild`
anything may be changed, so that some folders stay usable: then only what is neither a model nor one sentence counts.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Named = tuple[str, ...]
"""Of which the sentence must contain one."""
INDEX = "model.safetensors.index.json"
VOCAB = 560
JARGON = (
    "NoneType", "operand", "subscriptable", "iterable", "recursion", "codec", "keyword", "unhashable", "attribute",
    "impossible value", "Traceback", "torch.", "Error",
)  # fmt: skip
"""Words of Python's own messages: they say that a check is missing."""
LIMIT_S = 30
"""A folder that takes longer ends the process, with a traceback of where it was."""
CONSTANT = 64 * 2**20
"""Bytes that a refusal may take besides twice the folder: what reads and parses a JSON file of the largest size."""

SHAPE: Json = dict(vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=128)
LLAMA3: Json = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
MODELS: dict[str, Json] = {
    "llama": dict(num_kv_heads=2, head_dim=12, tie_embeddings=False, rope_scaling=LLAMA3),
    "gemma3_text": dict(
        num_kv_heads=2, head_dim=24, attention=("sliding", "softmax"), sliding_window=7, norm_placement="sandwich",
        norm_zero_centered=True, mlp="geglu", activation="gelu_tanh", attention_scale=24**-0.5, qk_norm=True,
        embedding_scale=32**0.5, rope_local_theta=1e4, rope_theta=1e6,
        rope_scaling=dict(rope_type="linear", factor=8.0),
    ),
    "gpt2": dict(
        norm="layernorm", positions="learned", mlp="gelu", activation="gelu_tanh", attention_bias=True, mlp_bias=True
    ),
    "gpt_neox": dict(
        norm="layernorm", mlp="gelu", attention_bias=True, mlp_bias=True, parallel_residual=True, rotary_dim=4,
        tie_embeddings=False,
    ),
    "qwen3": dict(
        num_kv_heads=1, head_dim=16, qk_norm=True,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    "yeoul": dict(num_kv_heads=2, head_dim=12, attention=("hybrid", "dijiang"), window=5),
}  # fmt: skip
SHARDED = ("llama", "qwen3")
PIECES = ("llama", "yeoul")
"""With tokenizer.model alone; the others have tokenizer.json."""
ROTARY = ("llama", "gemma3_text", "gpt_neox", "qwen3", "yeoul")
ALL = tuple(MODELS)


def make_folders(root: Path) -> dict[str, Path]:
    """One healthy folder of each family of `MODELS`, with its tokenizer."""
    import torch

    from text.samples import small_corpus
    from yeoul.model.checkpoint import save_model
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    train_tokenizer(small_corpus(), TokenizerConfig(vocab_size=VOCAB, model_type="bpe"), root / "tokenizer")
    folders = {}
    for family, settings in MODELS.items():
        torch.manual_seed(1)
        folder = folders[family] = root / family
        model = Decoder(ModelConfig(**SHAPE, **settings, family=family))
        save_model(model, folder, shard_bytes=40_000 if family in SHARDED else 10**9)
        for file in (root / "tokenizer").iterdir():
            if file.name != ("tokenizer.json" if family in PIECES else "tokenizer.model"):
                shutil.copy(file, folder)
        assert json.loads((folder / "config.json").read_text())["model_type"] == family
        assert (folder / INDEX).is_file() == (family in SHARDED)
    return folders


@dataclass(frozen=True)
class Target:
    """A folder to be damaged, and the dice that decide how."""

    path: Path
    family: str
    dice: random.Random

    def config(self) -> Json:
        values: Json = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return values

    def put_config(self, values: Any) -> None:
        (self.path / "config.json").write_text(json.dumps(values), encoding="utf-8")

    def put(self, **fields: Any) -> None:
        """Changes fields of config.json."""
        self.put_config(self.config() | fields)

    def index(self) -> Json:
        values: Json = json.loads((self.path / INDEX).read_text(encoding="utf-8"))
        return values

    def put_index(self, values: Any) -> None:
        (self.path / INDEX).write_text(json.dumps(values), encoding="utf-8")

    def shards(self) -> list[Path]:
        return sorted(self.path.glob("*.safetensors"))

    def shard(self) -> Path:
        return self.dice.choice(self.shards())

    def header(self, file: Path) -> tuple[Json, bytes]:
        """Of a file of weights: its header and the bytes behind it."""
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + length]), content[8 + length :]

    def put_header(self, file: Path, header: Any, data: bytes) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)

    def tensor(self, file: Path, *, matrix: bool = False) -> str:
        """The name of one of a file's tensors; with `matrix`, of one whose transpose has another shape."""
        header, _ = self.header(file)
        return self.dice.choice(
            [
                name
                for name, entry in header.items()
                if name != "__metadata__"
                and (not matrix or (len(entry["shape"]) == 2 and entry["shape"][0] != entry["shape"][1]))
            ]
        )

    def put_entry(self, **changes: Any) -> Named:
        """Changes one entry of a header; a callable is given the old value."""
        file = self.shard()
        name, (header, data) = self.tensor(file), self.header(file)
        entry = header[name]
        for key, value in changes.items():
            entry[key] = value(entry[key]) if callable(value) else value
        self.put_header(file, header, data)
        return file.name, name


Damage = Callable[[Target], Named]
DAMAGES: dict[str, tuple[tuple[str, ...], Damage]] = {}
"""Name -> families that can suffer it, and what does it."""


def damage(*families: str) -> Callable[[Damage], Damage]:
    def keep(change: Damage) -> Damage:
        DAMAGES[change.__name__] = (families or ALL, change)
        return change

    return keep


CONFIG: Named = ("config.json",)
SIZES = {
    "llama": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
              "head_dim", "intermediate_size"),
    "gpt2": ("vocab_size", "n_embd", "n_layer", "n_positions", "n_inner"),
    "gpt_neox": ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"),
    "yeoul": ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
}  # fmt: skip
SIZES |= {"gemma3_text": SIZES["llama"], "qwen3": SIZES["llama"]}
"""Fields of config.json that the tensors contradict where they are anything else."""
NUMBERS = {
    "llama": ("rms_norm_eps", "initializer_range"),
    "qwen3": ("rms_norm_eps",),
    "gemma3_text": ("rms_norm_eps", "query_pre_attn_scalar", "rope_local_base_freq"),
    "gpt2": ("layer_norm_epsilon",),
    "gpt_neox": ("layer_norm_eps", "rotary_pct"),
    "yeoul": ("norm_eps", "rope_theta", "embedding_scale"),
}
FLAGS = {
    "llama": ("attention_bias", "mlp_bias", "tie_word_embeddings"),
    "qwen3": ("use_sliding_window", "attention_bias"),
    "gemma3_text": ("tie_word_embeddings",),
    "gpt2": ("scale_attn_weights", "tie_word_embeddings"),
    "gpt_neox": ("use_parallel_residual", "attention_bias"),
    "yeoul": ("qk_norm", "attention_bias", "parallel_residual", "norm_zero_centered"),
}
NO_NUMBERS: list[Any] = [
    "64", "", "x" * 5000, [], [64], [[[[64]]]], {}, {"a": {"b": 1}}, True, float("nan"), float("inf"), float("-inf"),
    "\0", "가" * 300, [None] * 1000,
]  # fmt: skip
NO_SIZES: list[Any] = [*NO_NUMBERS, 0, -1, -(2**40), 2**40, 2**63, 2**64, 2**70, 10**300, 1e9, 64.5]
NO_FLAGS: list[Any] = ["true", "", 2, -1, 0.5, [], [True], {}, float("nan")]
NO_NAMES: list[Any] = ["relu6", "", 3, None, ["silu"], {"name": "silu"}, "x" * 10_000, "\n\n", True]


@damage()
def a_field_is_missing(t: Target) -> Named:
    values = t.config()
    needed = [n for n in SIZES[t.family] if n not in ("num_key_value_heads", "n_positions", "n_inner")]
    del values[name := t.dice.choice([*needed, "model_type"])]
    t.put_config(values)
    return (name, "config.json")


@damage()
def a_size_is_none(t: Target) -> Named:
    t.put(**{t.dice.choice(SIZES[t.family]): t.dice.choice(NO_SIZES)})
    return CONFIG


@damage()
def a_size_is_another(t: Target) -> Named:
    name = t.dice.choice(SIZES[t.family])
    old = t.config()[name]
    t.put(**{name: t.dice.choice([old + 1, old * 2, 2 * old + 64, 1 if old > 1 else 3, 10**9, 2**31 - 1, 2**27])})
    return CONFIG


@damage()
def a_number_is_none(t: Target) -> Named:
    t.put(**{t.dice.choice(NUMBERS[t.family]): t.dice.choice([*NO_NUMBERS, 0, -1e-5, 1e300, 10**400])})
    return CONFIG


@damage()
def a_flag_is_none(t: Target) -> Named:
    t.put(**{t.dice.choice(FLAGS[t.family]): t.dice.choice(NO_FLAGS)})
    return CONFIG


@damage("llama", "gpt2", "gpt_neox", "qwen3", "yeoul")
def a_length_is_none(t: Target) -> Named:
    name = "n_positions" if t.family == "gpt2" else "max_position_embeddings"
    t.put(**{name: t.dice.choice([*NO_NUMBERS, 0, -1, 2**63, 10**400, 128.5])})
    return CONFIG


@damage("gpt2", "gpt_neox")
def heads_do_not_divide(t: Target) -> Named:
    t.put(**{"n_head" if t.family == "gpt2" else "num_attention_heads": t.dice.choice([3, 5, 7, 33, 64, 2**20])})
    return CONFIG


@damage("llama", "qwen3", "gemma3_text", "yeoul")
def heads_do_not_share(t: Target) -> Named:
    t.put(**{"num_kv_heads" if t.family == "yeoul" else "num_key_value_heads": t.dice.choice([3, 5, 8, 999])})
    return CONFIG


@damage()
def an_activation_is_not_known(t: Target) -> Named:
    names = {"gemma3_text": "hidden_activation", "gpt2": "activation_function", "yeoul": "activation"}
    t.put(**{names.get(t.family, "hidden_act"): t.dice.choice(NO_NAMES)})
    return CONFIG


@damage()
def a_family_is_not_known(t: Target) -> Named:
    kinds = [*NO_NAMES, t.family.upper(), "mamba", "gemma3", "exaone", [t.family], "gpt2 "]
    t.put(model_type=t.dice.choice(kinds))
    return CONFIG


@damage()
def a_family_is_another(t: Target) -> Named:
    apart = {"llama", "gpt2", "gpt_neox", "yeoul", "gemma2"} - {t.family}
    t.put(model_type=t.dice.choice(sorted(apart)))
    return CONFIG


@damage()
def a_field_is_not_known(t: Target) -> Named:
    name = t.dice.choice(["num_experts", "q_lora_rank", "windw", "x" * 3000, "\n", "", "가나다", "alibi"])
    t.put(**{name: t.dice.choice([8, "8", [8], {"a": 8}, True])})
    return CONFIG


@damage("llama", "gpt2", "qwen3", "gemma3_text")
def weights_are_quantized(t: Target) -> Named:
    t.put(quantization_config=t.dice.choice([{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, "awq", [1]]))
    return CONFIG


def no_rope() -> list[Any]:
    long = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 16,
        "short_factor": [1.0],
        "long_factor": [1.0],
    }
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    linear = {"rope_type": "linear", "factor": 2.0}
    return [
        "yarn", 3, [1, 2], [{"rope_type": "yarn"}], {"rope_type": "yarm", "factor": 2.0}, {"rope_type": ["yarn"]},
        {"rope_type": "yarn"}, {"rope_type": "linear"}, {"rope_type": "dynamic"}, {"rope_type": "llama3"},
        linear | {"factor": "2"}, linear | {"factor": -1}, linear | {"factor": 0}, linear | {"factor": [2.0] * 4},
        linear | {"factor": float("nan")}, linear | {"beta_fast": 3.0}, linear | {"rope_type": "default"},
        linear | {"ntk_alpha": 3}, yarn | {"factor": 10**400}, yarn | {"factor": True},
        yarn | {"original_max_position_embeddings": 0}, yarn | {"original_max_position_embeddings": 1},
        yarn | {"original_max_position_embeddings": "32"}, yarn | {"truncate": "no"}, yarn | {"mscale": []},
        yarn | {"beta_slow": -1}, yarn | {"attention_factor": [1.0, 2.0]}, yarn | {"rope_theta": "1e4"},
        yarn | {"rope_theta": 1.0}, yarn | {"rope_theta": float("inf")}, yarn | {"rope_theta": -5},
        LLAMA3 | {"low_freq_factor": 4.0}, LLAMA3 | {"high_freq_factor": {}}, LLAMA3 | {"low_freq_factor": -1.0}, long,
        long | {"short_factor": 1.0}, long | {"long_factor": []}, long | {"long_factor": ["1"] * 6},
        {"rope_type": {"a": 1}}, {"type": 5, "factor": 2.0}, {"full_attention": 3, "sliding_attention": {}},
        {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {"rope_type": "default"}},
        {"full_attention": {}, "middle_attention": {}},
    ]  # fmt: skip


@damage("llama", "gemma3_text", "gpt_neox", "qwen3")
def rotary_positions_are_none(t: Target) -> Named:
    values, rope = t.config(), t.dice.choice(no_rope())
    values |= {"rope_scaling": None, "rope_parameters": None}
    values[t.dice.choice(["rope_parameters", "rope_scaling"])] = rope
    if isinstance(rope, dict) and {"full_attention", "middle_attention"} & set(rope):
        values |= {"rope_scaling": None, "rope_parameters": rope}
    t.put_config(values)
    return CONFIG


@damage("yeoul")
def our_rotary_positions_are_none(t: Target) -> Named:
    rope = t.dice.choice([r for r in no_rope() if not isinstance(r, dict) or "rope_theta" not in r])
    t.put(rope_scaling=rope)
    return CONFIG


@damage("gemma3_text", "qwen3")
def kinds_of_layers_are_none(t: Target) -> Named:
    kinds: list[Any] = [
        "full_attention", [], ["full_attention"], ["full_attention"] * 3, ["full_attention", "linear_attention"],
        [["full_attention"], "full_attention"], [{}, {}], [None, None], [1, 2], {"0": "full_attention"}, 2,
        ["x" * 5000, "full_attention"], ["sliding_attention"] * 100_000,
    ]  # fmt: skip
    t.put(layer_types=t.dice.choice(kinds))
    return CONFIG


@damage("gemma3_text")
def a_window_is_none(t: Target) -> Named:
    t.put(sliding_window=t.dice.choice([*NO_NUMBERS, 0, -1, 2**40, 7.0]))
    return CONFIG


@damage("yeoul")
def attention_is_none(t: Target) -> Named:
    kinds: list[Any] = [
        "softmx", [], ["hybrid"] * 3, ["hybrid", "mamba"], 5, None, {}, [["hybrid"], "dijiang"], [1, 2], True,
        ["softmax", "softmax"], {"0": "hybrid", "1": "hybrid"}, ["dijiang-official"] * 2,
    ]  # fmt: skip
    t.put(attention=t.dice.choice(kinds))
    return CONFIG


@damage("yeoul")
def a_feature_map_is_none(t: Target) -> Named:
    whole = t.config()["feature_map"]
    changes: list[Json] = [
        {"features": value} for value in (0, -2, 7, 2, 26, 2**30, 2**70, "24", 24.0, True, [24], float("nan"))
    ]
    changes += [
        {"radii": "khi"}, {"radii": ["chi"]}, {"sequence": 3}, {"kernel": ["exp"]}, {"decay": "learned"}, {"learn": 5},
        {"learn": "weights"}, {"learn": ["weight"]}, {"learn": [["weights"]]}, {"learn": ["weights"]}, {"seed": -1},
        {"pairs": "yes"}, {"pairs": 1}, {"seed": "0"}, {"seed": 2**80}, {"dct": True},
    ]  # fmt: skip
    others: list[Any] = [None, [], "sobol", 3, [["features", 24]], True]
    t.put(feature_map=t.dice.choice([*(whole | change for change in changes), *others]))
    return CONFIG


@damage("yeoul")
def a_choice_is_none(t: Target) -> Named:
    name = t.dice.choice(["norm", "positions", "mlp", "norm_placement"])
    t.put(**{name: t.dice.choice([*NO_NAMES, "Rotary", "moe"])})
    return CONFIG


@damage("yeoul")
def lists_are_none(t: Target) -> Named:
    name = t.dice.choice(["no_rope_layers", "other_eos_ids"])
    t.put(**{name: t.dice.choice([3, "1", ["1"], [1.5], [[1]], {}, None, True, [None], {"a": 1}])})
    return CONFIG


@damage()
def a_token_is_none(t: Target) -> Named:
    name = t.dice.choice(["bos", "eos", "pad"]) + ("_id" if t.family == "yeoul" else "_token_id")
    t.put(**{name: t.dice.choice(["2", 1.5, {}, [1, "a"], [[1]], -5, 2**40, True, float("nan"), "</s>"])})
    return CONFIG


@damage()
def layers_beyond_all_measure(t: Target) -> Named:
    name = {"gpt2": "n_layer", "yeoul": "num_layers"}.get(t.family, "num_hidden_layers")
    values = t.config() | {name: t.dice.choice([10**9, 99_999, 1001, 1000, 500, 2**31 - 1])}
    values.pop("layer_types", None)
    if t.family == "yeoul":
        values["attention"] = "hybrid"
    t.put_config(values)
    return CONFIG


@damage()
def layers_that_the_weights_feign(t: Target) -> Named:
    """A million layers, of which the last is there in name."""
    name = {"gpt2": "n_layer", "yeoul": "num_layers"}.get(t.family, "num_hidden_layers")
    count = t.dice.choice([900, 1000, 10**6])
    values = t.config() | {name: count}
    values.pop("layer_types", None)
    if t.family == "yeoul":
        values["attention"] = "hybrid"
    t.put_config(values)
    file = t.shards()[0]
    header, data = t.header(file)
    new = {"gpt2": "transformer.h.{}.x", "gpt_neox": "gpt_neox.layers.{}.x"}.get(t.family, "model.layers.{}.x")
    new = new.format(count - 1)
    header[new] = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [len(data)] * 2}
    t.put_header(file, header, data)
    if t.family in SHARDED:
        index = t.index()
        index["weight_map"][new] = file.name
        t.put_index(index)
    return ("config.json",)


def broken_json(t: Target, file: Path) -> Named:
    """What is no JSON object, or says two things."""
    text = file.read_bytes()
    cut = t.dice.randrange(1, len(text.rstrip()) - 1)
    key = next(iter(json.loads(text)))
    broken: list[Callable[[], bytes]] = [
        lambda: b"", lambda: text[:cut], lambda: text[cut:], lambda: b"\0" * len(text), lambda: b"[]", lambda: b"null",
        lambda: b"[" + text + b"]", lambda: b'"' + b"x" * 99 + b'"', lambda: b"[" * 100_000, lambda: b'{"a":' * 50_000,
        lambda: text[:cut] + b"\xff\xfe" + text[cut:], lambda: text.decode().encode("utf-16"), lambda: b"\x80",
        lambda: b'{"a": ' + b"9" * 5000 + b"," + text.lstrip()[1:], lambda: b"1e999", lambda: b"<!DOCTYPE html>",
        lambda: b'{"' + key.encode() + b'": "another",' + text.lstrip()[1:], lambda: text + text,
        lambda: b'{"a": [' + b"{}," * 400_000 + b"0]," + text.lstrip()[1:], lambda: b"version https://git-lfs",
        lambda: text + b" " * (5 * 2**20), lambda: text.replace(b":", b"=", 1), lambda: text.rstrip()[:-1] + b",}",
        lambda: b'{"a": "' + "🙂".encode() * 2**19 + b'"}' + text,
    ]  # fmt: skip
    file.write_bytes(t.dice.choice(broken)())
    return (file.name,)


@damage()
def config_is_no_json(t: Target) -> Named:
    return broken_json(t, t.path / "config.json")


@damage()
def config_is_no_json_either(t: Target) -> Named:
    return broken_json(t, t.path / "config.json")


@damage()
def config_is_no_file(t: Target) -> Named:
    file = t.path / "config.json"
    file.unlink()
    if t.dice.random() < 0.5:
        file.mkdir()
    return ("config.json",)


@damage(*SHARDED)
def index_is_no_json(t: Target) -> Named:
    return broken_json(t, t.path / INDEX)


@damage(*SHARDED)
def index_leaves_the_folder(t: Target) -> Named:
    index, file = t.index(), t.shard()
    elsewhere = t.path.parent / "elsewhere.safetensors"
    shutil.copy(file, elsewhere)
    name = t.dice.choice(
        ["../elsewhere.safetensors", str(elsewhere), f"./{file.name}", f"../{t.path.name}/{file.name}",
         "..\\elsewhere.safetensors", f"//{file.name}", f"{file.name}/.", "\0.safetensors", f"{file.name}\0", "..", "~"]
    )  # fmt: skip
    index["weight_map"] = {k: name if v == file.name else v for k, v in index["weight_map"].items()}
    t.put_index(index)
    return (INDEX,)


@damage(*SHARDED)
def index_names_no_shard(t: Target) -> Named:
    index = t.index()
    key = t.dice.choice(sorted(index["weight_map"]))
    index["weight_map"][key] = t.dice.choice(
        ["model-00009-of-00009.safetensors", "config.json", "", 3, None, [t.shard().name], {}, ".", "x" * 3000,
         "x" * 200 + ".safetensors", "\n.safetensors", "tokenizer.safetensors"]
    )  # fmt: skip
    t.put_index(index)
    return (INDEX,)


@damage(*SHARDED)
def index_errs(t: Target) -> Named:
    index = t.index()
    places: dict[str, str] = index["weight_map"]
    key = t.dice.choice(sorted(places))
    how = t.dice.choice(["missing", "extra", "swapped", "renamed", "all in one"])
    if how == "missing":
        del places[key]
    elif how == "extra":
        places[f"{key}{t.dice.randrange(99)}"] = places[key]
    elif how == "swapped":
        places[key] = next(file.name for file in t.shards() if file.name != places[key])
    elif how == "renamed":
        places[key.upper()] = places.pop(key)
    else:
        index["weight_map"] = dict.fromkeys(places, t.shard().name)
    t.put_index(index)
    return (INDEX, key)


@damage(*SHARDED)
def index_has_no_map(t: Target) -> Named:
    index = t.index()
    values: list[Any] = [
        {}, {"metadata": {}}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": "x"},
        {"weight_map": list(index["weight_map"].items())}, {"weight_map": {"a": {"b": "c"}}}, {"weight_map": 5},
        {"weights": index["weight_map"]}, index["weight_map"],
    ]  # fmt: skip
    t.put_index(t.dice.choice(values))
    return (INDEX,)


@damage(*SHARDED)
def a_shard_is_no_file(t: Target) -> Named:
    file = t.shard()
    file.unlink()
    how = t.dice.choice(["missing", "folder", "dangling link"])
    if how == "folder":
        file.mkdir()
    elif how == "dangling link":
        file.symlink_to("../blobs/nothing")
    return (file.name,)


@damage("gpt2", "gpt_neox", "gemma3_text", "yeoul")
def weights_are_no_file(t: Target) -> Named:
    file = t.shard()
    how = t.dice.choice(["missing", "folder", "dangling link", "pickle", "loop"])
    if how == "pickle":
        file.rename(t.path / "pytorch_model.bin")
        return ("pytorch_model.bin",)
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "dangling link":
        file.symlink_to("../blobs/nothing")
    elif how == "loop":
        file.symlink_to(file.name)
    return (file.name,)


@damage()
def a_header_of_another_length(t: Target) -> Named:
    file = t.shard()
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    lengths = [0, 1, 2, 7, length - 1, length + 1, length + 8, len(content), len(content) - 8, 2**31, 2**32 + length,
               2**63, 2**64 - 1, 10**8 + 1, length // 2]  # fmt: skip
    file.write_bytes(t.dice.choice(lengths).to_bytes(8, "little") + content[8:])
    return (file.name,)


@damage()
def a_header_of_two_gigabytes(t: Target) -> Named:
    """As long as it says, on a file with holes."""
    file = t.shard()
    content = file.read_bytes()
    file.write_bytes((2**31 + t.dice.randrange(99)).to_bytes(8, "little") + content[8:])
    os.truncate(file, 2**31 + 4096)
    return (file.name,)


@damage()
def a_byte_of_a_header(t: Target) -> Named:
    file = t.shard()
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    first = content.index(b"}") + 2  # behind the metadata, which nobody reads
    place = t.dice.randrange(first, 8 + len(bytes(content[8 : 8 + length]).rstrip()))
    content[place] ^= t.dice.randrange(1, 256)
    file.write_bytes(content)
    return (file.name, "tensor", "layers")


@damage()
def a_header_is_no_json(t: Target) -> Named:
    file = t.shard()
    header, data = t.header(file)
    text = json.dumps(header).encode()
    cut = t.dice.randrange(1, len(text) - 1)
    name = t.tensor(file)
    other = json.dumps({name: {**header[name], "shape": [1]}}).encode()
    broken: list[bytes] = [
        b"", text[:cut], b"[]", b"null", b"[" + text + b"]", b"[" * 100_000, b'{"a":' * 50_000, text[:cut] + b"\xff",
        text[:-1] + b"," + other[1:], other[:-1] + b"," + text[1:], text.replace(b":", b"=", 1), b"\0" * len(text),
        text[:-1] + b', "a": ' + b"9" * 5000 + b"}", text.decode().encode("utf-16"), text + text, b" " * 64,
        b'{"a": [' + b"{}," * 400_000 + b"0]," + text[1:], text + b" " * (5 * 2**20), b"{}",
    ]  # fmt: skip
    t.put_header(file, t.dice.choice(broken), data)
    return (file.name, "tensor")


@damage()
def offsets_err(t: Target) -> Named:
    by = t.dice.choice([1, 4, 64, 2**20, 2**40, 2**63, -4, -(2**40)])
    changes: list[Callable[[list[int]], Any]] = [
        lambda o: [o[0] + by, o[1] + by], lambda o: [o[0], o[1] + by], lambda o: [o[0] + by, o[1]],
        lambda o: [o[1], o[0]], lambda o: o[:1], lambda o: [*o, o[1]], lambda o: None, lambda o: str(o),
        lambda o: [float(o[0]), o[1]], lambda o: [0, 0], lambda o: {}, lambda o: [[o[0]], o[1]], lambda o: [True, o[1]],
        lambda o: [10**300, 10**300 + o[1] - o[0]], lambda o: [o[0], "x" * 10_000],
    ]  # fmt: skip
    return t.put_entry(data_offsets=t.dice.choice(changes))


@damage()
def shapes_err(t: Target) -> Named:
    changes: list[Callable[[list[int]], Any]] = [
        lambda s: [*s, 2], lambda s: [*s, 1], lambda s: [1, *s], lambda s: [-n for n in s], lambda s: [2**62, 4],
        lambda s: [0, *s], lambda s: [], lambda s: None, lambda s: "x", lambda s: [str(n) for n in s],
        lambda s: [float(n) for n in s], lambda s: [2**64 + s[0], *s[1:]], lambda s: {}, lambda s: s[0] + 1,
        lambda s: [1] * 10_000 + s, lambda s: [[n] for n in s], lambda s: [None, *s[1:]], lambda s: [-1, *s],
        lambda s: [-s[0], -1, *s[1:]], lambda s: [2**32, 2**32, *s],
    ]  # fmt: skip
    return t.put_entry(shape=t.dice.choice(changes))


@damage()
def types_err(t: Target) -> Named:
    kinds: list[Any] = [
        "F64", "BF16", "F16", "I8", "I64", "U8", "BOOL", "F8_E4M3", "F4", "float32", "", None, 32, ["F32"], {}, "f32",
        "x" * 10_000, "I32", "U32", "C64", "F32\n",
    ]  # fmt: skip
    return t.put_entry(dtype=t.dice.choice(kinds))


@damage()
def an_entry_errs(t: Target) -> Named:
    file = t.shard()
    name, (header, data) = t.tensor(file), t.header(file)
    how = t.dice.choice(["no entry", "missing key", "emptied", "metadata", "not there", "empty tensor"])
    if how == "no entry":
        header[name] = t.dice.choice([None, [], "F32", 4, {}, True])
    elif how == "missing key":
        del header[name][t.dice.choice(["dtype", "shape", "data_offsets"])]
    elif how == "emptied":
        header = {"__metadata__": {"format": "pt"}}
    elif how == "metadata":
        header["__metadata__"] = t.dice.choice([[], "pt", {"format": 3}, {"a": {"b": "c"}}, 7])
    elif how == "not there":
        header[name]["data_offsets"] = [len(data), len(data) + 4 * 32]
    else:
        header["empty"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    t.put_header(file, header, data)
    return (file.name, name, "tensor")


@damage()
def a_file_is_cut(t: Target) -> Named:
    file = t.shard()
    size = file.stat().st_size
    os.truncate(file, t.dice.choice([0, 1, 7, 8, 9, 100, size - 1, size - 4, size // 2, t.dice.randrange(size)]))
    return (file.name,)


@damage()
def a_file_is_too_long(t: Target) -> Named:
    file = t.shard()
    with file.open("ab") as opened:
        opened.write(b"\0" * t.dice.choice([1, 4, 4096, 3 * 2**20]))
    return (file.name,)


@damage()
def a_file_is_another(t: Target) -> Named:
    file = t.shard()
    contents = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"PK\x03\x04" * 500, b"\0" * 5000,
        b"<html><body>404</body></html>", t.dice.randbytes(5000), b"GGUF\3\0\0\0" + b"\0" * 99,
    ]  # fmt: skip
    file.write_bytes(t.dice.choice(contents))
    return (file.name,)


def save(t: Target, file: Path, tensors: dict[str, Any]) -> None:
    """The tensors, and an index that says so."""
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})
    if t.family in SHARDED:
        index = t.index()
        kept = {name: place for name, place in index["weight_map"].items() if place != file.name}
        index["weight_map"] = kept | dict.fromkeys(tensors, file.name)
        t.put_index(index)


@damage()
def a_tensor_is_missing(t: Target) -> Named:
    from safetensors.torch import load_file

    file = t.shard()
    name, tensors = t.tensor(file), load_file(file)
    save(t, file, {other: tensor for other, tensor in tensors.items() if other != name})
    return ("missing", "layers")


@damage()
def a_tensor_too_many(t: Target) -> Named:
    import torch
    from safetensors.torch import load_file

    file = t.shard()
    name = t.tensor(file)
    new = t.dice.choice(
        [f"{name}.extra", f"{name}_scale", "surprise", f"x.{name}", name.replace("weight", "bias_"), "\n" * 500,
         "a" * 5000, "", ".", "model.", "lm_head.bias", "..", "model.layers.0", "가중치"]
    )  # fmt: skip
    save(t, file, load_file(file) | {new: torch.zeros(t.dice.choice([0, 1, 7]))})
    return ("does not belong", "has shape")


@damage()
def a_tensor_has_another_name(t: Target) -> Named:
    from safetensors.torch import load_file

    file = t.shard()
    name, tensors = t.tensor(file), load_file(file)
    new = t.dice.choice(
        [f"{name}s", name.replace(".weight", ".wait").replace(".bias", ".bays"), name.upper(), f"base_model.{name}",
         name.replace(".0.", ".7.") if ".0." in name else f"{name}.0", name.replace("o", "о")]
    )  # fmt: skip
    tensors[new if new != name else f"{name}\0"] = tensors.pop(name)
    save(t, file, tensors)
    return ("does not belong", "missing", "layers")


@damage()
def a_tensor_has_another_shape(t: Target) -> Named:
    import torch
    from safetensors.torch import load_file

    file = t.shard()
    name, tensors = t.tensor(file, matrix=True), load_file(file)
    old = tensors[name]
    tensors[name] = t.dice.choice(
        [old.T, old[:-1], old[:, :-1], old.flatten(), old[None], torch.cat((old, old)), torch.zeros(()), old[:0]]
    ).contiguous()
    save(t, file, tensors)
    return (name,)


@damage()
def a_tensor_has_another_type(t: Target) -> Named:
    import torch
    from safetensors.torch import load_file

    file = t.shard()
    name, tensors = t.tensor(file), load_file(file)
    kinds = [torch.int8, torch.int64, torch.uint8, torch.bool, torch.int32, torch.float8_e4m3fn, torch.uint16]
    tensors[name] = tensors[name].to(t.dice.choice(kinds))
    save(t, file, tensors)
    return (name,)


@damage(*SHARDED)
def a_tensor_in_two_files(t: Target) -> Named:
    from safetensors.torch import load_file, save_file

    first, second = t.dice.sample(t.shards(), 2)
    name = t.tensor(first)
    save_file(load_file(second) | {name: load_file(first)[name]}, second, metadata={"format": "pt"})
    return (name,)


@damage("gemma3_text", "gpt2", "gpt_neox", "qwen3")
def tokenizer_is_no_json(t: Target) -> Named:
    file = t.path / "tokenizer.json"
    text = file.read_bytes()
    cut = t.dice.randrange(1, len(text) - 1)
    file.write_bytes(
        t.dice.choice(
            [b"", text[:cut], b"\0" * 99, b"[]", b"null", b"{}", b"[" * 100_000, text[:cut] + b"\xff" + text[cut:],
             b"7", b'{"a":' * 50_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"model": {}}', b'"text"']
        )
    )  # fmt: skip
    return ("tokenizer.json",)


@damage("gemma3_text", "gpt2", "gpt_neox", "qwen3")
def a_vocabulary_errs(t: Target) -> Named:
    file = t.path / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    model = spec["model"]
    changes: list[Callable[[], Any]] = [
        lambda: model.update(vocab=[]), lambda: model.update(vocab={}), lambda: model.update(vocab=5),
        lambda: model["vocab"].update(a=2**31), lambda: model["vocab"].update(a=-1), lambda: model.pop("vocab"),
        lambda: model["vocab"].update(a="7"), lambda: model.update(merges=[["가", "나", "다"]]),
        lambda: model["vocab"].update(a=7),
        lambda: model.update(merges=[["없는", "조각"]]), lambda: model.update(type="Markov"), lambda: spec.pop("model"),
        lambda: spec.update(model=None), lambda: spec.update(normalizer={"type": "Sequence"}),
        lambda: spec.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
        lambda: spec.update(decoder={"type": "Guess"}), lambda: spec.update(added_tokens=[{"id": 2**40}]),
        lambda: model["vocab"].update({f"조각{i}": VOCAB + i for i in range(t.dice.randrange(1, 9))}),
    ]  # fmt: skip
    t.dice.choice(changes)()
    file.write_text(json.dumps(spec), encoding="utf-8")
    return ("tokenizer", "vocabulary")


@damage(*PIECES)
def pieces_err(t: Target) -> Named:
    file = t.path / "tokenizer.model"
    data = file.read_bytes()
    cut = t.dice.randrange(1, len(data) // 2)
    file.write_bytes(
        t.dice.choice(
            [b"", data[:cut], data[cut:], b"\0" * 500, b"{}", t.dice.randbytes(500), b"version https://", b"\x0a"]
        )
    )
    return ("tokenizer.model",)


@damage()
def settings_of_the_tokenizer_err(t: Target) -> Named:
    name = t.dice.choice(["tokenizer_config.json", "generation_config.json"])
    file = t.path / name
    file.unlink()
    content = t.dice.choice(
        [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", None, b"null"]
    )
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    return (name,)


@damage()
def added_tokens_err(t: Target) -> Named:
    entries: list[Any] = [{"x": {"content": "<x>"}}, {"3": 5}, {"3": {"content": ""}}, {"99999999": {"content": "<x>"}},
                          {"3": {"content": "<x>"}, "4": {"content": "<x>"}}, {"-1": {"content": "<x>"}}]  # fmt: skip
    file = t.path / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(values | {"added_tokens_decoder": t.dice.choice(entries)}), encoding="utf-8")
    return ("tokenizer",)


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**70, 0.5, 1e-300, 1e300, float("nan"), float("inf"), "", "\0", "x" * 50,
    [], {}, [[]], [None], {"a": 1}, [1, 2], "full_attention", "yarn", {"rope_type": "linear", "factor": 2.0},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key in list(value)[:60]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*path, number))


def odd_value(t: Target) -> Named:
    """Any value at any place of config.json, the index, a header or a tokenizer file."""
    file = t.dice.choice([t.path / "config.json"] * 3 + sorted(t.path.glob("*.json")) + t.shards())
    is_header = file.suffix == ".safetensors"
    values, data = t.header(file) if is_header else (json.loads(file.read_text(encoding="utf-8")), b"")
    for _ in range(t.dice.choice([1, 1, 1, 2, 3])):
        path = t.dice.choice(list(places(values)) or [("new",)])
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        if t.dice.random() < 0.15 and isinstance(inner, dict):
            inner.pop(path[-1], None)
        else:
            inner[path[-1]] = t.dice.choice(ODD)
    if is_header:
        t.put_header(file, values, data)
    else:
        file.write_text(json.dumps(values), encoding="utf-8")
    return ("",)


def odd_bytes(t: Target) -> Named:
    """Some bytes of any file, flipped, cut out or put in."""
    file = t.dice.choice(sorted(path for path in t.path.iterdir() if path.is_file()))
    content = bytearray(file.read_bytes())
    for _ in range(t.dice.choice([1, 1, 2, 8, 64])):
        reach = len(content) if t.dice.random() < 0.5 else min(len(content), 2000)
        place, count = t.dice.randrange(max(reach, 1)), t.dice.choice([1, 1, 4, 100])
        how = t.dice.choice(["flip", "cut", "put"])
        if how == "flip" and content:
            content[place % len(content)] ^= 1 << t.dice.randrange(8)
        elif how == "cut":
            del content[place : place + count]
        else:
            content[place:place] = t.dice.randbytes(count)
    file.write_bytes(content)
    return ("",)


def use(folder: Path, *, also_run: bool) -> str | None:
    """What loading says against a folder; None where it loads. `also_run` takes a step with what was loaded."""
    import torch

    import yeoul
    from yeoul.errors import UserError

    try:
        model, _ = yeoul.load(folder, device="cpu")
    except UserError as error:
        return str(error)
    if also_run:
        with torch.inference_mode():
            model(torch.zeros(1, 3, dtype=torch.int64))
            model(torch.zeros(1, 40, dtype=torch.int64), cache=model.new_cache())
    return None


def digest(folder: Path) -> str:
    """Of the names and contents of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
        total.update(f"{path.name} {kind} ".encode())
        if kind == "file":
            with path.open("rb") as file:
                total.update(f"{path.stat().st_size} ".encode() + file.read(2**21))
    return total.hexdigest()


def resident(key: str) -> int:
    """Bytes of memory in use now (VmRSS), at most since `reset_peak` (VmHWM), or addressed (VmSize); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Outcome:
    """One damaged folder, and what came of it.

    Attributes:
        said: the sentence; None where the folder was loaded.
        fault: what went wrong, "" where nothing did.
        growth: bytes of memory beyond those before, at most.
        size: bytes of the folder's files.
    """

    number: int
    family: str
    damage: str
    said: str | None
    fault: str
    growth: int
    size: int


def examine(number: int, source: Path, place: Path, seen: set[str], *, wild: bool) -> Outcome:
    """Makes damaged folder `number`, unlike all in `seen`, and tries to load it."""
    dice = random.Random(number)
    if wild:
        name = dice.choice(["odd_value", "odd_bytes"])
        families, change = ALL, {"odd_value": odd_value, "odd_bytes": odd_bytes}[name]
    else:
        name = list(DAMAGES)[number % len(DAMAGES)]
        families, change = DAMAGES[name]
    for _ in range(50):
        family = dice.choice(families)
        folder = place / f"{number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source / family, folder)
        named = change(Target(folder, family, dice))
        if (mark := digest(folder)) not in seen:
            break
    seen.add(mark)
    size = sum(path.stat().st_blocks * 512 for path in folder.iterdir() if path.is_file())
    said, fault = None, ""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    reset_peak()
    before = resident("VmRSS")
    try:
        said = use(folder, also_run=wild)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = f"{type(error).__name__}: {str(error)[:300]}"
    growth = resident("VmHWM") - before
    faulthandler.cancel_dump_traceback_later()
    if not fault:
        fault = _complaint(said, named, str(folder), wild=wild)
    if not fault and growth > 2 * size + CONSTANT:
        fault = f"{growth:,} bytes of memory for a folder of {size:,}"
    if not fault:
        shutil.rmtree(folder)
    return Outcome(number, family, name, said, fault, growth, size)


def _complaint(said: str | None, named: Named, folder: str, *, wild: bool) -> str:
    """What is wrong with a sentence."""
    if said is None:
        return "" if wild else "it was loaded"
    if len(said.splitlines()) != 1 or not said.isprintable():
        return "not one line"
    if len(said.replace(folder, "")) > 400:
        return "too long"
    if found := [words for words in JARGON if words in said]:
        return f"it says {found[0]!r}"
    return "" if any(word in said for word in named) else f"it names none of {named}"


def run(count: int, first: int, *, wild: bool) -> Iterator[Outcome]:
    """Outcomes of so many damaged folders, beginning with number `first`; addresses beyond 1 GiB more are refused."""
    with tempfile.TemporaryDirectory() as root:
        source, place, seen = Path(root) / "healthy", Path(root) / "damaged", set[str]()
        place.mkdir()
        for folder in make_folders(source).values():
            assert use(folder, also_run=True) is None
        limit = resident("VmSize") + 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for number in range(first, first + count):
            yield examine(number, source, place, seen, wild=wild)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--wild", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    faults = refused = 0
    for outcome in run(options.count, options.first, wild=options.wild):
        refused += outcome.said is not None
        faults += bool(outcome.fault)
        if options.json:
            print(json.dumps(asdict(outcome)), flush=True)
        elif outcome.fault or not options.wild:
            print(outcome.number, outcome.family, outcome.damage, outcome.fault, outcome.said, sep=" | ", flush=True)
    print(f"{options.count} folders, {refused} refused, {faults} faults", file=sys.stderr)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
