"""GGUF files in llama.cpp against Yeoul: logits, greedy tokens, and the ids of text.

    python benchmarks/gguf_llama_cpp.py --python OTHER/bin/python --out docs/benchmarks/gguf.json

`--python` is an interpreter with llama-cpp-python; it needs nothing else, and stays out of Yeoul's own environment.
Every family is made by transformers, tiny and random, with weights large enough for sharp logits; written as GGUF
in every type; and read by both. Our logits are those of an fp32 run with the same rounded weights. Greedy: both
continue the same 48 tokens by 64; where they part, the difference of our two best logits there is printed, beside
how far llama.cpp's logits are from ours (RMS, whole sequence). llama.cpp rounds activations to the type of the
weights (f16, bf16, or 8-bit blocks), so only f32 is to agree closely. Tokenizers: ids of Korean,
English, code and emoji.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT, NEW, CONTEXT = 48, 64, 256
VOCABULARY = 1536
BASE = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=CONTEXT, initializer_range=0.2,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=1e4, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=2.0)
GEMMA = dict(head_dim=16, num_key_value_heads=2)
GEMMA3_ROPE = {
    "full_attention": dict(rope_type="linear", rope_theta=1e5, factor=2.0),
    "sliding_attention": dict(rope_type="default", rope_theta=1e4),
}
FULL = dict(sliding_window=None, layer_types=["full_attention"] * 2)
WIDE = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(num_key_value_heads=2)),
    "llama, biases": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=32, tie_word_embeddings=True)),
    "llama, llama3 rope": ("Llama", dict(num_key_value_heads=2, rope_parameters=LLAMA3)),
    "llama, linear rope": ("Llama", dict(rope_parameters=LINEAR)),
    "llama, yarn rope": ("Llama", dict(rope_parameters=YARN)),
    "mistral": ("Mistral", dict(num_key_value_heads=2, sliding_window=128)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=2)),
    "qwen2, yarn rope": ("Qwen2", dict(num_key_value_heads=4, rope_parameters=YARN | {"attention_factor": 1.3})),
    "qwen3": ("Qwen3", dict(num_key_value_heads=2, head_dim=32)),
    "gemma": ("Gemma", dict(head_dim=32, num_key_value_heads=1)),
    "gemma2": ("Gemma2", GEMMA | dict(num_hidden_layers=3, sliding_window=16, query_pre_attn_scalar=24)),
    "gemma3_text": (
        "Gemma3Text", GEMMA | dict(num_hidden_layers=7, sliding_window=16, rope_parameters=GEMMA3_ROPE),
    ),
    "exaone4": ("Exaone4", FULL | dict(num_key_value_heads=2, rope_parameters=LLAMA3)),
    "exaone4, 64 layers, sliding": ("Exaone4", WIDE | dict(num_hidden_layers=64, sliding_window=16)),
    "gpt2": ("GPT2", {}),
    "gpt_neox": ("GPTNeoX", dict(hidden_act="gelu_new")),
    "gpt_neox, serial, exact GELU": ("GPTNeoX", dict(use_parallel_residual=False)),
}  # fmt: skip
TEXTS = (
    "옛날 옛적에 호랑이가 담배 피우던 시절, 깊은 산속에 나무꾼이 살았습니다. “정말이냐?” 하고 물었다.",
    "The quick brown fox doesn't jump over 12,345 lazy dogs; it's 3.14 o'clock...  Really?!",
    "가격은 1,250,000원(부가세 10% 포함)이고 2024년 3월 1일까지예요ㅋㅋㅋ ㅠㅠ",
    "🙂👍🏽 이모지와 👨‍👩‍👧 가족, ❤️ 그리고 café naïve Straße Ελλάδα Москва 日本語 中文",
    "def f(x):\n    return [x ** 2 for _ in range(10)]\n\n\tif x != y:\r\n        pass\n\n\n# 끝",
    "  앞 공백  두 칸   세 칸 \n \n탭\t끝 ",
    "똠방각하 뷁 쀍 갊 ㄱㄴㄷ 각 </s> <s> <|user|> <0x41> ▁",
    "",
    " ",
    "\n",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=None, help="interpreter with llama-cpp-python")
    parser.add_argument("--dtypes", nargs="+", default=["f32", "f16", "bf16", "q8_0"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    if arguments.python is None:
        parser.error("--python is needed")

    import torch

    from yeoul import runtime

    runtime.set_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizers = [compare_tokenizer(arguments.python, *made) for made in make_tokenizers(Path(scratch))]
        print_table(tokenizers, ("tokenizer", "texts", "tokens", "ids_differ", "text_differs", "first_difference"))
        models = []
        for name in arguments.models:
            folder = make_model(name, Path(scratch) / name.replace(" ", ""), Path(scratch) / "yeoul-bpe")
            models += [compare_model(arguments.python, name, folder, dtype) for dtype in arguments.dtypes]
            print(f"{name} done", file=sys.stderr, flush=True)
    print_table(models, ("model", "architecture", "dtype", "logits_rms", "same_tokens", "gap", "gap_over_rms"))
    if arguments.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]).replace(str(arguments.python), "OTHER/bin/python"),
            "cpu": runtime.cpu_name(),
            "torch": torch.__version__,
            "llama_cpp_python": ask(arguments.python, {"do": "version"})["version"],
            "seconds": time.perf_counter() - started,
            "tokenizers": tokenizers,
            "models": models,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ask(python: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Run this file's worker in the other interpreter."""
    command = [str(python), __file__, "--worker"]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def work() -> None:
    """What the other interpreter does: one question on standard input, one answer on the last line."""
    import llama_cpp
    import numpy as np

    question = json.loads(sys.stdin.read())
    if question["do"] == "version":
        print(json.dumps({"version": llama_cpp.__version__}))
        return
    tokenize_only = question["do"] == "tokenize"
    model = llama_cpp.Llama(
        question["file"], vocab_only=tokenize_only, n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=1, logits_all=True,
        verbose=False, type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    if tokenize_only:
        ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in question["texts"]]
        piece = llama_cpp.llama_token_to_piece
        buffer, vocabulary = llama_cpp.ctypes.create_string_buffer(512), model._model.vocab
        texts = []
        for tokens in ids:
            parts = [(piece(vocabulary, token, buffer, 512, 0, True), buffer.raw) for token in tokens]
            texts.append(b"".join(raw[:size] for size, raw in parts).decode("utf-8", "replace"))
        print(json.dumps({"ids": ids, "texts": texts}))
        return
    model.eval(question["forced"])
    np.save(question["logits"], model.scores[: len(question["forced"])])
    model.reset()
    model.eval(question["prompt"])
    answer: list[int] = []
    for _ in range(question["new"]):
        answer.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval([answer[-1]])
    print(json.dumps({"tokens": answer}))


