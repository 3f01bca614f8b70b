"""Prompts to answers.

`generate_ids` works on token ids; `run` and `TextStream` on text, with stop strings; `generate` and `stream`
are the thin public faces; a `Session` keeps the cache between the turns of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from yeoul.errors import UserError
from yeoul.infer.generation import PREFILL_CHUNK, FinishReason, Generation, Row, evaluating
from yeoul.infer.next_token import NextToken
from yeoul.infer.params import SamplingParams
from yeoul.infer.stopping import StopMatcher

if TYPE_CHECKING:
    from yeoul.infer.speculation import Speculation
    from yeoul.infer.state_file import KeptState
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

BATCH_SIZE = 32
"""Prompts in flight together in `run`."""
CONTEXT = 16
"""Tokens of the prompt that decide how the first new one reads."""


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """One finished answer.

    Attributes:
        text: the answer, without the prompt, the stop string and special tokens.
        ids: its tokens, without the end-of-text token; with the tokens that made up the stop string.
        finish_reason: "eos", "stop" (a stop string) "length" (max_tokens, or the model's context is full)
            or "cancelled" (by the reader of a stream).
        prompt_tokens: tokens of the prompt.
        seconds: from the start of the batch to the end of this answer; its prefill is in `prefill_seconds`.
        cache_bytes: memory of the cache of the whole batch when this answer ended.
        guessed, right: tokens that were guessed ahead, and how many of them rightly.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    seconds: float
    prefill_seconds: float
    cache_bytes: int
    guessed: int = 0
    right: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding; the first token belongs to the prefill."""
        return max(len(self.ids) - 1, 0) / max(self.seconds - self.prefill_seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nothing of guesses where none were made."""
        return {name: value for name, value in asdict(self).items() if self.guessed or name not in ("guessed", "right")}


def generate_ids(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    eos_ids: Collection[int] = (),
    pad_id: int = 0,
    vocab_size: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continues lists of token ids, all of them as one batch.

    Args:
        model: a decoder, see `Generation`.
        prompts: at least one id each.
        params: `stop` has no meaning here, without text.
        eos_ids: tokens that end a sequence; they are not part of the result.
        pad_id: any valid token.
        vocab_size: draw only ids below it.
        on_token: called with (number of the prompt, id) for every new token, the end-of-text token included.
    Returns:
        the new ids of each prompt.
    """
    generation = Generation(model, prompts, params, eos_ids=eos_ids, pad_id=pad_id, vocab_size=vocab_size)
    with evaluating(model):
        while drawn := generation.step():
            if on_token is not None:
                for row, token in drawn:
                    on_token(row.index, token)
    return [row.ids for row in generation.rows]


class RowText:
    """The text of one answer while it grows: whole characters only, and nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], prompt: Sequence[int]) -> None:
        self.decoder = tokenizer.stream()
        self.matcher = StopMatcher(stops)
        # A text that goes on keeps the space that a tokenizer leaves out where a text begins; it begins at
        # the beginning and behind a special token, which has no bytes.
        read = list(prompt[-CONTEXT:])
        for token in read[max((i + 1 for i, t in enumerate(read) if not tokenizer.token_bytes(t)), default=0) :]:
            self.decoder.push(token)

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that may be shown now."""
        return self.matcher.push(self.decoder.push(token))

    def flush(self) -> str:
        """The rest, at the end; of a character whose last bytes never came, nothing."""
        return self.matcher.push(self.decoder.flush().rstrip("\ufffd")) + self.matcher.flush()


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt, begun as the model's texts are.

    An empty prompt becomes the token that stands before a text.

    Raises:
        UserError: empty, and the tokenizer has no such token.
    """
    ids = tokenizer.framing.prompt(tokenizer.encode(prompt))
    if ids:
        return ids
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return [token]
    raise UserError("the prompt is empty, and the tokenizer has no begin-of-text token", fix="give a prompt")


