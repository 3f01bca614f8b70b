"""What linearizing a published model takes on one GPU: computed from shapes; nothing is measured or downloaded.

    python benchmarks/open_models.py --out docs/benchmarks/open-models.json

Parameters and cache bytes are exact: they are asked of the model that `yeoul linearize` would make, without memory for
its weights. Bytes that the backward pass keeps are counted on one layer of each kind with tensors that have shapes
and no numbers. Hours are products divided by the peak of the GPU times a utilisation that is assumed. Prints a
Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from yeoul.adapt.linearize import Alignment, Conversion, train_everything, train_only_maps
from yeoul.data.batch import Batch
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.families import read_config
from yeoul.ops import blocks
from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.linearize.config import StageOptions

BF16_PEAK = 989e12
"""Products and sums a second of dense bfloat16 matrices, H100 and H200 SXM (NVIDIA's data sheets: 1,979 with sparsity,
which is half as many without)."""
FP32_PEAK = 67e12
"""The same in float32, where linear attention computes, from the same data sheets."""
UTILISATION = 0.35
"""Share of the peak that is reached: an assumption."""
ADDITIVE = Conversion(sinks=0, exact=(0,), feature_map=FeatureMapConfig(), state_update="additive", short_conv=0)
"""What the operations are counted for: sums of features beside a window (--map dijiang --sinks 0 --exact 0)."""
GPUS = {"80 GB": 80e9, "141 GB": 141e9}
"""Memory of the H100 SXM and of the H200."""
RESERVE = 4e9
"""Bytes for temporaries, kernels and fragmentation: an assumption."""
TOKENS = 100_000_000
"""Budget of the three stages: between LoLCATs' 40 million (arXiv 2410.10254) and RADLADS' 450 to 900 million (arXiv
2505.03005)."""
BATCHES = (8, 4, 2, 1)
CONTEXT = 2048
CHUNK = 64

LLAMA3_ROPE = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def _shape(
    kind: str, hidden: int, layers: int, heads: int, groups: int, inner: int, vocab: int, longest: int, **more: Any
) -> dict[str, Any]:
    """The fields of `config.json` that Llama and its descendants share."""
    return dict(
        model_type=kind, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, intermediate_size=inner, vocab_size=vocab, max_position_embeddings=longest, **more,
    )  # fmt: skip


def _neox(hidden: int, layers: int, heads: int, vocab: int, rotated: float) -> dict[str, Any]:
    return dict(
        model_type="gpt_neox", hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, vocab_size=vocab, max_position_embeddings=2048, rotary_pct=rotated,
    )  # fmt: skip


TIED = dict(tie_word_embeddings=True)
LLAMA32 = dict(rope_theta=5e5, rope_scaling=dict(LLAMA3_ROPE, factor=32.0), **TIED)
QWEN25 = dict(rope_theta=1e6, sliding_window=None)
QWEN3 = dict(rope_theta=1e6, head_dim=128, sliding_window=None)
GEMMA2 = dict(head_dim=256, query_pre_attn_scalar=256, sliding_window=4096)
GEMMA3 = dict(head_dim=256, query_pre_attn_scalar=256, sliding_window=512, sliding_window_pattern=6)
EXAONE = dict(rope_theta=1e6, rope_scaling=dict(LLAMA3_ROPE, factor=16.0))

MODELS: dict[str, dict[str, Any]] = {
    "skt/kogpt2-base-v2": dict(
        model_type="gpt2", n_embd=768, n_layer=12, n_head=12, n_positions=1024, vocab_size=51200
    ),
    "EleutherAI/pythia-160m": _neox(768, 12, 12, 50304, 0.25),
    "EleutherAI/pythia-1b": _neox(2048, 16, 8, 50304, 0.25),
    "EleutherAI/polyglot-ko-1.3b": _neox(2048, 24, 16, 30080, 0.5),
    "EleutherAI/polyglot-ko-5.8b": _neox(4096, 28, 16, 30080, 0.25),
    "EleutherAI/polyglot-ko-12.8b": _neox(5120, 40, 40, 30080, 0.5),
    "meta-llama/Llama-3.2-1B": _shape("llama", 2048, 16, 32, 8, 8192, 128256, 131072, head_dim=64, **LLAMA32),
    "kakaocorp/kanana-nano-2.1b-base": _shape(
        "llama", 1792, 32, 24, 8, 8064, 128256, 8192, head_dim=128, rope_theta=5e5, **TIED
    ),
    "meta-llama/Llama-3.2-3B": _shape("llama", 3072, 28, 24, 8, 8192, 128256, 131072, head_dim=128, **LLAMA32),
    "meta-llama/Llama-2-7b-hf": _shape("llama", 4096, 32, 32, 32, 11008, 32000, 4096),
    "beomi/llama-2-ko-7b": _shape("llama", 4096, 32, 32, 32, 11008, 46336, 2048),
    "meta-llama/Llama-3.1-8B": _shape(
        "llama", 4096, 32, 32, 8, 14336, 128256, 131072, rope_theta=5e5, rope_scaling=dict(LLAMA3_ROPE, factor=8.0)
    ),
    "upstage/SOLAR-10.7B-v1.0": _shape("llama", 4096, 48, 32, 8, 14336, 32000, 4096),
    "yanolja/EEVE-Korean-10.8B-v1.0": _shape("llama", 4096, 48, 32, 8, 14336, 40960, 4096),
    "mistralai/Mistral-7B-v0.1": _shape("mistral", 4096, 32, 32, 8, 14336, 32000, 32768, sliding_window=4096),
    "mistralai/Mistral-7B-v0.3": _shape(
        "mistral", 4096, 32, 32, 8, 14336, 32768, 32768, rope_theta=1e6, sliding_window=None
    ),
    "Qwen/Qwen2.5-0.5B": _shape("qwen2", 896, 24, 14, 2, 4864, 151936, 32768, **QWEN25, **TIED),
    "Qwen/Qwen2.5-1.5B": _shape("qwen2", 1536, 28, 12, 2, 8960, 151936, 131072, **QWEN25, **TIED),
    "Qwen/Qwen2.5-7B": _shape("qwen2", 3584, 28, 28, 4, 18944, 152064, 131072, **QWEN25),
    "Qwen/Qwen3-0.6B": _shape("qwen3", 1024, 28, 16, 8, 3072, 151936, 40960, **QWEN3, **TIED),
    "Qwen/Qwen3-1.7B": _shape("qwen3", 2048, 28, 16, 8, 6144, 151936, 40960, **QWEN3, **TIED),
    "Qwen/Qwen3-4B": _shape("qwen3", 2560, 36, 32, 8, 9728, 151936, 40960, **QWEN3, **TIED),
    "Qwen/Qwen3-8B": _shape("qwen3", 4096, 36, 32, 8, 12288, 151936, 40960, **QWEN3),
    "google/gemma-2b": _shape("gemma", 2048, 18, 8, 1, 16384, 256000, 8192, head_dim=256),
    "google/gemma-2-2b": _shape("gemma2", 2304, 26, 8, 4, 9216, 256000, 8192, **GEMMA2),
    "google/gemma-2-9b": _shape("gemma2", 3584, 42, 16, 8, 14336, 256000, 8192, **GEMMA2),
    "google/gemma-3-270m": _shape("gemma3_text", 640, 18, 4, 1, 2048, 262144, 32768, **GEMMA3),
    "google/gemma-3-1b-pt": _shape("gemma3_text", 1152, 26, 4, 1, 6912, 262144, 32768, **GEMMA3),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": _shape(
        "exaone4", 2048, 30, 32, 8, 4096, 102400, 65536, head_dim=64, sliding_window=None, **EXAONE, **TIED
    ),
    "LGAI-EXAONE/EXAONE-4.0-32B": _shape(
        "exaone4", 5120, 64, 40, 8, 27392, 102400, 131072, head_dim=128, sliding_window=4096,
        sliding_window_pattern="LLLG", **EXAONE,
    ),
}  # fmt: skip
"""What the published config.json of each says of its shape."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()
    rows = [compute(name, MODELS[name]) for name in arguments.models]
    print(table(rows))
    if arguments.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]),
            "computed": "from shapes and the constants below; nothing here was measured",
            "bf16_peak": BF16_PEAK,
            "fp32_peak": FP32_PEAK,
            "utilisation": UTILISATION,
            "reserve_bytes": RESERVE,
            "tokens": TOKENS,
            "torch": torch.__version__,
            "models": rows,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def compute(name: str, published: dict[str, Any]) -> dict[str, Any]:
    """Everything about one model, bytes in bytes; no budget where it has no softmax layer."""
    _, teacher = read_config(published, frozenset())
    row: dict[str, Any] = {
        "model": name,
        "family": teacher.family,
        "parameters": skeleton(teacher).num_parameters(),
        "layers": dict(Counter(teacher.attention)),
        "cache_softmax": caches(teacher),
    }
    if "softmax" not in teacher.attention:
        return row
    student = ADDITIVE.apply(teacher)
    context = min(teacher.max_position_embeddings, CONTEXT)
    row |= {"cache_hybrid": caches(student), "context": context, "tokens": TOKENS, **hours(teacher, student, context)}
    kept = {kind: kept_bytes(teacher, kind, context) for kind in dict.fromkeys(student.attention)}
    need = {batch: memory(teacher, student, kept, batch, context) for batch in BATCHES}
    for gpu, room in GPUS.items():
        for batch, sizes in need.items():
            if sizes["peak"] <= room:
                return row | {"gpu": gpu, "batch_size": batch, **sizes}
    row |= {"gpu": None, "batch_size": 1, **need[1]}
    return row | {"align_only_gpu": next((g for g, room in GPUS.items() if row["peak_align_only"] <= room), None)}