def make_model(name: str, folder: Path, tokenizer: Path) -> Path:
    """A published folder of this kind, with random norms and biases too, and a tokenizer."""
    import torch
    import transformers

    from yeoul.text.tokenizer import Tokenizer

    family, options = MODELS[name]
    torch.manual_seed(0)
    settings = BASE | options
    if family == "GPT2":
        settings["n_inner"] = settings.pop("intermediate_size")
    config = getattr(transformers, f"{family}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    Tokenizer.load(tokenizer).save(folder)
    return folder


def compare_model(python: Path, name: str, folder: Path, dtype: str) -> dict[str, Any]:
    """One file: its logits and greedy tokens in llama.cpp and here."""
    import numpy as np
    import torch

    from yeoul.cli import main as yeoul
    from yeoul.model.checkpoint import load_model

    file = folder / f"{dtype}.gguf"
    with contextlib.redirect_stdout(sys.stderr):
        failed = yeoul(["export", str(folder), "--dtype", dtype, "--out", str(file)])
    if failed:
        return {"model": name, "dtype": dtype, "error": "not exported"}
    model = load_model(folder, dtype=torch.float32)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed_positions" not in key:
            parameter.data = rounded(parameter.data, dtype)
    prompt = torch.randint(10, VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    ours, ids = [], list(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            row = model(torch.tensor([ids]))[0, -1]
            ours.append(int(row.argmax()))
            ids.append(ours[-1])
        logits = model(torch.tensor([ids]))[0]
    question = {"do": "generate", "file": str(file), "prompt": prompt, "new": NEW, "forced": ids}
    answer = ask(python, question | {"logits": str(folder / "logits.npy")})
    if "error" in answer:
        return {"model": name, "dtype": dtype, "error": answer["error"]}
    theirs = torch.from_numpy(np.load(folder / "logits.npy"))
    same = next((i for i, (a, b) in enumerate(zip(ours, answer["tokens"], strict=True)) if a != b), NEW)
    rms = float((theirs - logits).square().mean().sqrt())
    result = {
        "model": name,
        "architecture": architecture(file),
        "dtype": dtype,
        "logits_rms": rms / float(logits.square().mean().sqrt()),
        "same_tokens": same,
    }
    if same < NEW:
        best = logits[PROMPT + same - 1].topk(2).values
        result |= {"gap": float(best[0] - best[1]), "gap_over_rms": float(best[0] - best[1]) / rms}
    return result


def architecture(file: Path) -> str:
    from gguf import GGUFReader

    return str(GGUFReader(file).fields["general.architecture"].contents())


def rounded(values: Any, dtype: str) -> Any:
    """What is left of fp32 weights in the file."""
    import torch
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[dtype.upper()]
    return torch.from_numpy(quants.dequantize(quants.quantize(values.numpy(), kind), kind).copy())


def make_tokenizers(root: Path) -> list[tuple[str, Path, int]]:
    """(name, folder, size) of small tokenizers of every kind that is exported."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    from yeoul.data.builtin.generate import generate_documents
    from yeoul.text.gguf_vocabulary import PRE_TOKENIZERS, PROBES, _pre_tokenizer
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    corpus = [*generate_documents(target_bytes=300_000), *PROBES, *TEXTS]
    made = []
    settings: dict[str, dict[str, Any]] = {
        "yeoul-bpe": dict(vocab_size=VOCABULARY),
        "yeoul-bpe-3000": dict(vocab_size=4000, user_symbols=("[MASK]", "<표>")),
        "yeoul-bpe-prefix": dict(vocab_size=3000, add_dummy_prefix=True, normalization="identity", split_digits=True),
        "yeoul-unigram": dict(vocab_size=3000, model_type="unigram", byte_fallback=False),
        "yeoul-unigram-identity": dict(
            vocab_size=3000, model_type="unigram", byte_fallback=False, normalization="identity", add_dummy_prefix=True
        ),
    }
    for name, options in settings.items():
        train_tokenizer(corpus, TokenizerConfig(**options), root / name)
        made.append((name, root / name, options["vocab_size"]))
    for name, whole_words, how in PRE_TOKENIZERS:
        backend = Tokenizer(models.BPE(ignore_merges=whole_words))
        backend.pre_tokenizer, backend.decoder = _pre_tokenizer(how), decoders.ByteLevel()
        if name == "qwen2":
            backend.normalizer = normalizers.NFC()
        alphabet = backend.pre_tokenizer.alphabet() if hasattr(backend.pre_tokenizer, "alphabet") else []
        from tokenizers.pre_tokenizers import ByteLevel

        trainer = trainers.BpeTrainer(
            vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet or ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        backend.train_from_iterator(corpus, trainer)
        folder = root / f"bytes-{name}"
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "bos_token": null}')
        made.append((f"byte-level BPE, {name}", folder, backend.get_vocab_size()))
    return made


def compare_tokenizer(python: Path, name: str, folder: Path, size: int) -> dict[str, Any]:
    """Ids of texts in llama.cpp and here, and the texts that llama.cpp makes of its ids."""
    from yeoul.data.builtin.generate import generate_documents
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.gguf_file import write_gguf
    from yeoul.text.gguf_vocabulary import PROBES, gguf_vocabulary
    from yeoul.text.tokenizer import Tokenizer

    config = ModelConfig(vocab_size=size, hidden_size=32, num_layers=1, num_heads=2)
    file = folder / "vocabulary.gguf"
    vocabulary = gguf_vocabulary(folder, size)
    write_gguf(Decoder(config), file, dtype="f16", name=name, vocabulary=vocabulary.metadata)
    texts = [*TEXTS, *PROBES, *generate_documents(seed=7, target_bytes=100_000)]
    answer = ask(python, {"do": "tokenize", "file": str(file), "texts": texts})
    if "error" in answer:
        return {"tokenizer": name, "error": answer["error"]}
    tokenizer = Tokenizer.load(folder)
    ours = [tokenizer.encode(text) for text in texts]
    differ = [text for text, a, b in zip(texts, ours, answer["ids"], strict=True) if a != b]
    wrong = [ids for ids, text in zip(answer["ids"], answer["texts"], strict=True) if shown(tokenizer, ids) != text]
    return {
        "tokenizer": name,
        "pre": vocabulary.metadata["tokenizer.ggml.pre"],
        "texts": len(texts),
        "tokens": sum(map(len, ours)),
        "ids_differ": len(differ),
        "text_differs": len(wrong),
        "first_difference": differ[0][:60] if differ else "",
        "differences": [
            {"text": t, "ours": a, "theirs": b} for t, a, b in zip(texts, ours, answer["ids"], strict=True) if a != b
        ][:4],
    }


def shown(tokenizer: Any, ids: list[int]) -> str:
    """The text of ids as llama.cpp's pieces show it, without leaving out a first space."""
    text = tokenizer.decode(ids, skip_special=False)
    return " " + text if tokenizer._decoding.strip_first_space and ids else text


def print_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    def cell(row: dict[str, Any], column: str) -> str:
        value = row.get(column, row.get("error", "") if column == columns[-1] else "")
        return f"{value:.2g}" if isinstance(value, float) else str(value).replace("\n", "\\n")

    cells = [list(columns), *([cell(row, column) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


if __name__ == "__main__":
    main()
