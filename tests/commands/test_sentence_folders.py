"""Folders of sentence-transformers: what changes a vector is followed, as by hand with transformers, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from folders import write_small_folder
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.recipes.embed import load_embedder

TEXTS = [
    "강가를 걸어요",
    " 산에 가요 ",
    "Hello World 여울",
    "밥",
    "바다 파도 섬 산 강 하늘 바다 파도 섬 산 강 하늘",
    "",
]
PROMPTS = {"prompts": {"query": "query: ", "document": "", "passage": "passage: "}}
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
WAYS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer."""
    return write_small_folder(tmp_path_factory.mktemp("base"), [*TEXTS[:-1], "query: ", "passage: ", "hello world"] * 3)


def make(base: Path, folder: Path, *layers: tuple[str, Mapping[str, Any]], pooling: Mapping[str, Any] = MEAN,
         **files: Mapping[str, Any]) -> Path:  # fmt: skip
    """A folder of sentence-transformers with these layers behind the pooling, and further files by their names."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).symlink_to(file)
    modules: list[Any] = [("Transformer", "", {}), ("Pooling", "1_Pooling", dict(pooling))]
    modules += [(kind, f"{number}_{kind}", dict(values)) for number, (kind, values) in enumerate(layers, 2)]
    draw = torch.Generator().manual_seed(1)
    for kind, path, values in modules[1:]:
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(values))
        tensors: dict[str, Tensor] = {}
        if kind == "Dense":
            width, entering = values["out_features"], values["in_features"]
            tensors = {"linear.weight": torch.randn(width, entering, generator=draw)}
            tensors |= {"linear.bias": torch.randn(width, generator=draw)} if values.get("bias", True) else {}
        elif kind == "LayerNorm":
            tensors = {f"norm.{name}": torch.randn(values["dimension"], generator=draw) for name in ("weight", "bias")}
        if tensors:
            save_file(tensors, folder / path / "model.safetensors")
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path, _) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, content in files.items():
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def pooled(states: Tensor, mask: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """sentence-transformers' Pooling.forward of one text: states (T, d), mask (T,) -> (d * ways,)."""
    settings = {"pooling_mode_mean_tokens": True} | settings
    if mode := settings.get("pooling_mode"):
        names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "weightedmean": "weightedmean_tokens"}
        settings = {f"pooling_mode_{names.get(mode, mode)}": True}
    m, places = mask[:, None].float(), torch.arange(1, len(states) + 1)[:, None].float()
    found = {
        "cls_token": states[0],
        "max_tokens": states.masked_fill(m == 0, -1e9).amax(0),
        "mean_tokens": (states * m).sum(0) / m.sum().clamp(min=1e-9),
        "mean_sqrt_len_tokens": (states * m).sum(0) / m.sum().clamp(min=1e-9).sqrt(),
        "weightedmean_tokens": (states * m * places).sum(0) / (m * places).sum().clamp(min=1e-9),
        "lasttoken": (states * m)[int(mask.nonzero().max()) if mask.any() else 0],
    }
    return torch.cat([found[way] for way in WAYS if settings.get(f"pooling_mode_{way}")])


