"""Yeoul: GPT-style language models, Korean first, and their linear-time forms.

The public face. Names are imported on first use (PEP 562), so `import yeoul` costs nothing:

    model, tokenizer = yeoul.load("path-or-hub-id")
    text = yeoul.generate(model, tokenizer, "옛날 옛적에", max_tokens=64, temperature=0.8, seed=0)
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from yeoul.errors import UserError
    from yeoul.infer.engine import generate, stream
    from yeoul.model.config import FeatureMapConfig, ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.dijiang import DiJiangAttention
    from yeoul.ops.linear_attention import linear_attention
    from yeoul.recipes.demo.config import DemoConfig
    from yeoul.recipes.demo.run import DemoResult, demo
    from yeoul.recipes.linearize.config import LinearizeConfig
    from yeoul.recipes.linearize.run import LinearizeResult, linearize, plan_linearize
    from yeoul.recipes.pretrain.config import PretrainConfig
    from yeoul.recipes.pretrain.run import PretrainResult, plan_pretrain, pretrain
    from yeoul.recipes.saving import save
    from yeoul.text.tokenizer import Tokenizer

_HOMES = {
    "generate": "yeoul.infer.engine",
    "stream": "yeoul.infer.engine",
    "linear_attention": "yeoul.ops.linear_attention",
    "DiJiangAttention": "yeoul.model.dijiang",
    "FeatureMapConfig": "yeoul.model.config",
    "ModelConfig": "yeoul.model.config",
    "Decoder": "yeoul.model.decoder",
    "Tokenizer": "yeoul.text.tokenizer",
    "UserError": "yeoul.errors",
    "DemoConfig": "yeoul.recipes.demo.config",
    "DemoResult": "yeoul.recipes.demo.run",
    "LinearizeConfig": "yeoul.recipes.linearize.config",
    "LinearizeResult": "yeoul.recipes.linearize.run",
    "PretrainConfig": "yeoul.recipes.pretrain.config",
    "PretrainResult": "yeoul.recipes.pretrain.run",
    "demo": "yeoul.recipes.demo.run",
    "linearize": "yeoul.recipes.linearize.run",
    "plan_linearize": "yeoul.recipes.linearize.run",
    "plan_pretrain": "yeoul.recipes.pretrain.run",
    "pretrain": "yeoul.recipes.pretrain.run",
    "save": "yeoul.recipes.saving",
}

__all__ = [
    "Decoder",
    "DemoConfig",
    "DemoResult",
    "DiJiangAttention",
    "FeatureMapConfig",
    "LinearizeConfig",
    "LinearizeResult",
    "ModelConfig",
    "PretrainConfig",
    "PretrainResult",
    "Tokenizer",
    "UserError",
    "__version__",
    "demo",
    "generate",
    "linear_attention",
    "linearize",
    "load",
    "plan_linearize",
    "plan_pretrain",
    "pretrain",
    "save",
    "stream",
]


def load(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    adapter: str | Path | Sequence[str | Path] | None = None,
) -> tuple[Decoder, Tokenizer | None]:
    """Load a model, and its tokenizer when the folder has one.

    Args:
        path: a Hugging Face folder, a run folder with `model/` inside, or the id of a model on the hub; or an
            adapter, alone or in the run that made it, that names its base model.
        device: "auto", "cpu", "cuda", "cuda:N".
        dtype: "auto" keeps the checkpoint's type where the device computes in it natively, else float32; that of a
            quantized model on the CPU always.
        adapter: folder or hub id of a LoRA adapter, which stays unmerged as "default"; of several, each is called as
            its folder, and the first is active (`yeoul.adapt.lora.api.set_adapter`). The first one's own tokenizer,
            where it has one, goes before the model's: its chat template is the one that it was trained with.

    Raises:
        UserError: nothing there, damaged, an architecture that Yeoul does not know, a tokenizer of another model, no
            such device.
    """
    import torch

    from yeoul import runtime
    from yeoul.adapt.lora.api import load_adapters
    from yeoul.adapt.lora.peft_files import adapter_folder, base_folder, tokenizer_beside
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import load_model, load_quantization, model_folder, stored_dtype

    adapters = [] if adapter is None else [adapter] if isinstance(adapter, str | PathLike) else list(adapter)
    folder = local_folder(path)
    if (given := adapter_folder(folder)) is not None:
        adapters, folder = [given, *adapters], base_folder(given)
    folder = model_folder(folder)
    target = runtime.resolve_device(device)
    wanted = runtime.requested_dtype(dtype)
    low_bit = target.type == "cpu" and load_quantization(folder) is not None  # its kernels take bf16, native or not
    if wanted is None and not low_bit and not runtime.computes_natively(stored_dtype(folder), target):
        wanted = torch.float32
    model = load_model(folder, target, wanted)
    if adapters:
        load_adapters(model, adapters)

    from yeoul.text.tokenizer import Tokenizer

    if adapters and (own := tokenizer_beside(adapters[0])) is not None:
        folder = own
    tokenizer = Tokenizer.load(folder) if Tokenizer.exists(folder) else None
    if tokenizer is not None:
        tokenizer.check_fits(model.config.vocab_size)
    return model, tokenizer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'yeoul' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