def caches(config: ModelConfig) -> dict[str, int]:
    """Cache bytes of one sequence at 8,192 and 32,768 tokens, keys and values in bfloat16."""
    fixed, growing = cache_bytes(config, 2)
    return {str(tokens): fixed + growing * tokens for tokens in (8192, 32768)}


def hours(teacher: ModelConfig, student: ModelConfig, context: int) -> dict[str, float]:
    """Operations of the three stages and the hours they take at the assumed utilisation; also if all tokens align.

    A weight costs 2 operations a token in a forward pass, 4 more in the backward pass, and 2 more where the forward
    pass is computed again. The linear part is counted apart, because it computes in float32.
    """
    model = skeleton(teacher)
    weights = model.num_parameters()
    if not teacher.tie_embeddings:
        weights -= model.model.embed_tokens.weight.numel()  # looked up, not multiplied
    H, G, D = teacher.heads
    converted = student.attention.count("hybrid")
    linear = converted * linear_operations(H, G, D, student.feature_map.size(D), CHUNK)
    projected = converted * 4 * H * D * teacher.hidden_size  # the error behind the output projection, and its gradient
    align, finetune = StageOptions.align_share * TOKENS, StageOptions.finetune_share * TOKENS
    distil = TOKENS - align - finetune
    aligned = 2 * weights + projected, 3 * linear  # of a token: in bfloat16, in float32
    bf16 = align * aligned[0] + distil * (2 + 8) * weights + finetune * 8 * weights
    fp32 = align * aligned[1] + (distil + finetune) * 4 * linear
    return {
        "operations_bf16": bf16,
        "operations_fp32": fp32,
        "hours": _hours(bf16, fp32),
        "hours_align_only": _hours(TOKENS * aligned[0], TOKENS * aligned[1]),
    }


