"""`yeoul generate`: continues texts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading, text_of
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.infer.params import SamplingParams
from yeoul.plain_text import split_lines
from yeoul.units import count, duration, rate, size

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult
    from yeoul.model.config import ModelConfig


@dataclass(frozen=True)
class Config:
    """Continue one text or many.

    The continuation of a single prompt is shown while it is generated, whole characters at a time.
    """

    model: Place
    """Model folder, run folder, adapter folder, or id on the Hugging Face hub."""
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """The beginning of the text; without it, or with "-", standard input is the prompt."""
    _: KW_ONLY
    prompt_file: Path | None = None
    """UTF-8 file with one prompt per line, instead of PROMPT."""
    encoding: str = "utf-8"
    """Encoding of the prompts, such as cp949; a byte-order mark takes precedence."""
    sampling: Annotated[SamplingParams, Parameter(name="*")] = field(default_factory=SamplingParams)
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
    """Number type of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        for flag, value in (("num-samples", self.num_samples), ("batch-size", self.batch_size)):
            if value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("both a prompt and --prompt-file are given", fix="leave one of them out")


def run(config: Config) -> int:
    """Loads the model and prints the continuations."""
    prompts = read_prompts(config)

    import yeoul
    from yeoul.infer import engine

    model, tokenizer = yeoul.load(config.model, device=config.device, dtype=config.dtype, adapter=config.adapter)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot generate text", config.model)
    start = time.perf_counter()
    if len(prompts) == config.num_samples == 1 and not config.json:
        stream = engine.stream(model, tokenizer, prompts[0], **asdict(config.sampling))
        _write(prompts[0] if config.echo else "")
        for piece in stream:
            _write(piece)
        _write("\n")
        assert stream.result is not None
        results = [stream.result]
    else:
        texts = [prompt for prompt in prompts for _ in range(config.num_samples)]
        results = engine.run(model, tokenizer, texts, config.sampling, batch_size=config.batch_size)
        _print_all(texts, results, config)
    if far := beyond_training(model.config, max(r.prompt_tokens + len(r.ids) for r in results)):
        print(far, file=sys.stderr)
    if config.stats:
        print(statistics(results, time.perf_counter() - start), file=sys.stderr)
    return 0


def beyond_training(config: ModelConfig, positions: int) -> str | None:
    """A sentence where linear attention remembers a text longer than those it was trained on, else None."""
    trained = config.linear_context
    if trained is None or positions <= trained:
        return None
    return (
        f"This text has {count(positions, 'token')}, but the model's linear attention was trained on texts of up to "
        f"{trained:,}: beyond that it may remember less than it should."
    )


def read_prompts(config: Config) -> list[str]:
    """The prompt, the lines of --prompt-file, or standard input as one prompt.

    Raises:
        UserError: a file that is missing or empty; text that is not in its encoding.
    """
    reading = Reading(encoding=config.encoding)
    if config.prompt_file is not None:
        try:
            lines = split_lines(text_of(config.prompt_file.read_bytes(), str(config.prompt_file), reading))
        except OSError as error:
            raise UserError(f"the prompts cannot be read: {error.strerror}", config.prompt_file) from None
        if not (prompts := [line for line in lines if line.strip()]):
            raise UserError("the file has no prompt", config.prompt_file, "write one prompt per line")
        return prompts
    if config.prompt is not None and config.prompt != "-":
        return [text_of(config.prompt.encode("utf-8", "surrogateescape"), "PROMPT", reading)]
    if sys.stdin.isatty():
        print("Reading the prompt; end it with Ctrl-D.", file=sys.stderr)
    source = getattr(sys.stdin, "buffer", None)
    text = sys.stdin.read() if source is None else text_of(source.read(), "standard input", reading)
    return [text.removesuffix("\n")]


def _write(text: str) -> None:
    say(text, end="", flush=True)


def _print_all(prompts: Sequence[str], results: Sequence[GenerationResult], config: Config) -> None:
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True), 1):
        if config.json:
            say(json.dumps({"prompt": prompt, **asdict(result)}, ensure_ascii=False))
            continue
        if len(results) > 1:
            print(f"--- {number} of {len(results)} ---")
        say((prompt if config.echo else "") + result.text)


def statistics(results: Sequence[GenerationResult], seconds: float) -> str:
    """One line: tokens read and written, speed of decoding, bytes of the cache, why the text ended."""
    read, written = sum(r.prompt_tokens for r in results), sum(len(r.ids) for r in results)
    speed, ending = f"{rate(written / max(seconds, 1e-9))} in total", ""
    if len(results) == 1:
        (one,) = results
        speed = f"{rate(one.tokens_per_second)} after {duration(one.prefill_seconds)}"
        ending = f", ended by {one.finish_reason}"
    cache = size(max(r.cache_bytes for r in results))
    return f"{count(read, 'token')} read, {written:,} generated, {speed}, cache {cache}{ending}"
