"""A codebook in closed form: codes among a teacher's keys, and what each query head has to weigh them by.

Keys are compared by what they mean to queries, (k - k')^T C (k - k') with C the second moment of the teacher's queries
around their mean: k-means in that metric makes the error of the scores smallest. Keys count by what the mean query
would pay them. Then the weight of each code is made to agree, for each query head, with what softmax pays to its keys:
one step of iterative proportional fitting over the teacher's own texts. All over what the state will hold: the keys
that have left the window and the exact pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yeoul.adapt.exact_init import LayerInputs, entry_times, scores_of
from yeoul.model.feature_maps.codebook import CodebookFeatureMap
from yeoul.model.linear_attention import LinearAttention

ROUNDS = 15
"""Rounds of k-means."""
MOST_KEYS = 65_536
MOST_QUERIES = 1024
"""Keys of all texts that are clustered, and queries of each text that weights are fitted on."""
LARGEST_WEIGHT = 4.0
"""Logarithm of the most that a key may count, compared with others."""
RIDGE = 1e-4
LEAST_MASS = 1e-3
"""Added to the attention that a code gets of all queries, on both sides."""


@torch.no_grad()
def fit_codebook(layer: LinearAttention, inputs: LayerInputs, seed: int = 0) -> None:
    """Sets the layer's codebook from a teacher's attention on whole texts, in O(T^2).

    Nothing changes where the texts are no longer than what the window and the exact pairs hold.
    """
    book = layer.feature_map
    assert isinstance(book, CodebookFeatureMap)
    (_, H, T, D), G = inputs.q.shape, inputs.k.shape[1]
    R = H // G
    entered = entry_times(layer, inputs)
    first = int(entered.min())
    if first >= T:
        return
    generator = torch.Generator().manual_seed(seed)
    for g in range(G):
        held = entered[:, g] < T  # (B, T)
        keys = inputs.k[:, g][held].float() * book.shrink
        if len(keys) > MOST_KEYS:
            keys = keys[torch.randperm(len(keys), generator=generator)[:MOST_KEYS].to(keys.device)]
        queries = inputs.q[:, g * R : (g + 1) * R, first:].float() * book.shrink
        mean = queries.mean((0, 1, 2))  # w of the map
        _fit_head(book, g, keys, (queries - mean).reshape(-1, D), mean, generator)
    _fit_weights(layer, book, inputs, entered, first, generator)


def _fit_head(
    book: CodebookFeatureMap, g: int, keys: Tensor, queries: Tensor, mean: Tensor, dice: torch.Generator
) -> None:
    """Codes of a key-value head from keys (N, D) and centred queries (n, D)."""
    M = book.features
    centre = keys.mean(0)
    second = queries.T @ queries / len(queries)
    second = second + RIDGE * second.diagonal().mean() * torch.eye(len(second)).to(second)
    values, vectors = torch.linalg.eigh(second)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T  # symmetric
    points = (keys - centre) @ root
    weight = ((keys - centre) @ mean).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).exp()
    codes, members = _k_means(points, weight, M, dice)
    total = weight.new_zeros(M).index_add_(0, members, weight)
    sums = keys.new_zeros(M, keys.shape[1]).index_add_(0, members, keys * weight[:, None])
    inverse = torch.linalg.inv(root)
    means = torch.where((total > 0)[:, None], sums / total.clamp_min(1e-20)[:, None], codes @ inverse + centre)
    assign = codes @ root
    with torch.no_grad():
        R = book.num_heads // book.num_kv_heads
        book.assign[g], book.assign_bias[g] = assign, -assign @ centre - codes.square().sum(-1) / 2
        book.key_direction[g], book.key_bias[g] = mean, means @ mean
        book.directions[g * R : (g + 1) * R], book.read_bias[g * R : (g + 1) * R] = means, 0.0


def _k_means(points: Tensor, weight: Tensor, count: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes (count, D) of weighted points (N, D), and each point's code (N,); fewer points than codes stand twice."""
    few = len(points) <= count
    start = torch.arange(count) % len(points) if few else torch.multinomial(weight.cpu(), count, generator=dice)
    codes = points[start.to(points.device)].clone()
    for round in range(ROUNDS + 1):
        members = torch.cat([_nearest(part, codes) for part in points.split(8192)])
        if round == ROUNDS:
            break
        total = weight.new_zeros(count).index_add_(0, members, weight)
        sums = torch.zeros_like(codes).index_add_(0, members, points * weight[:, None])
        codes = torch.where((total > 0)[:, None], sums / total.clamp_min(1e-20)[:, None], codes)
    return codes, members


def _nearest(points: Tensor, codes: Tensor) -> Tensor:
    return (points @ codes.T - codes.square().sum(-1) / 2).argmax(-1)


def _fit_weights(
    layer: LinearAttention, book: CodebookFeatureMap, inputs: LayerInputs, entered: Tensor, first: int,
    dice: torch.Generator,
) -> None:  # fmt: skip
    """Sets s of each query head and code: the logarithm of what softmax pays to the code, less what the map does."""
    (_, H, T, _), G, M = inputs.q.shape, inputs.k.shape[1], book.features
    R = H // G
    device = inputs.k.device
    wanted, given = (torch.full((H, M), LEAST_MASS, device=device) for _ in range(2))
    begin = 0
    for texts in inputs.chunks():
        entry = entered[begin : begin + len(texts.x)]
        begin += len(texts.x)
        codes = book.codes(texts.k)  # (n, G, T)
        rows = (torch.randperm(T - first, generator=dice)[:MOST_QUERIES] + first).to(device)
        later = torch.arange(T, device=device)[None] > rows[:, None]
        for g in range(G):
            heads, code = slice(g * R, (g + 1) * R), codes[:, g]
            q, k = texts.q[:, heads][:, :, rows], texts.k[:, g]
            scores = scores_of(q, k, layer.scale, layer.softcap)
            total = scores.masked_fill(later, -torch.inf).logsumexp(-1, keepdim=True)
            held = (entry[:, None, g] <= rows[:, None])[:, None]  # (n, 1, rows, T)
            paid = ((scores - total).exp() * held).sum(2)  # (n, R, T)
            of_key = k.float() * book.shrink @ book.key_direction[g] - book.key_bias[g][code]  # (n, T)
            reads = (q.float() * book.shrink) @ book.directions[heads].transpose(1, 2) + book.read_bias[heads, None]
            at = code[:, None, None].expand(*scores.shape)
            ours = ((reads.gather(3, at) + of_key[:, None, None] - total).exp() * held).sum(2)
            flat = code.flatten()
            wanted[heads].index_add_(1, flat, paid.transpose(0, 1).flatten(1))
            given[heads].index_add_(1, flat, ours.transpose(0, 1).flatten(1))
    book.read_bias.add_((wanted / given).log())