def end_ids(model: Decoder, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text: by the tokenizer, the end of a chat's turn included, and by the model."""
    return frozenset((*tokenizer.stop_ids, *model.config.end_ids))


def _start(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    params: SamplingParams | Sequence[SamplingParams],
    speculation: Speculation | None,
    **more: Any,
) -> Generation:
    if speculation is not None:
        more |= {"drafter": speculation.drafter(model), "draft_tokens": speculation.tokens}
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    return Generation(
        model, prompts, params, eos_ids=end_ids(model, tokenizer), vocab_size=tokenizer.vocab_size,
        pad_id=min(pad, model.config.vocab_size - 1), **more,
    )  # fmt: skip


def _result(generation: Generation, row: Row, text: str) -> GenerationResult:
    assert row.finish_reason is not None
    return GenerationResult(
        text=text, ids=row.ids, finish_reason=row.finish_reason, prompt_tokens=len(row.prompt),
        seconds=row.seconds, prefill_seconds=generation.prefill_seconds, cache_bytes=row.cache_bytes,
        guessed=generation.guessed, right=generation.right,
    )  # fmt: skip


class TextStream(Iterator[str]):
    """The answer to one prompt, piece by piece; whole characters only.

    Attributes:
        result: the whole answer, once the stream has ended; None before.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self.generation = generation
        self.result: GenerationResult | None = None
        (row,) = generation.rows
        self._text = RowText(tokenizer, row.params.stop, row.prompt)
        self._cancelled = False
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the answer after the token that is being computed; may be called from a signal handler."""
        self._cancelled = True

    def _run(self) -> Iterator[str]:
        generation, text = self.generation, self._text
        (row,) = generation.rows
        with evaluating(generation.model):
            while row.finish_reason is None:
                if self._cancelled:
                    generation.finish(row, "cancelled")
                    break
                generation.step()
                if row.finish_reason == "eos":
                    break
                piece = text.push(row.ids[-1])
                if text.matcher.stopped:
                    generation.finish(row, "stop")
                if piece:
                    yield piece
        if rest := text.flush():
            yield rest
        self.result = _result(generation, row, text.matcher.text)


def _groups(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of similar length, so that little is padding."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) == size or lengths[group[0]] - lengths[index] >= PREFILL_CHUNK):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def run(
    model: Decoder,
    tokenizer: Tokenizer | None,
    prompts: Sequence[str | list[int]],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    batch_size: int = BATCH_SIZE,
    speculation: Speculation | None = None,
) -> list[GenerationResult]:
    """Answers prompts, texts or token ids, in batches: the same answers as one by one, in their order.

    Args:
        params: of all prompts, where prompt i draws with seed + i; or those of each, with its own seed.
        batch_size: prompts in flight together; one where tokens are guessed.
        speculation: guesses tokens ahead, for the same answers; None does not.

    Raises:
        UserError: no tokenizer, an empty prompt, or one longer than the model's context.
    """
    tokenizer = _needed(tokenizer)
    ids = [prompt_ids(tokenizer, p) if isinstance(p, str) else list(p) for p in prompts]
    if not isinstance(params, SamplingParams) and len(params) != len(ids):
        raise ValueError(f"{len(params)} settings for {len(ids)} prompts")
    results: dict[int, GenerationResult] = {}
    next_token = NextToken(model)
    with evaluating(model):
        for group in _groups([len(i) for i in ids], batch_size if speculation is None else 1):
            own = params if isinstance(params, SamplingParams) else [params[i] for i in group]
            generation = _start(
                model, tokenizer, [ids[i] for i in group], own, speculation, rows=group, next_token=next_token
            )
            texts = {row.index: RowText(tokenizer, row.params.stop, row.prompt) for row in generation.rows}
            while drawn := generation.step():
                for row, _ in drawn:
                    text = texts[row.index]
                    if row.finish_reason != "eos":
                        text.push(row.ids[-1])
                    if text.matcher.stopped:
                        generation.finish(row, "stop")
            for row in generation.rows:
                texts[row.index].flush()
                results[row.index] = _result(generation, row, texts[row.index].matcher.text)
    return [results[i] for i in range(len(ids))]


def _needed(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise UserError("the model's folder has no tokenizer", fix="generate from token ids with generate_ids")
    return tokenizer


@overload
def generate(
    model: Decoder, tokenizer: Tokenizer | None, prompt: str, *, speculation: Speculation | None = None, **params: Any
) -> str: ...
@overload
def generate(
    model: Decoder,
    tokenizer: Tokenizer | None,
    prompt: Sequence[str],
    *,
    speculation: Speculation | None = None,
    **params: Any,
) -> list[str]: ...
def generate(
    model: Decoder,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[str],
    *,
    speculation: Speculation | None = None,
    **params: Any,
) -> str | list[str]:
    """Continues a prompt, or each of several: the new text only.

    Args:
        speculation: guesses tokens ahead, for the same text; None does not.
        params: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, ignore_eos; see
            `SamplingParams`.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    results = run(model, tokenizer, prompts, SamplingParams(**params), speculation=speculation)
    texts = [result.text for result in results]
    return texts[0] if isinstance(prompt, str) else texts


def stream(
    model: Decoder,
    tokenizer: Tokenizer | None,
    prompt: str | list[int],
    *,
    speculation: Speculation | None = None,
    state: KeptState | None = None,
    **params: Any,
) -> TextStream:
    """Continues one prompt, text or token ids, piece by piece; joined, they are what `generate` gives.

    Args:
        state: what the model remembers of a text that stands before the prompt (`yeoul.infer.state_file`); it serves
            any number of prompts.
    """
    tokenizer, more = _needed(tokenizer), dict[str, Any]()
    if state is None:
        ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    else:
        ids = [*state.ids, *(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)]
        more = {"cache": state.cache.snapshot(), "cached": len(state.ids)}
        if len(ids) == len(state.ids):
            raise UserError("there is nothing to go on with behind the state", fix="give a prompt")
    return TextStream(_start(model, tokenizer, [ids], SamplingParams(**params), speculation, **more), tokenizer)


class Session:
    """One conversation: keeps the cache of the last answer and reads only what the next prompt adds to it. The model
    stays as it is meanwhile.

    Args:
        state: what the model remembers of a text before the conversation.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, speculation: Speculation | None = None,
        state: KeptState | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.speculation, self.state = model, tokenizer, speculation, state
        self.reused = 0  # ids of the last prompt that were in the cache
        self._last: Generation | None = None
        self._next_token = NextToken(model)

    def stream(self, ids: list[int], params: SamplingParams) -> TextStream:
        """The answer to a whole prompt; the cache serves where the prompt begins with all that is in it."""
        last, self._last = self._last, None  # a cache serves one continuation, also when that fails
        cache, cached = None, []
        if self.state is not None:
            ids = [*self.state.ids, *ids[ids[:1] == [self.tokenizer.bos_id] :]]
        if last is not None and last.rows[0].finish_reason is not None:
            cache, cached = last.cache, last.cached_ids
        switch = self.model.config.rope_switch
        outgrown = switch is not None and len(cached) <= switch < len(ids)
        if cache is None or len(cached) >= len(ids) or ids[: len(cached)] != cached or outgrown:
            cache, cached = None, []
            if self.state is not None:
                cache, cached = self.state.cache.snapshot(), list(self.state.ids)
        self.reused = len(cached)
        self._last = _start(
            self.model, self.tokenizer, [ids], params, self.speculation, cache=cache, cached=len(cached),
            next_token=self._next_token,
        )  # fmt: skip
        return TextStream(self._last, self.tokenizer)
