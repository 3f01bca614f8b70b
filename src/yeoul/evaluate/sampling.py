"""What a setting of sampling gives: is the text likely and faithful, and is it varied?

Both sides are measured on the same continuations. Accuracy: how likely the text is, to the model itself and to a second
model; whether facts told in the prompt come back; how often the token is the one that greedy decoding would take.
Diversity: distinct n-grams, self-BLEU, the entropy of what was drawn from, repetition.

Shapes: N scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError
from yeoul.evaluate import korean
from yeoul.evaluate.agreement import common_prefix, distinct, style
from yeoul.evaluate.perplexity import logits_at_once
from yeoul.infer.generation import evaluating
from yeoul.infer.params import SamplingParams
from yeoul.infer.sample import shape_logits

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way of drawing the next token; the meanings are those of `SamplingParams`."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __str__(self) -> str:
        """The setting as the flags of `yeoul generate` say it, what is off left out."""
        if self.temperature == 0:
            return "greedy"
        parts = [f"temperature {self.temperature:g}"]
        parts += [f"top-k {self.top_k}"] if self.top_k else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p {self.min_p:g}"] if self.min_p else []
        return ", ".join(parts)

    def params(self, *, max_tokens: int, seed: int, ignore_eos: bool = False) -> SamplingParams:
        """The settings of a generation."""
        return SamplingParams(**asdict(self), max_tokens=max_tokens, seed=seed, ignore_eos=ignore_eos)


GREEDY, PLAIN = Setting(temperature=0.0), Setting(temperature=1.0)
"""What every sweep measures: always the likeliest token, and the model's own distribution with nothing ruled out."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to be continued; `answer` is a fact told in it that the continuation must begin with, "" for none."""

    text: str
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What was written behind a prompt: `ended` says whether the end-of-text token came."""

    text: str
    ids: list[int]
    ended: bool

    @classmethod
    def of(cls, result: GenerationResult) -> Continuation:
        """The continuation in a finished answer."""
        return cls(text=result.text, ids=list(result.ids), ended=result.finish_reason == "eos")


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """What one setting gave, over all continuations together.

    Attributes:
        tokens: how many were written; `ended`: share of the continuations with an end of their own.
        perplexity: of the continuations under the model itself, nothing ruled out, temperature 1; None without tokens.
        judge_perplexity: under the second model, per token of its own; None where there is none.
        recall: share of the told facts that come back word for word; None where no prompt tells one.
        greedy: share of the tokens that are the likeliest where they stand.
        prefix: mean number of tokens until the first difference from the greedy continuation.
        distinct_1, distinct_2, distinct_3: different n-grams over all n-grams of tokens, all texts together (Li and
            others 2016).
        self_bleu: mean BLEU of each text against all others, 0 to 100; more is less varied (Zhu and others 2018,
            Texygen); None when not measured.
        entropy: mean entropy, in bits, of the distributions that the tokens were drawn from.
        kept: mean number of tokens that temperature, top-k, top-p and min-p left to draw from.
        repetition: mean share of a text's 4-grams that occurred in it before.
        korean: mistakes by the rules of `evaluate.korean`.
    """

    setting: Setting
    tokens: int
    ended: float
    perplexity: float | None
    judge_perplexity: float | None = None
    recall: float | None = None
    greedy: float = 1.0
    prefix: float = 0.0
    distinct_1: float = 1.0
    distinct_2: float = 1.0
    distinct_3: float = 1.0
    self_bleu: float | None = None
    entropy: float = 0.0
    kept: float = 1.0
    repetition: float = 0.0
    korean: korean.KoreanScore = field(default_factory=korean.KoreanScore)

    @property
    def accuracy(self) -> float | None:
        """The perplexity that settings are compared by: the second model's where there is one."""
        return self.judge_perplexity if self.judge_perplexity is not None else self.perplexity

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"korean": self.korean.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SettingScore:
        """What `as_dict` gave."""
        counts = {name: values["korean"][name] for name in asdict(korean.KoreanScore())}
        return cls(**values | {"setting": Setting(**values["setting"]), "korean": korean.KoreanScore(**counts)})


