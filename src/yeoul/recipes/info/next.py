"""What can be done with a model, as commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.model.config import ModelConfig
    from yeoul.text.tokenizer import Tokenizer


def next_commands(
    model: str,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    *,
    is_adapter: bool = False,
    is_quantized: bool = False,
) -> list[dict[str, str]]:
    """What Yeoul does with this model: {"verb", "command"}, in the order of work."""
    from yeoul.text.chat import CHAT_TOKENS

    name = shlex.quote(model)
    found = []
    if tokenizer is not None and tokenizer.fits(config.vocab_size):
        found.append(("generate", f'yeoul generate {name} "옛날 옛적에"'))
        if tokenizer.chat_template is not None or all(t in tokenizer.special_tokens for t in CHAT_TOKENS):
            found.append(("chat", f"yeoul chat {name}"))
        out = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", Path(model.partition("@")[0]).expanduser().name) or "model"
        if not is_adapter:
            target = shlex.quote(f"runs/{out}-chat")
            method = " --method lora" if is_quantized else ""
            found.append(("finetune", f"yeoul finetune {name} --data my-dialogs{method} --out {target}"))
        if "softmax" in config.attention and not is_adapter and not is_quantized:
            target = shlex.quote(f"runs/{out}-linear")
            found.append(("linearize", f"yeoul linearize {name} --data builtin:5MB --out {target}"))
        found.append(("evaluate", f"yeoul evaluate {name} --data builtin:1MB"))
    found.append(("bench", f"yeoul bench {name}"))
    if _can_export(config) and not is_quantized:
        found.append(("export", f"yeoul export {name}"))
    return [{"verb": verb, "command": command} for verb, command in found]


def _can_export(config: ModelConfig) -> bool:
    from yeoul.model.gguf_plan import plan

    try:
        plan(config)
    except UserError:
        return False
    return True