def by_hand(folder: Path, texts: list[str], prompt: str = "") -> Tensor:
    """What sentence-transformers computes, with transformers' model and tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    values = {
        name: json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        for name in ("sentence_bert_config.json", "1_Pooling/config.json")
    }
    settings, pooling = values["sentence_bert_config.json"], values["1_Pooling/config.json"]
    longest = settings.get("max_seq_length") or min(model.config.max_position_embeddings, tokenizer.model_max_length)

    def tokens(text: str) -> list[int]:
        text = text.strip().lower() if settings.get("do_lower_case") else text.strip()
        return list(tokenizer(text, truncation=True, max_length=longest)["input_ids"])

    result = []
    for text in texts:
        ids = tokens(prompt + text) or [tokenizer.eos_token_id]
        mask = torch.ones(len(ids), dtype=torch.int64)
        if prompt and not pooling.get("include_prompt", True):
            mask[: len(tokens(prompt))] = 0
        with torch.no_grad():
            vector = pooled(model(input_ids=torch.tensor([ids])).last_hidden_state[0], mask, pooling)
        for module in json.loads((folder / "modules.json").read_text())[2:]:
            vector = layer_by_hand(folder / module["path"], module["type"].rpartition(".")[2], vector)
        result.append(vector)
    return torch.stack(result)


def layer_by_hand(folder: Path, kind: str, vector: Tensor) -> Tensor:
    if kind == "Normalize":
        return nn.functional.normalize(vector, dim=0)
    if kind == "Dropout":
        return vector
    tensors, values = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    if kind == "LayerNorm":
        return nn.functional.layer_norm(vector, vector.shape, tensors["norm.weight"], tensors["norm.bias"])
    made = getattr(nn, values["activation_function"].rpartition(".")[2])()
    result: Tensor = made(tensors["linear.weight"] @ vector + tensors.get("linear.bias", torch.zeros(())))
    return result


def dense(width: int, result: int, activation: str, **more: Any) -> tuple[str, dict[str, Any]]:
    where = "linear" if activation == "Identity" else "activation"
    name = f"torch.nn.modules.{where}.{activation}"
    return "Dense", {"in_features": width, "out_features": result, "activation_function": name} | more


NO_MEAN = {"pooling_mode_mean_tokens": False}
DEFAULT = PROMPTS | {"default_prompt_name": "query"}
NORMALIZE: tuple[str, dict[str, Any]] = ("Normalize", {})
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    **{way: ([NORMALIZE], {"pooling": NO_MEAN | {f"pooling_mode_{way}": True}}) for way in WAYS},
    "all at once": ([], {"pooling": {f"pooling_mode_{way}": True for way in WAYS}}),
    "the mean too, for it is not switched off": ([NORMALIZE], {"pooling": {"pooling_mode_lasttoken": True}}),
    "newer": ([NORMALIZE], {"pooling": {"embedding_dimension": 32, "pooling_mode": "lasttoken"}}),
    "newer, mean": ([NORMALIZE], {"pooling": {"pooling_mode": "mean_sqrt_len_tokens"}}),
    "without length 1": ([], {}),
    "short": ([NORMALIZE], {"sentence_bert_config": {"max_seq_length": 5, "do_lower_case": False}}),
    "lower case": ([NORMALIZE], {"sentence_bert_config": {"max_seq_length": None, "do_lower_case": True}}),
    "neutral arguments": ([NORMALIZE], {"sentence_bert_config": {"model_args": {"dtype": "float32"}}}),
    "layers": ([dense(32, 48, "GELU", bias=False), dense(48, 8, "SiLU"), NORMALIZE], {}),
    "more layers": (
        [("Dropout", {"dropout": 0.1}), NORMALIZE, dense(32, 16, "LeakyReLU"), ("LayerNorm", {"dimension": 16})], {},
    ),
    "prompt": ([NORMALIZE], {"config_sentence_transformers": DEFAULT}),
    "prompt that does not count": ([NORMALIZE], {
        "config_sentence_transformers": DEFAULT, "pooling": MEAN | {"include_prompt": False},
    }),
    "prompt that does not count, last": ([], {
        "config_sentence_transformers": DEFAULT,
        "pooling": {"include_prompt": False, "pooling_mode": "lasttoken"},
    }),
    "default prompt without text": ([NORMALIZE], {"config_sentence_transformers": {"default_prompt_name": "document"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_sentence_transformers(name: str, base: Path, tmp_path: Path) -> None:
    layers, files = CASES[name]
    folder = make(base, tmp_path / "m", *layers, **files)
    default = files.get("config_sentence_transformers", {}).get("default_prompt_name")
    wanted = by_hand(folder, TEXTS, {"query": "query: "}.get(default, ""))
    (tmp_path / "texts.json").write_text(json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False))
    out = tmp_path / "v.npy"
    assert main(["embed", str(folder), "--data", str(tmp_path / "texts.json"), "--out", str(out), "--dtype", "float32",
                 "--device", "cpu", "--batch-size", "4"]) == 0  # fmt: skip
    assert np.abs(np.load(out) - wanted.numpy()).max() < 2e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("flags", "prompt"),
    [([], ""), (["--prompt-name", "query"], "query: "), (["--prompt", "강: "], "강: "), (["--prompt-name", ""], "")],
)
def test_prompts_are_chosen(
    flags: list[str], prompt: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(base, tmp_path / "m", NORMALIZE, config_sentence_transformers=PROMPTS)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:4]))
    command = ["embed", str(folder), "--data", str(tmp_path / "texts.txt"), "--dtype", "float32", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "v.npy"), *flags]) == 0
    said = capsys.readouterr().err
    assert (f"Prompts: '{prompt}' before each text." if prompt else "No prompt is used; --prompt-name") in said
    assert np.allclose(np.load(tmp_path / "v.npy"), by_hand(folder, TEXTS[:4], prompt).numpy(), atol=2e-5)


def test_queries_and_documents_have_prompts_of_their_own(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    folder = make(base, tmp_path / "m", config_sentence_transformers={
        "prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "dot",
    })  # fmt: skip
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:4]))
    command = ["embed", str(folder), "--data", str(tmp_path / "texts.txt"), "--dtype", "float32", "--device", "cpu"]
    assert main([*command, "--query", "산에", "--top", "4"]) == 0
    captured = capsys.readouterr()
    assert "'passage: ' before each text, 'query: ' before the query" in captured.err
    query, texts = by_hand(folder, ["산에"], "query: "), by_hand(folder, TEXTS[:4], "passage: ")
    wanted = sorted(((float(v @ query[0]), n + 1) for n, v in enumerate(texts)), reverse=True)
    found = [line.split("\t")[:2] for line in captured.out.splitlines()]
    assert [int(number) for _, number in found] == [number for _, number in wanted]
    assert [float(score) for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-3)
    assert main([*command, "--query", "산에", "--query-prompt-name", "nobody"]) == 2
    assert "there is no prompt 'nobody'" in capsys.readouterr().err


def settings(values: dict[str, Any]) -> dict[str, Any]:
    return {"config_sentence_transformers": values}


def texts(values: dict[str, Any]) -> dict[str, Any]:
    return {"sentence_bert_config": values}


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "other prompt": ([], settings({"default_prompt_name": "x"}), "default prompt 'x' is not"),
    "likeness": ([], settings({"similarity_fn_name": "maxsim"}), "likeness 'maxsim'"),
    "sparse": ([], settings({"model_type": "SparseEncoder"}), "'SparseEncoder' of 'model_type'"),
    "cut": ([], settings({"truncate_dim": 16}), "16 of 'truncate_dim'"),
    "later invention": ([], settings({"shift": 1}), "setting 'shift' is not supported"),
    "prompts": ([], settings({"prompts": ["query: "]}), "the prompts are not texts by name"),
    "other states": ([], texts({"model_args": {"num_hidden_layers": 1}}), "'num_hidden_layers' in model_args"),
    "other method": ([], texts({"transformer_task": "text-generation"}), "'transformer_task'"),
    "length": ([], texts({"max_seq_length": "long"}), "max_seq_length cannot be 'long'"),
    "pooling": ([], {"pooling": MEAN | {"pooling_mode_median": True}}, "setting 'pooling_mode_median' of the pooling"),
    "no pooling": ([], {"pooling": {"pooling_mode_mean_tokens": False}}, r"the pooling \[\] is not supported"),
    "norm": ([("LayerNorm", {"dimension": 9})], {}, "no layer norm of 32 numbers"),
    "module": ([("WordWeights", {})], {}, "module 'WordWeights' in place 2 is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name: str, base: Path, tmp_path: Path) -> None:
    layers, files, complaint = REFUSED[name]
    folder = make(base, tmp_path / "m", *layers, **files)
    with pytest.raises(UserError, match=complaint):
        load_embedder(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"type": "custom_st.Transformer"}, "module 'custom_st.Transformer' is not one of sentence-transformers"),
        ({"path": "0_Transformer"}, "the model lies in '0_Transformer'"),
        ({"type": "sentence_transformers.models.StaticEmbedding"}, "'StaticEmbedding' in place 0"),
    ],
)
def test_the_model_is_the_one_beside_the_list(
    change: dict[str, str], complaint: str, base: Path, tmp_path: Path
) -> None:
    folder = make(base, tmp_path / "m", NORMALIZE)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0] | change, *modules[1:]]))
    with pytest.raises(UserError, match=complaint):
        load_embedder(folder, device="cpu")
    (folder / "modules.json").write_text(json.dumps([modules[0], modules[2]]))
    with pytest.raises(UserError, match="'Normalize' in place 1|no pooling"):
        load_embedder(folder, device="cpu")


def test_export_takes_the_settings_along(base: Path, tmp_path: Path) -> None:
    files = {"config_sentence_transformers": PROMPTS | {"default_prompt_name": "query", "similarity_fn_name": "dot"},
             "sentence_bert_config": {"max_seq_length": 7, "do_lower_case": True}}  # fmt: skip
    pooling = {f"pooling_mode_{way}": True for way in WAYS[:3]} | {"include_prompt": False}
    layers = [NORMALIZE, ("LayerNorm", {"dimension": 96}), dense(96, 8, "ELU")]
    folder = make(base, tmp_path / "m", *layers, pooling=pooling, **files)
    assert main(["export", str(folder), "--format", "hf", "--out", str(tmp_path / "copy")]) == 0
    one, other = (load_embedder(tmp_path / name, device="cpu", dtype="float32") for name in ("m", "copy"))
    assert one.reading == other.reading and one.reading.similarity == "dot" and not one.reading.normalize
    assert torch.equal(one.embed(TEXTS), other.embed(TEXTS))
    assert torch.allclose(one.embed(TEXTS), by_hand(tmp_path / "copy", TEXTS, "query: "), atol=1e-4)


def test_a_model_that_was_not_trained_for_it_is_said(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("강\n산\n")
    command = ["--data", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "v.npy"), "--device", "cpu"]
    assert main(["embed", str(base), *command]) == 0
    captured = capsys.readouterr()
    assert "This model was not trained for vectors of texts: they are the mean of its last states." in captured.err
    assert captured.out.startswith("Wrote 2 vectors")
    assert main(["embed", str(make(base, tmp_path / "m", NORMALIZE)), *command]) == 0
    assert "not trained" not in capsys.readouterr().err
