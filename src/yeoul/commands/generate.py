"""`yeoul generate`: continues texts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.commands.terminal import note, standard_input
from yeoul.config import Place
from yeoul.data.reading import Reading, text_of
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.infer.params import SamplingParams
from yeoul.recipes.drafting import DraftOptions
from yeoul.recipes.states import StateOptions

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult


@dataclass(frozen=True)
class Config:
    """Continue one text or many.

    The continuation of a single prompt is shown while it is generated, whole characters at a time.
    """

    model: Place
    """Model folder, GGUF file, run folder, adapter folder, or id on the Hugging Face hub."""
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """The beginning of the text; without it, or with "-", standard input is the prompt."""
    _: KW_ONLY
    prompt_file: Path | None = None
    """UTF-8 file with one prompt per line, instead of PROMPT."""
    encoding: str = "utf-8"
    """Encoding of the prompts, such as cp949; a byte-order mark takes precedence."""
    sampling: Annotated[SamplingParams, Parameter(name="*")] = field(default_factory=SamplingParams)
    drafting: Annotated[DraftOptions, Parameter(name="*")] = field(default_factory=DraftOptions)
    kept: Annotated[StateOptions, Parameter(name="*")] = field(default_factory=StateOptions)
    num_samples: int = 1
    """Continuations of each prompt."""
    batch_size: int = 32
    """Texts generated at a time."""
    echo: bool = False
    """Print the prompt before its continuation."""
    stats: bool = False
    """Print speed and cache size on standard error."""
    json: bool = False
    """Print one JSON object per line: prompt, text, ids, finish_reason, prompt_tokens, seconds, ..."""
    adapter: Place | None = None
    """LoRA adapter for the model: a folder, or an id on the Hugging Face hub."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        for flag, value in (("num-samples", self.num_samples), ("batch-size", self.batch_size)):
            if value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("both a prompt and --prompt-file are given", fix="leave one of them out")
        self.kept.check(alone=self.prompt_file is None and self.num_samples == 1 and not self.json)


def run(config: Config) -> int:
    """Loads the model and prints the continuations."""
    prompts = _prompts(config)
    import yeoul
    from yeoul.infer import engine
    from yeoul.infer.cost import beyond_training, cost_line

    model, tokenizer = yeoul.load(config.model, device=config.device, dtype=config.dtype, adapter=config.adapter)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot generate text", config.model)
    ahead = config.drafting.open(tokenizer, device=config.device, dtype=config.dtype)
    if config.kept.save(prompts[0], model, tokenizer, note):
        return 0
    state = config.kept.open(model, tokenizer)
    start = time.perf_counter()
    if len(prompts) == config.num_samples == 1 and not config.json:
        stream = engine.stream(model, tokenizer, prompts[0], speculation=ahead, state=state, **asdict(config.sampling))
        for piece in chain([prompts[0]] * config.echo, stream, ["\n"]):
            say(piece, end="", flush=True)
        assert stream.result is not None
        results = [stream.result]
    else:
        texts = [prompt for prompt in prompts for _ in range(config.num_samples)]
        results = engine.run(model, tokenizer, texts, config.sampling, batch_size=config.batch_size, speculation=ahead)
        _print_all(texts, results, as_json=config.json, echo=config.echo)
    if far := beyond_training(model.config, max(r.prompt_tokens + len(r.ids) for r in results)):
        print(far, file=sys.stderr)
    if config.stats:
        print(cost_line(results, time.perf_counter() - start), file=sys.stderr)
    return 0


def _prompts(config: Config) -> list[str]:
    """The prompt, the lines of --prompt-file, or standard input as one prompt."""
    from yeoul.infer.prompts import read_prompts

    reading = Reading(encoding=config.encoding)
    if config.prompt_file is not None:
        return read_prompts(config.prompt_file, reading)
    if config.prompt is not None and config.prompt != "-":
        return [text_of(config.prompt.encode("utf-8", "surrogateescape"), "PROMPT", reading)]
    if sys.stdin.isatty():
        print("Reading the prompt; end it with Ctrl-D.", file=sys.stderr)
    return [standard_input(reading).removesuffix("\n")]


def _print_all(prompts: Sequence[str], results: Sequence[GenerationResult], *, as_json: bool, echo: bool) -> None:
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True), 1):
        if as_json:
            say(json.dumps({"prompt": prompt, **result.as_dict()}, ensure_ascii=False))
            continue
        if len(results) > 1:
            print(f"--- {number} of {len(results)} ---")
        say((prompt if echo else "") + result.text)