@dataclass(frozen=True)
class Reader:
    """A model that reads continuations."""

    model: Decoder
    tokenizer: Tokenizer
    batch_size: int = 16


def score_setting(
    setting: Setting, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]],
    written: Sequence[Continuation], greedy: Sequence[Continuation], reader: Reader, *,
    judge: Reader | None = None, bleu: bool = True,
) -> SettingScore:  # fmt: skip
    """Score the continuations that one setting gave.

    Args:
        prompts, prompt_ids: of each continuation, in its order.
        greedy: continuations of the same prompts at temperature 0.
        reader: the model that wrote them.
        judge: another model that says how likely they are.
        bleu: also self-BLEU, which needs sacrebleu.
    """
    own = choices(reader, [(ids, w.ids) for ids, w in zip(prompt_ids, written, strict=True)], setting)
    ids = [w.ids for w in written]
    asked = [(p, w) for p, w in zip(prompts, written, strict=True) if p.answer]
    texts = [judged_text(p.text, w) for p, w in zip(prompts, written, strict=True)]
    return SettingScore(
        setting=setting, tokens=own.tokens, ended=statistics.fmean(w.ended for w in written),
        perplexity=_perplexity(own.nats, own.tokens),
        judge_perplexity=None if judge is None else judge_perplexity(judge, prompts, written),
        recall=statistics.fmean(recalls(p, w) for p, w in asked) if asked else None,
        greedy=own.likeliest / own.tokens if own.tokens else 1.0,
        prefix=statistics.fmean(common_prefix(w.ids, g.ids) for w, g in zip(written, greedy, strict=True)),
        distinct_1=distinct(ids, 1), distinct_2=distinct(ids, 2), distinct_3=distinct(ids, 3),
        self_bleu=self_bleu([w.text for w in written]) if bleu else None,
        entropy=own.entropy / own.tokens if own.tokens else 0.0, kept=own.kept / own.tokens if own.tokens else 1.0,
        repetition=style(ids).repetition, korean=korean.judge_all(texts),
    )  # fmt: skip


# -- the model's side


@dataclass
class Choices:
    """Sums over written tokens: negative log-likelihood in nats, likeliest ones, entropy in bits, tokens kept."""

    tokens: int = 0
    nats: float = 0.0
    likeliest: int = 0
    entropy: float = 0.0
    kept: int = 0


@torch.inference_mode()
def choices(reader: Reader, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], setting: Setting) -> Choices:
    """Read (prompt, continuation) ids again, and see what there was to choose from at each token of a continuation."""
    model, vocab_size = reader.model, reader.tokenizer.vocab_size
    params = SamplingParams(**asdict(setting))
    total = Choices()
    for rows, labels in _hidden(reader, [(*pair, len(pair[0])) for pair in pairs]):
        step = logits_at_once(int(model.output_weight.shape[0]))
        for start in range(0, labels.numel(), step):
            logits = model.unembed(rows[start : start + step]).float()  # (N, V)
            own = labels[start : start + step]
            picked = logits.gather(1, own[:, None])[:, 0]
            total.tokens += own.numel()
            total.nats += float((torch.logsumexp(logits, 1) - picked).double().sum())
            allowed = logits[:, :vocab_size]
            total.likeliest += int((allowed.argmax(-1) == own).sum())
            entropy, kept = spread(allowed, params)
            total.entropy += float(entropy.double().sum())
            total.kept += int(kept.sum())
    return total