def _hours(bf16: float, fp32: float) -> float:
    return (bf16 / BF16_PEAK + fp32 / FP32_PEAK) / UTILISATION / 3600


def linear_operations(H: int, G: int, D: int, M: int, chunk: int) -> int:
    """Float32 operations that one token costs in the linear part of one layer, forward: features, scores inside a
    chunk and their product with the values, reading and writing the state."""
    frequencies = M // 2
    query = 2 * D * frequencies + 2 * chunk * (M + D + 1) + 2 * M * (D + 1)
    key = 2 * D * frequencies + 2 * M * (D + 1)
    return H * query + G * key


Kept = tuple[int, int]
"""Bytes that stay for the gradient: whatever the batch, and for each sequence."""


def memory(
    teacher: ModelConfig, student: ModelConfig, kept: dict[str, tuple[Kept, Kept]], batch: int, context: int
) -> dict[str, Any]:
    """Bytes on the GPU with --gradient-checkpointing; not all that is added up stands at once.

    Weights of both models are float32, gradients and AdamW's two averages too. Checkpointing keeps the input of every
    block, and the insides of one. Alignment keeps the linear part of all layers, checkpointing or not. Scoring at the
    end holds a third model beside teacher and student.
    """
    own, other = skeleton(student), skeleton(teacher)
    N, weights = own.num_parameters(), other.num_parameters()
    maps = sum(p.numel() for name, p in own.named_parameters() if ".feature_map." in name)
    both = 4 * N + 4 * weights
    inputs = student.num_layers * 4 * student.hidden_size * batch * context
    block = max(fixed + batch * each for (fixed, each), _ in kept.values())
    output = 8 * student.vocab_size * student.hidden_size  # two bfloat16 copies of it, and its float32 gradient
    aligned = [kept[kind][1] for kind in student.attention]
    distil = both + 12 * N + inputs + block + output
    align = both + 12 * maps + sum(fixed + batch * each for fixed, each in aligned)
    score = both + 4 * N
    return {
        "states": both + 12 * N,
        "peak": max(distil, align, score) + RESERVE,
        "peak_stage": "distil" if distil >= align else "align",
        "peak_align_only": max(align, score) + RESERVE,
    }


