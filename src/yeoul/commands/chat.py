"""`yeoul chat`: a conversation in the terminal."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.commands.conversation import TerminalChat
from yeoul.commands.terminal import note
from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.infer.params import SamplingParams
from yeoul.recipes.drafting import DraftOptions
from yeoul.recipes.screen import ScreenOptions


@dataclass(frozen=True)
class Config:
    """Talk with a model. In the conversation, /help lists the commands."""

    model: Place
    """Model folder, GGUF file, run folder, adapter folder, or id on the Hugging Face hub."""
    _: KW_ONLY
    system: str | None = None
    """System prompt: what the model is told before the conversation."""
    sampling: Annotated[SamplingParams, Parameter(name="*")] = field(default_factory=SamplingParams)
    drafting: Annotated[DraftOptions, Parameter(name="*")] = field(default_factory=DraftOptions)
    """Speculative decoding."""
    adapter: Annotated[tuple[Place, ...], Parameter(consume_multiple=False)] = ()
    """LoRA adapter for the model: a folder, or an id on the Hugging Face hub. The flag can be repeated; the first
    adapter answers until /adapter selects another."""
    state: Path | None = None
    """Talk behind the text whose state is in this file (`yeoul generate --save-state`)."""
    safety: Annotated[ScreenOptions, Parameter(name="*")] = field(default_factory=ScreenOptions)
    """The safety screen."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Loads the model and talks until the user leaves."""
    import yeoul
    from yeoul.recipes.states import open_state

    screen = config.safety.open(config.device)
    model, tokenizer = yeoul.load(config.model, device=config.device, dtype=config.dtype, adapter=config.adapter)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot chat", config.model)
    speculation = config.drafting.open(tokenizer, device=config.device, dtype=config.dtype)
    state = open_state(config.state, model, tokenizer)
    chat = TerminalChat(
        model, tokenizer, config.sampling, config.system, screen=screen, speculation=speculation, state=state
    )
    if chat.tokenizer is not tokenizer:
        note("The model has no chat template and was probably not trained to chat; the default template is used.")
    chat.talk()
    return 0