def spread(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Entropy in bits and number of tokens of the distributions that (N, V) logits are drawn from: (N,) each."""
    if params.temperature == 0:
        return logits.new_zeros(len(logits)), torch.ones(len(logits), dtype=torch.int64, device=logits.device)
    shaped = shape_logits(logits, params)
    log_p = shaped.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1) / math.log(2)
    return entropy.clamp_min(0), torch.isfinite(shaped).sum(-1)


@torch.inference_mode()
def judge_perplexity(judge: Reader, prompts: Sequence[Prompt], written: Sequence[Continuation]) -> float | None:
    """Perplexity of the texts to a model that did not write them, per token of its own; None without tokens.

    Prompt and continuation are encoded as one text; scored is every token from the first that differs from the
    prompt's own encoding. What is longer than the model's context is left out.
    """
    longest = judge.model.config.bounded_context
    rows = []
    for number, (prompt, own) in enumerate(zip(prompts, written, strict=True), 1):
        framing, tokenizer = judge.tokenizer.framing, judge.tokenizer
        before = framing.prompt(tokenizer.encode(prompt.text))
        whole = framing.prompt(tokenizer.encode(prompt.text + own.text))[:longest]
        same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        if longest is not None and len(before) >= longest:
            raise UserError(f"prompt {number} is longer than the context of the second model", "--judge")
        start = max(1, min(same, len(whole)))
        if start < len(whole):
            rows.append((whole[:start], whole[start:], start))
    nats, tokens = 0.0, 0
    for hidden, labels in _hidden(judge, rows):
        step = logits_at_once(int(judge.model.output_weight.shape[0]))
        for first in range(0, labels.numel(), step):
            logits = judge.model.unembed(hidden[first : first + step]).float()
            picked = logits.gather(1, labels[first : first + step, None])[:, 0]
            nats += float((torch.logsumexp(logits, 1) - picked).double().sum())
        tokens += labels.numel()
    return _perplexity(nats, tokens)


def _hidden(
    reader: Reader, rows: Sequence[tuple[Sequence[int], Sequence[int], int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states (N, hidden) and the tokens (N,) that follow them, of rows (before, scored, length of before)."""
    order = sorted((row for row in rows if row[1]), key=lambda row: len(row[0]) + len(row[1]))
    with evaluating(reader.model):
        for first in range(0, len(order), reader.batch_size):
            batch = _padded(order[first : first + reader.batch_size]).to(reader.model.device)
            valid = batch.labels != IGNORE
            yield reader.model.hidden(batch.input_ids)[valid], batch.labels[valid]


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[int], int]]) -> Batch:
    """Rows padded on their right, which nothing sees; labels where they are scored."""
    length = max(len(before) + len(scored) for before, scored, _ in rows) - 1
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    for row, (before, scored, start) in enumerate(rows):
        ids = [*before, *scored]
        input_ids[row, : len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.int64)
        labels[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:], dtype=torch.int64)
    return Batch(input_ids=input_ids, labels=labels)


def _perplexity(nats: float, tokens: int) -> float | None:
    return math.exp(min(nats / tokens, 700.0)) if tokens else None


# -- the text's side


def recalls(prompt: Prompt, written: Continuation) -> bool:
    """Whether a continuation begins with the answer, blanks aside."""
    return written.text.lstrip().startswith(prompt.answer.strip())


def judged_text(prompt: str, written: Continuation) -> str:
    """A continuation with the beginning of its first word, and without the rest of one that was cut off."""
    text = written.text
    if not written.ended and text and not text[-1].isspace():
        text = text[: max(map(text.rfind, " \n")) + 1]
    if text and not text[0].isspace() and not prompt[-1:].isspace():
        text = (prompt.split() or [""])[-1] + text
    return text


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text against all others together, 0 to 100: sacrebleu's, on characters, order 4.

    Characters, because Korean words are long, and a tokenizer for Korean words would have to be installed.

    Raises:
        UserError: sacrebleu is not installed.
    """
    bleu = load_bleu()
    written = [text.strip() for text in texts if text.strip()]
    if len(written) < 2:
        return 100.0
    scores = [bleu.sentence_score(text, written[:i] + written[i + 1 :]).score for i, text in enumerate(written)]
    return statistics.fmean(scores)


def load_bleu() -> Any:
    """sacrebleu's BLEU for `self_bleu`.

    Raises:
        UserError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError(
            "self-BLEU needs the package sacrebleu, which is not installed", None,
            "run `pip install 'yeoul[eval]'`, or leave it out with --no-self-bleu",
        ) from None  # fmt: skip
    return BLEU(tokenize="char", effective_order=True)
