"""Yeoul: GPT-style language models, Korean first, and their linear-time forms.

The public face. Names are imported on first use (PEP 562), so `import yeoul` costs nothing:

    result = yeoul.linearize("path-or-hub-id", "text.txt", out="runs/linear", say=print)
    model, tokenizer = yeoul.load("runs/linear")
    text = yeoul.generate(model, tokenizer, "옛날 옛적에", max_tokens=64, temperature=0.8, seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yeoul.version import VERSION as __version__

if TYPE_CHECKING:
    from yeoul.adapt.lora.config import LoraConfig
    from yeoul.errors import UserError
    from yeoul.infer.engine import generate, stream
    from yeoul.infer.params import SamplingParams
    from yeoul.infer.speculation import Speculation
    from yeoul.model.config import FeatureMapConfig, ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.state_updates.additive import DiJiangAttention
    from yeoul.ops.linear_attention import linear_attention
    from yeoul.recipes.bench import BenchConfig, BenchResult, bench
    from yeoul.recipes.chat import Chat
    from yeoul.recipes.classify import load_classifier
    from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
    from yeoul.recipes.compare_tokenizers.result import TokenizerComparison
    from yeoul.recipes.compare_tokenizers.run import compare_tokenizers
    from yeoul.recipes.demo.config import DemoConfig
    from yeoul.recipes.demo.run import DemoResult, demo
    from yeoul.recipes.doctor import examine as doctor
    from yeoul.recipes.embed import load_embedder
    from yeoul.recipes.evaluate import EvaluateConfig, EvaluateResult, compare
    from yeoul.recipes.evaluate import evaluate as evaluate_model
    from yeoul.recipes.export import ExportConfig, ExportResult, export
    from yeoul.recipes.finetune.config import FinetuneConfig
    from yeoul.recipes.finetune.run import FinetuneResult, finetune, plan_finetune
    from yeoul.recipes.info.examine import ModelInfo, info
    from yeoul.recipes.inspect_attention import InspectConfig, InspectResult, inspect_attention
    from yeoul.recipes.linearize.config import LinearizeConfig
    from yeoul.recipes.linearize.run import LinearizeResult, linearize, plan_linearize
    from yeoul.recipes.loading import load
    from yeoul.recipes.pretrain.config import PretrainConfig
    from yeoul.recipes.pretrain.run import PretrainResult, plan_pretrain, pretrain
    from yeoul.recipes.quantize.config import QuantizeConfig
    from yeoul.recipes.quantize.run import QuantizeResult, quantize
    from yeoul.recipes.run_report import report_runs
    from yeoul.recipes.runs import list_runs
    from yeoul.recipes.saving import save
    from yeoul.recipes.screen import load_screen
    from yeoul.recipes.serve import ServeConfig, server_app
    from yeoul.recipes.sweep.config import SweepConfig
    from yeoul.recipes.sweep.result import SweepResult
    from yeoul.recipes.sweep.run import sweep
    from yeoul.recipes.tasks.run import TasksConfig, TasksResult, evaluate_tasks
    from yeoul.recipes.tokenizer import TrainTokenizerConfig, inspect_tokenizer, train_tokenizer
    from yeoul.recipes.translate.config import TranslateConfig
    from yeoul.recipes.translate.result import TranslateResult
    from yeoul.recipes.translate.run import translate
    from yeoul.text.tokenizer import Tokenizer

_HOMES = {
    "generate": "yeoul.infer.engine",
    "stream": "yeoul.infer.engine",
    "SamplingParams": "yeoul.infer.params",
    "Speculation": "yeoul.infer.speculation",
    "Decoder": "yeoul.model.decoder",
    "ModelConfig": "yeoul.model.config",
    "FeatureMapConfig": "yeoul.model.config",
    "DiJiangAttention": "yeoul.model.state_updates.additive",
    "linear_attention": "yeoul.ops.linear_attention",
    "Tokenizer": "yeoul.text.tokenizer",
    "UserError": "yeoul.errors",
    "load": "yeoul.recipes.loading",
    "save": "yeoul.recipes.saving",
    "load_classifier": "yeoul.recipes.classify",
    "load_embedder": "yeoul.recipes.embed",
    "load_screen": "yeoul.recipes.screen",
    "LoraConfig": "yeoul.adapt.lora.config",
    "Chat": "yeoul.recipes.chat",
    "pretrain": "yeoul.recipes.pretrain.run",
    "plan_pretrain": "yeoul.recipes.pretrain.run",
    "PretrainResult": "yeoul.recipes.pretrain.run",
    "PretrainConfig": "yeoul.recipes.pretrain.config",
    "linearize": "yeoul.recipes.linearize.run",
    "plan_linearize": "yeoul.recipes.linearize.run",
    "LinearizeResult": "yeoul.recipes.linearize.run",
    "LinearizeConfig": "yeoul.recipes.linearize.config",
    "finetune": "yeoul.recipes.finetune.run",
    "plan_finetune": "yeoul.recipes.finetune.run",
    "FinetuneResult": "yeoul.recipes.finetune.run",
    "FinetuneConfig": "yeoul.recipes.finetune.config",
    "quantize": "yeoul.recipes.quantize.run",
    "QuantizeResult": "yeoul.recipes.quantize.run",
    "QuantizeConfig": "yeoul.recipes.quantize.config",
    "export": "yeoul.recipes.export",
    "ExportConfig": "yeoul.recipes.export",
    "ExportResult": "yeoul.recipes.export",
    "train_tokenizer": "yeoul.recipes.tokenizer",
    "inspect_tokenizer": "yeoul.recipes.tokenizer",
    "TrainTokenizerConfig": "yeoul.recipes.tokenizer",
    "compare_tokenizers": "yeoul.recipes.compare_tokenizers.run",
    "CompareTokenizersConfig": "yeoul.recipes.compare_tokenizers.config",
    "TokenizerComparison": "yeoul.recipes.compare_tokenizers.result",
    "evaluate_model": "yeoul.recipes.evaluate:evaluate",
    "compare": "yeoul.recipes.evaluate",
    "EvaluateConfig": "yeoul.recipes.evaluate",
    "EvaluateResult": "yeoul.recipes.evaluate",
    "inspect_attention": "yeoul.recipes.inspect_attention",
    "InspectConfig": "yeoul.recipes.inspect_attention",
    "InspectResult": "yeoul.recipes.inspect_attention",
    "server_app": "yeoul.recipes.serve",
    "ServeConfig": "yeoul.recipes.serve",
    "sweep": "yeoul.recipes.sweep.run",
    "TranslateConfig": "yeoul.recipes.translate.config",
    "TranslateResult": "yeoul.recipes.translate.result",
    "translate": "yeoul.recipes.translate.run",
    "SweepConfig": "yeoul.recipes.sweep.config",
    "SweepResult": "yeoul.recipes.sweep.result",
    "evaluate_tasks": "yeoul.recipes.tasks.run",
    "TasksConfig": "yeoul.recipes.tasks.run",
    "TasksResult": "yeoul.recipes.tasks.run",
    "bench": "yeoul.recipes.bench",
    "BenchConfig": "yeoul.recipes.bench",
    "BenchResult": "yeoul.recipes.bench",
    "info": "yeoul.recipes.info.examine",
    "list_runs": "yeoul.recipes.runs",
    "report_runs": "yeoul.recipes.run_report",
    "ModelInfo": "yeoul.recipes.info.examine",
    "demo": "yeoul.recipes.demo.run",
    "DemoConfig": "yeoul.recipes.demo.config",
    "DemoResult": "yeoul.recipes.demo.run",
    "doctor": "yeoul.recipes.doctor:examine",
}
"""Public name -> its module, with `:NAME` where it is called otherwise there."""

__all__ = [
    "BenchConfig",
    "BenchResult",
    "Chat",
    "CompareTokenizersConfig",
    "Decoder",
    "DemoConfig",
    "DemoResult",
    "DiJiangAttention",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "ExportResult",
    "FeatureMapConfig",
    "FinetuneConfig",
    "FinetuneResult",
    "InspectConfig",
    "InspectResult",
    "LinearizeConfig",
    "LinearizeResult",
    "LoraConfig",
    "ModelConfig",
    "ModelInfo",
    "PretrainConfig",
    "PretrainResult",
    "QuantizeConfig",
    "QuantizeResult",
    "SamplingParams",
    "ServeConfig",
    "Speculation",
    "SweepConfig",
    "SweepResult",
    "TasksConfig",
    "TasksResult",
    "Tokenizer",
    "TokenizerComparison",
    "TrainTokenizerConfig",
    "TranslateConfig",
    "TranslateResult",
    "UserError",
    "__version__",
    "bench",
    "compare",
    "compare_tokenizers",
    "demo",
    "doctor",
    "evaluate_model",
    "evaluate_tasks",
    "export",
    "finetune",
    "generate",
    "info",
    "inspect_attention",
    "inspect_tokenizer",
    "linear_attention",
    "linearize",
    "list_runs",
    "load",
    "load_classifier",
    "load_embedder",
    "load_screen",
    "plan_finetune",
    "plan_linearize",
    "plan_pretrain",
    "pretrain",
    "quantize",
    "report_runs",
    "save",
    "server_app",
    "stream",
    "sweep",
    "train_tokenizer",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'yeoul' has no attribute {name!r}")
    import importlib

    module, _, own = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), own or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
