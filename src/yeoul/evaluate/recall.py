"""Does a model still know at the end what it was told at the beginning?

Items are prompts that state facts early and ask for one late, with the answer:
`yeoul.data.builtin.generate_recall` makes them. Two methods: "generate" lets the model continue greedily
and asks whether it says the answer, "rank" asks whether the answer is likelier than the answers to other
questions of its kind. Small models rank long before they can say.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Literal

import torch

from yeoul.errors import UserError
from yeoul.evaluate.continuations import score_continuations
from yeoul.infer.engine import run
from yeoul.infer.params import SamplingParams

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

Method = Literal["rank", "generate"]
Item = tuple[str, str]


RECALL_SEED = 20_240_328
"""Far from the small seeds of the training text, so that the questions are new ones."""


@dataclass(frozen=True, kw_only=True)
class RecallScore:
    """Share of the questions answered right.

    Attributes:
        method: "rank" or "generate".
        accuracy: share of right answers.
        chance: what guessing gives: the mean of 1 / candidates for "rank", 0 for "generate".
        questions: how many were asked; `skipped` did not fit into the context.
        stderr: standard error of the accuracy.
    """

    method: str
    accuracy: float
    chance: float
    questions: int
    skipped: int
    stderr: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def score_recall(
    model: Decoder,
    tokenizer: Tokenizer,
    items: Iterable[Mapping[str, str]],
    *,
    method: Method = "rank",
    candidates: int = 4,
    ask: int | None = None,
    context: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> RecallScore:
    """Ask the items; prompts are not shortened, those that do not fit are counted as skipped.

    Args:
        items: {"prompt", "answer"}; a blank is put between them unless the prompt ends with one.
        candidates: for "rank": answers to choose from, the right one included. The others answer those items
            whose prompts end most alike, so that a colour competes with colours; the same for every model.
        ask: ask only the first so many items; the rest lend their answers as candidates. None asks all.
        context: longest prompt with answer in tokens; None takes the model's own length.
        batch_size: sequences at once.

    Raises:
        UserError: no item fits, or (for "rank") all answers are the same.
    """
    limit = context or model.config.max_position_embeddings
    pool = [(item["prompt"], _joined(item["prompt"], item["answer"])) for item in items]
    asked = pool[:ask]
    fitting = [(prompt, answer) for prompt, answer in asked if len(_ids(tokenizer, prompt + answer)) <= limit]
    if not fitting:
        raise UserError(
            f"none of the {len(asked)} questions fits into {limit} tokens",
            fix="give a longer context or more questions",
        )
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if method == "rank":
                groups = _candidates(fitting, pool, candidates, seed)
                right = _by_rank(model, tokenizer, fitting, groups, batch_size)
                chance = sum(1 / len(group) for group in groups) / len(groups)
            else:
                right, chance = _by_generation(model, tokenizer, fitting, batch_size), 0.0
    finally:
        model.train(was_training)
    accuracy = sum(right) / len(right)
    return RecallScore(
        method=method,
        accuracy=accuracy,
        chance=chance,
        questions=len(right),
        skipped=len(asked) - len(fitting),
        stderr=math.sqrt(accuracy * (1 - accuracy) / len(right)),
    )


def _joined(prompt: str, answer: str) -> str:
    """The answer as it continues the prompt."""
    return answer if prompt[-1:].isspace() else f" {answer}"


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, as the model's texts begin."""
    return tokenizer.framing.prompt(tokenizer.encode(text))


def continuation_logprobs(
    model: Decoder, tokenizer: Tokenizer, pairs: Sequence[Item], *, batch_size: int = 8
) -> list[float]:
    """Log-likelihood in nats of each (prompt, continuation)'s continuation, given the prompt.

    Prompt and continuation are encoded as one text, because a tokenizer may join them; scored is every token
    from the first that differs from the prompt's own encoding.
    """
    encoded = []
    for prompt, continuation in pairs:
        own, whole = _ids(tokenizer, prompt), _ids(tokenizer, prompt + continuation)
        same = len(commonprefix((own, whole)))
        cut = min(max(1, same), len(whole) - 1)
        encoded.append((whole[:cut], whole[cut:]))
    longest = max((len(before) + len(behind) for before, behind in encoded), default=None)
    found = score_continuations(model, encoded, batch_size=batch_size, longest=longest)
    return [likelihood.logprob for likelihood in found]


def _candidates(items: Sequence[Item], pool: Sequence[Item], count: int, seed: int) -> list[list[str]]:
    """For each item its own answer, then up to count - 1 others from the most similar questions of the pool."""
    if count < 2 or len({answer for _, answer in pool}) < 2:
        raise UserError("ranking needs at least two different answers", fix="give more questions or more candidates")
    draw = random.Random(seed)
    groups = []
    for prompt, answer in items:
        others = [(_common_ending(prompt, other), draw.random(), text) for other, text in pool if text != answer]
        likest = dict.fromkeys(text for _, _, text in sorted(others, reverse=True))
        groups.append([answer, *list(likest)[: count - 1]])
    return groups


def _common_ending(one: str, other: str) -> int:
    """How many last characters two texts share."""
    return len(commonprefix((one[::-1], other[::-1])))


def _by_rank(
    model: Decoder, tokenizer: Tokenizer, items: Sequence[Item], groups: Sequence[list[str]], batch_size: int
) -> list[bool]:
    """Whether each item's own answer, the first of its group, is the likeliest one."""
    pairs = [(prompt, c) for (prompt, _), group in zip(items, groups, strict=True) for c in group]
    scores = iter(continuation_logprobs(model, tokenizer, pairs, batch_size=batch_size))
    right = []
    for group in groups:
        values = [next(scores) for _ in group]
        right.append(values[0] > max(values[1:]))
    return right


def _by_generation(model: Decoder, tokenizer: Tokenizer, items: Sequence[Item], batch_size: int) -> list[bool]:
    """Whether each item's greedy continuation begins with the answer, leading blanks aside."""
    longest = max(len(tokenizer.encode(answer)) for _, answer in items) + 2
    params = SamplingParams(max_tokens=longest, temperature=0.0)
    prompts: list[str | list[int]] = [_ids(tokenizer, prompt) for prompt, _ in items]
    results = run(model, tokenizer, prompts, params, batch_size=batch_size)
    return [result.text.lstrip().startswith(answer.strip()) for result, (_, answer) in zip(results, items, strict=True)]
