"""From logits to the next token: small pure functions that compose.

Every function takes logits (B, V) and returns new logits (B, V) in which the tokens ruled out are -inf.
`sample` puts them together in the order that transformers and vLLM use: bias, repetition penalty, penalties of what the
answer has, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from yeoul.infer.params import SamplingParams

ROUNDING = 1e-7  # what fp32 logits cannot tell apart in a probability


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes seen tokens less likely: divides positive logits by the penalty, multiplies negative ones.

    CTRL (Keskar et al. 2019, section 4.1) in the form that transformers gave it for negative logits.

    Args:
        logits: (B, V).
        seen: (B, V) bool, True where the token stands in the prompt or in the answer so far.
        penalty: above 1 discourages, below 1 encourages.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def count_penalties(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Makes tokens of the answer less likely: logit - count x frequency - [count > 0] x presence (OpenAI's API).

    Args:
        logits: (B, V).
        counts: (B, V) int, how often the answer so far has each token; the prompt does not count.
        presence: above 0 discourages.
        frequency: above 0 discourages.
    """
    return logits - counts * frequency - (counts > 0) * presence


def biased(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Adds a bias to the logits (B, V) of some ids below V."""
    if not bias:
        return logits
    ids, values = zip(*bias, strict=True)
    index = torch.tensor(ids, device=logits.device)
    return logits.index_add(1, index, logits.new_tensor(values).expand(len(logits), -1))


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divides (B, V) logits by a temperature above 0."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k likeliest tokens of each row of (B, V); of equals at the edge, the lowest ids."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    return _keep(logits, logits.topk(k, dim=-1).values[:, -1:], k)


def _keep(logits: Tensor, edge: Tensor, count: Tensor | int) -> Tensor:
    """Keeps `count` tokens, (B, 1) or a number for all rows; the least of them has the logit `edge`."""
    above, level = logits > edge, logits == edge
    room = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (level & (level.cumsum(-1) <= room))), -math.inf)


def top_p(logits: Tensor, p: float, total: Tensor | None = None) -> Tensor:
    """Keeps the smallest set of tokens of each row of (B, V) whose probability reaches p, at least one token.

    Nucleus sampling (Holtzman et al. 2020). Of equally likely tokens the lower ids come first. "Reaches"
    allows for the rounding of fp32 logits (1e-7): 0.5 + 0.3 reaches 0.8.

    Args:
        logits: (B, V).
        p: 1 keeps all.
        total: (B, 1) fp64 logarithm of the sum of exp(logits), where these are not all that there are.
    """
    if p >= 1:
        return logits
    if total is None:
        total = logits.double().logsumexp(-1, keepdim=True)
    ordered = _descending(logits)
    probability = (ordered.double() - total).exp()
    before = probability.cumsum(-1) - probability  # what the likelier tokens have together
    count = (before < p - ROUNDING).sum(-1, keepdim=True).clamp_min(1)
    return _keep(logits, ordered.gather(-1, count - 1), count)


def _descending(logits: Tensor) -> Tensor:
    """The logits in order; numpy's sort is ten times as fast as torch's on the CPU."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(logits.detach().numpy(), axis=-1)).flip(-1)
    return logits.sort(dim=-1, descending=True).values


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keeps tokens of (B, V) at least `share` as probable as the likeliest (Nguyen et al. 2024)."""
    if share <= 0:
        return logits
    floor = logits.amax(-1, keepdim=True) + (math.log(share) - (0 if share == 1 else ROUNDING))
    return logits.masked_fill(logits < floor, -math.inf)


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws one token a row from softmax(logits): the distribution function's inverse at a uniform number.

    One double from each row's own generator and nothing else, so a row's draws do not depend on its
    neighbours, on the vocabulary or on the device.

    Args:
        logits: (B, V); -inf is never drawn.
        generators: B generators on the CPU.
    Returns:
        (B,) int64.
    """
    uniform = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators])
    reached = logits.double().softmax(-1).cumsum(-1)
    total = reached[:, -1:]
    # strictly below the total, else the search could end behind the last token that has any probability
    target = torch.minimum(uniform.to(logits.device)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(reached, target, right=True).squeeze(-1)


def shape_logits(
    logits: Tensor, params: SamplingParams, seen: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """The logits (B, V) fp32 from which `sample` draws: everything except the draw."""
    logits = _penalised(logits, params, seen, counts)
    if params.temperature == 0:
        return logits
    # a tiny temperature must not overflow: only differences from the largest logit matter
    logits = temperature(logits - logits.amax(-1, keepdim=True), params.temperature)
    logits = top_k(logits, params.top_k)
    logits = top_p(logits, params.top_p)
    return min_p(logits, params.min_p)


def _penalised(logits: Tensor, params: SamplingParams, seen: Tensor | None, counts: Tensor | None) -> Tensor:
    """Logits (B, V) in fp32, with bias and penalties."""
    logits = biased(logits.float(), params.logit_bias)
    if params.repetition_penalty != 1:
        if seen is None:
            raise ValueError("a repetition penalty needs the tokens seen so far")
        logits = repetition_penalty(logits, seen, params.repetition_penalty)
    if counts_tokens(params):
        if counts is None:
            raise ValueError("penalties of what the answer has need its tokens' counts")
        logits = count_penalties(logits, counts, params.presence_penalty, params.frequency_penalty)
    return logits


def counts_tokens(params: SamplingParams) -> bool:
    """Whether `sample` needs counts of the answer's tokens."""
    return params.presence_penalty != 0 or params.frequency_penalty != 0


def _draw_among_few(logits: Tensor, params: SamplingParams, generators: Sequence[torch.Generator]) -> Tensor:
    """`draw` of `shape_logits` of rows (B, V) on the CPU: only tokens that may be kept are looked at one by one.

    With top-k these are the k likeliest. With top-p the tokens below a share of (1 - p) / V have less than 1 - p
    together, so that those above reach p; with min-p the least share is known.
    """
    largest, (B, V), total = logits.amax(-1, keepdim=True), logits.shape, None
    if 0 < params.top_k < V:
        place = V - params.top_k
        few = logits.numpy() >= np.partition(logits.numpy(), place, axis=-1)[:, place : place + 1]
    else:
        weights = (logits - largest).div_(params.temperature).exp_()
        mass = weights.sum(-1, keepdim=True, dtype=torch.float64)
        total = mass.log()
        least = (mass.numpy() * ((1 - params.top_p) / V)).clip(min=params.min_p) * (1 - 1e-6)  # what rounding may hide
        few = weights.numpy() >= least.astype(np.float32)
    if B == 1:
        ids = torch.from_numpy(np.flatnonzero(few))[None]
        rows = logits.gather(1, ids) - largest
    else:
        rows, ids = _side_by_side(logits - largest, few)
    rows = temperature(rows, params.temperature)
    rows = min_p(top_p(top_k(rows, params.top_k), params.top_p, total), params.min_p)
    return ids.gather(1, draw(rows, generators)[:, None])[:, 0]


def _side_by_side(logits: Tensor, few: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of each row of (B, V) those that are chosen, (B, V) bool, in order: their logits and ids, both (B, K).

    Rows with fewer than others end with -inf.
    """
    rows, ids = np.nonzero(few)
    counts = np.bincount(rows, minlength=len(few))
    places = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    chosen = np.full((len(few), counts.max()), -np.inf, np.float32)
    numbers = np.zeros(chosen.shape, np.int64)
    chosen[rows, places], numbers[rows, places] = logits.numpy()[few], ids
    return torch.from_numpy(chosen), torch.from_numpy(numbers)


def sample(
    logits: Tensor,
    params: SamplingParams,
    generators: Sequence[torch.Generator],
    seen: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """The next token of each row.

    Args:
        logits: (B, V), any float type; computed in fp32 (probabilities in fp64).
        params: temperature 0 takes the largest logit (after bias and penalties), whatever the rest says.
        generators: one a row, see `row_generators`; not read at temperature 0.
        seen: (B, V) bool, see `seen_tokens`; needed for a repetition penalty only.
        counts: (B, V) int, of the answer's tokens; needed where `counts_tokens` says so.
    Returns:
        (B,) int64.
    """
    if params.temperature == 0:
        return _likeliest(shape_logits(logits, params, seen, counts))
    cut = 0 < params.top_k < logits.shape[-1] or params.top_p < 1 or params.min_p > 0
    if not cut or logits.device.type != "cpu":
        return draw(shape_logits(logits, params, seen, counts), generators)
    rows = _penalised(logits.detach(), params, seen, counts)
    return _draw_among_few(rows, params, generators)


def sample_rows(
    logits: Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator],
    seen: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """The next token of each row, drawn as that row's own settings say: as `sample` of each row alone.

    Args:
        logits: (B, V), as in `sample`.
        params: one a row; rows with equal settings are drawn together.
        generators: one a row.
        seen: (B, V) bool.
        counts: (B, V) int.
    Returns:
        (B,) int64.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, own in enumerate(params):
        groups.setdefault(shape_of(own), []).append(row)
    if len(groups) == 1:
        return sample(logits, params[0], generators, seen, counts)
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for rows in groups.values():
        index = torch.tensor(rows, device=logits.device)
        of = lambda x: None if x is None else x.index_select(0, index)  # noqa: B023, E731
        drawing = [generators[row] for row in rows]
        tokens[index] = sample(logits.index_select(0, index), params[rows[0]], drawing, of(seen), of(counts))
    return tokens


def _likeliest(logits: Tensor) -> Tensor:
    """(B,) int64: the first of the largest of each row; numpy's search is 20 times as fast as torch's on the CPU."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(logits.detach().numpy().argmax(-1))


def shape_of(params: SamplingParams) -> tuple[object, ...]:
    """What `shape_logits` goes by: rows of equal shapes are drawn together."""
    return (
        params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty,
        params.presence_penalty, params.frequency_penalty, params.logit_bias,
    )  # fmt: skip


def row_generators(seed: int | None, rows: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each row: row i draws with seed + i; without a seed, with fresh entropy."""
    generators = [torch.Generator() for _ in rows]
    for row, generator in zip(rows, generators, strict=True):
        _seed(generator, None if seed is None else seed + row)
    return generators


def own_generators(params: Sequence[SamplingParams]) -> list[torch.Generator]:
    """One CPU generator for each row, seeded as its own settings say."""
    generators = [torch.Generator() for _ in params]
    for own, generator in zip(params, generators, strict=True):
        _seed(generator, own.seed)
    return generators


def _seed(generator: torch.Generator, seed: int | None) -> None:
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)


def seen_tokens(sequences: Sequence[Sequence[int]], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """(B, V) bool: which tokens each of B lists of ids contains."""
    seen = torch.zeros(len(sequences), vocab_size, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        inside = [i for i in set(ids) if i < vocab_size]
        seen[row, torch.tensor(inside, dtype=torch.int64)] = True
    return seen.to(device)