def kept_bytes(teacher: ModelConfig, kind: str, context: int) -> tuple[Kept, Kept]:
    """What the backward pass of one layer keeps: of the whole block, and of its alignment."""
    one = teacher.with_(
        num_layers=1, attention=("softmax" if kind == "hybrid" else kind,), vocab_size=8, no_rope_layers=(),
        max_position_embeddings=context,
    )  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):
        single, double = kept_of_layer(one, 1, context), kept_of_layer(one, 2, context)
    block, align = ((2 * a - b, b - a) for a, b in zip(single, double, strict=True))
    return block, align


def kept_of_layer(teacher: ModelConfig, batch: int, context: int) -> tuple[int, int]:
    """Bytes that a block and its alignment keep for so many sequences; the latter 0 where no layer is converted."""
    convertible = "softmax" in teacher.attention
    student = on_cpu(skeleton(ADDITIVE.apply(teacher) if convertible else teacher))
    train_everything(student)
    ids = torch.zeros(batch, context, dtype=torch.int64)
    block = saved_for_backward(lambda: student.train().hidden(ids), student)
    if not convertible:
        return block, 0
    softmax = on_cpu(skeleton(teacher)).requires_grad_(False)
    train_only_maps(student)
    both = Batch(input_ids=ids, labels=ids)
    return block, saved_for_backward(lambda: Alignment(softmax)(student, both), student, softmax)


def on_cpu(model: Decoder) -> Decoder:
    """The skeleton with small weights: numbers, or under a FakeTensorMode none."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.full(parameter.shape, 0.01))
    return model


def saved_for_backward(compute: Callable[[], Tensor], *models: nn.Module) -> int:
    """Bytes of the tensors that `compute` keeps for its gradient under autocast, each memory once, weights not."""
    weights = {p.untyped_storage()._cdata for model in models for p in model.parameters()}
    found: dict[int, tuple[Any, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = (storage, storage.nbytes())  # held, so that no other is put in its place
        return tensor

    on_the_cpu, blocks.NUMBERS_ON_CPU = blocks.NUMBERS_ON_CPU, blocks.NUMBERS_ELSEWHERE  # chunks as on a GPU
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16):
                compute()
    finally:
        blocks.NUMBERS_ON_CPU = on_the_cpu
    return sum(size for _, size in found.values())


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; caches in MiB, memory in GB, batch size in brackets behind the GPU."""
    lines = [
        "| model | parameters | cache at 8k, MiB | at 32k, MiB | hours | memory, GB | GPU (batch) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"`{row['model']}`", f"{row['parameters']:,}"]
        for tokens in ("8192", "32768"):
            after = f" → {row['cache_hybrid'][tokens] / 2**20:,.0f}" if "hours" in row else ""
            cells.append(f"{row['cache_softmax'][tokens] / 2**20:,.0f}{after}")
        if "hours" in row:
            cells += [f"{row['hours']:,.1f}", f"{row['peak'] / 1e9:,.0f}"]
        else:
            cells += ["–", "–"]
        if row.get("gpu"):
            cells.append(f"{row['gpu']} ({row['batch_size']})")
        elif row.get("align_only_gpu"):
            cells.append(f"{row['align_only_gpu']} (1, align)")
        else:
            cells.append("–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
