"""Yeoul: GPT-style language models, Korean first, and their linear-time forms.

The public face. Names are imported on first use (PEP 562), so `import yeoul` costs nothing:

    model, tokenizer = yeoul.load("path-or-hub-id")
    text = yeoul.generate(model, tokenizer, "옛날 옛적에", max_tokens=64, temperature=0.8, seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yeoul.version import VERSION as __version__

if TYPE_CHECKING:
    from yeoul.errors import UserError
    from yeoul.infer.engine import generate, stream
    from yeoul.model.config import FeatureMapConfig, ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.state_updates.additive import DiJiangAttention
    from yeoul.ops.linear_attention import linear_attention
    from yeoul.recipes.demo.config import DemoConfig
    from yeoul.recipes.demo.run import DemoResult, demo
    from yeoul.recipes.linearize.config import LinearizeConfig
    from yeoul.recipes.linearize.run import LinearizeResult, linearize, plan_linearize
    from yeoul.recipes.loading import load
    from yeoul.recipes.pretrain.config import PretrainConfig
    from yeoul.recipes.pretrain.run import PretrainResult, plan_pretrain, pretrain
    from yeoul.recipes.saving import save
    from yeoul.text.tokenizer import Tokenizer

_HOMES = {
    "load": "yeoul.recipes.loading",
    "generate": "yeoul.infer.engine",
    "stream": "yeoul.infer.engine",
    "linear_attention": "yeoul.ops.linear_attention",
    "DiJiangAttention": "yeoul.model.state_updates.additive",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'yeoul' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
