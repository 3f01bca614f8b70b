"""How well do untrained features estimate softmax attention, and does what DiJiang's paper claims of them hold?

    python benchmarks/approximation.py --model runs/small \
        --out docs/benchmarks/approximation.json --plot docs/benchmarks/approximation.svg

Queries and keys are Gaussian of several norms, and with `--model` (a run of `yeoul pretrain`) those of its heads on
its validation text. Every sample meets its own draw of the features. Errors, medians and quartiles over samples:

- kernel: RMS over causal pairs of (estimate - exp(q.k / sqrt(d))) / row's sum, over the RMS of the exact ones likewise;
- output: RMS of the difference of the causal attention outputs over the RMS of the exact ones;
- ratios of each to the same error of independent Monte Carlo with as many features, sample by sample.

Needs matplotlib (for --plot) and scipy (for weights that stay positive).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import yeoul
from yeoul import runtime
from yeoul.data.shards import TokenShards
from yeoul.model.attention import SoftmaxAttention
from yeoul.model.config import FeatureMapConfig
from yeoul.model.feature_maps.base import FeatureMap, make_feature_map
from yeoul.recipes.token_data import held_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXP = dict(kernel="exp", pairs=False, learn=("weights",))
MAPS: dict[str, dict[str, Any]] = {
    "Monte Carlo, independent (performer)": dict(EXP, directions="random", sequence="random"),
    "Monte Carlo, orthogonal (performer)": dict(EXP, directions="orthogonal", sequence="random"),
    "Monte Carlo, orthogonal, pairs (performer)": dict(EXP, directions="orthogonal", sequence="random", pairs=True),
    "stratified radii, independent (pff)": dict(EXP, directions="random", sequence="stratified"),
    "Sobol radii, independent (pff)": dict(EXP, directions="random", sequence="sobol"),
    "Sobol radii, orthogonal": dict(EXP, directions="orthogonal", sequence="sobol"),
    "random radii, DCT": dict(EXP, sequence="random"),
    "Sobol radii, DCT": dict(EXP, sequence="sobol"),
    "Sobol radii, orthogonal, pairs": dict(EXP, directions="orthogonal", sequence="sobol", pairs=True),
    "Sobol radii, DCT, pairs (dijiang, exp)": dict(EXP, sequence="sobol", pairs=True),
    "Sobol in all dimensions": dict(EXP, directions="random", sequence="sobol"),
    "Sobol radii, DCT, no |x|^2 (dcf)": dict(name="dcf"),
    "dijiang, softmax": dict(),
    "dijiang-code": dict(name="dijiang-code"),
    "hedgehog, untrained": dict(name="hedgehog"),
    "elu": dict(name="elu"),
}
"""Independent directions with random chi radii are Gaussian vectors: Performer's features without orthogonality."""
WEIGHTED = ("Sobol radii, independent (pff)", "Sobol radii, DCT", "Sobol radii, DCT, pairs (dijiang, exp)")
RATES = ("Monte Carlo, independent (performer)", "Monte Carlo, orthogonal (performer)",
         "Sobol radii, independent (pff)", "Sobol radii, orthogonal", "Sobol radii, DCT",
         "Sobol radii, orthogonal, pairs", "Sobol in all dimensions")  # fmt: skip
BASE = RATES[0]
MULTIPLES = (0.5, 1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Attention inputs, each (S, n, d) fp64: S samples. `fit`: queries and keys to fit weights to, (S, R, n, d)."""

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    fit: tuple[Tensor, Tensor]

    def facts(self) -> dict[str, float]:
        """What makes it hard: the relative variance of one positive feature's estimate is exp(|q' + k'|^2) - 1."""
        shrink = self.q.shape[-1] ** -0.25
        together = ((self.q + self.k.flip(1)) * shrink).square().sum(-1)
        weights = exact(self.q, self.k)[1]
        effective = (1 / weights.square().sum(-1))[:, 1:].median()
        return {"squared_norm_of_sum": together.median().item(), "keys_attended": effective.item()}


def gaussian(d: int, sigma: float, samples: int, length: int) -> Sample:
    """Independent normal entries of standard deviation `sigma`."""
    generator = torch.Generator().manual_seed(round(1000 * sigma) + d)
    draw = lambda: torch.randn(samples, length, d, dtype=torch.float64, generator=generator)  # noqa: E731
    q, k, *others = (sigma * draw() for _ in range(10))
    fit = torch.stack(others[:4], 1), torch.stack(others[4:], 1)
    return Sample(name=f"Gaussian, sigma {sigma:g}", q=q, k=k, v=draw(), fit=fit)


@torch.no_grad()
def of_model(folder: Path, length: int, texts: int) -> Sample:
    """Queries (the first of each group), keys and values of every softmax head on `texts` pieces of validation text."""
    model, tokenizer = yeoul.load(str(folder), dtype="float32")
    begin = tokenizer.framing.begin if tokenizer is not None else ()
    apart = folder / "val_data" / "train"
    val = TokenShards.open(apart if apart.exists() else folder / "data" / "val", begin)
    ids = []
    for batch in held_out(val, batch_size=1, context=length, max_tokens=10**9)():
        if batch.input_ids.shape[1] == length:
            ids.append(batch.input_ids)
        if len(ids) == 2 * texts:
            break
    rows = torch.cat(ids)
    walk, found = model.walk(rows), []
    for block in walk:
        attention = block.self_attn
        if isinstance(attention, SoftmaxAttention):
            q, k, v = attention.project(block.attention_input(walk.hidden), walk.context)
            groups = attention.num_heads // attention.num_kv_heads
            found.append([y.transpose(0, 1).double() for y in (q[:, ::groups], k, v)])  # (G, texts, n, d)
    q, k, v = (torch.cat(parts) for parts in zip(*found, strict=True))
    half = rows.shape[0] // 2
    first = [y[:, :half].flatten(0, 1) for y in (q, k, v)]
    fit = tuple(y[:, half:].repeat_interleave(half, 0) for y in (q, k))  # the other texts of the same head
    return Sample(name="trained model", q=first[0], k=first[1], v=first[2], fit=fit)


def exact(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """exp(q.k / sqrt(d)) over the sum of its causal row, (S, n, n), and the same causal: softmax attention."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    row = scores.masked_fill(future, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.exp(scores - row), torch.exp(scores - row).tril()


def feature_map(name: str, d: int, m: int, samples: int) -> FeatureMap:
    """One independent draw for each sample, as the heads of one map."""
    made = make_feature_map(d, samples, FeatureMapConfig(features=m, **MAPS[name]))
    if name == "Sobol in all dimensions":
        with torch.no_grad():
            made.frequencies.fill_(1.0)
            for g in range(samples):
                engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=g)
                points = engine.draw(m, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
                made.directions[g] = torch.special.ndtri(points).T
    return made


def log_features(made: FeatureMap, x: Tensor) -> Tensor:
    """(S, n, d) to (S, n, m)."""
    with torch.no_grad():
        return made.grouped(x[None])[0]


def estimate(logs_q: Tensor, logs_k: Tensor, weights: Tensor | None = None) -> Tensor:
    """log of sum_i w_i phi_i(q) phi_i(k), (S, n, n): factors of rows and columns are taken out and put back."""
    top_q, top_k = logs_q.amax(-1, keepdim=True), logs_k.amax(-1, keepdim=True)
    a, b = torch.exp(logs_q - top_q), torch.exp(logs_k - top_k)
    if weights is not None:
        a = a * weights[:, None]
    return (a @ b.transpose(-1, -2)).clamp_min(1e-300).log() + top_q + top_k.transpose(-1, -2)


def errors(sample: Sample, logs: Tensor) -> dict[str, Tensor]:
    """Kernel and output error of each sample, (S,); `logs` (S, n, n) as from `estimate`."""
    kernel, attention = exact(sample.q, sample.k)
    scores = sample.q @ sample.k.transpose(-1, -2) / math.sqrt(sample.q.shape[-1])
    estimated = kernel * torch.exp((logs - scores).clamp_max(300))
    future = torch.ones(logs.shape[-2:], dtype=torch.bool).triu(1)
    mixed = torch.softmax(logs.masked_fill(future, -torch.inf), -1)
    wanted, given = attention @ sample.v, mixed @ sample.v
    return {"kernel": _ratio((estimated - kernel).tril(), attention), "output": _ratio(given - wanted, wanted)}


def _ratio(difference: Tensor, reference: Tensor) -> Tensor:
    return (difference.square().sum((-1, -2)) / reference.square().sum((-1, -2))).sqrt()


def quartiles(values: Tensor) -> list[float]:
    """[lower quartile, median, upper quartile], to four digits."""
    found = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
    return [float(f"{value:.4g}") for value in found]


def compare(sample: Sample, multiples: tuple[float, ...], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """A row for each map and number of features that it can have."""
    samples, _, d = sample.q.shape
    base: dict[int, dict[str, Tensor]] = {}
    for name in names:
        for multiple in multiples:
            m = int(multiple * d)
            if (name == "elu" and m != d) or (name.startswith("hedgehog") and m > 2 * d):
                continue
            made = feature_map(name, d, m, samples)
            found = errors(sample, estimate(log_features(made, sample.q), log_features(made, sample.k)))
            estimates = made.config.kernel == "exp"
            base.setdefault(m, found)  # the first map is `BASE`
            found |= {f"{key} ratio": value / base[m][key] for key, value in found.items()}
            row = {key: quartiles(value) for key, value in found.items() if "output" in key or estimates}
            yield {"sample": sample.name, "map": name, "m": m, "of_d": multiple, **row}
    even = torch.zeros_like(sample.q @ sample.k.transpose(-1, -2))
    yield {"sample": sample.name, "map": "all keys alike", "output": quartiles(errors(sample, even)["output"])}


def weighted(sample: Sample, multiples: tuple[float, ...], samples: int) -> Iterator[dict[str, Any]]:
    """Weights w_i of phi_i(q) phi_i(k) by least squares on pairs of `fit`, judged there and on the sample itself.

    "least squares" may be negative; "positive" (non-negative least squares) is what a feature map can hold. Ratios are
    to equal weights, sample by sample.
    """
    d = sample.q.shape[-1]
    picked = torch.arange(samples) * len(sample.q) // samples
    q, k, v, fit_q, fit_k = (y[picked] for y in (sample.q, sample.k, sample.v, *sample.fit))
    part = Sample(name=sample.name, q=q, k=k, v=v, fit=(fit_q, fit_k))
    for name in WEIGHTED:
        for multiple in multiples:
            m = int(multiple * d)
            made = feature_map(name, d, m, len(part.q))
            weights, calibration = fitted(made, *part.fit)
            logs = log_features(made, part.q), log_features(made, part.k)
            judged = {kind: errors(part, estimate(*logs, values)) for kind, values in weights.items()}
            for kind, found in judged.items():
                row = {key: quartiles(value) for key, value in found.items()}
                row |= {f"{key} ratio": quartiles(value / judged["equal"][key]) for key, value in found.items()}
                row["calibration"] = quartiles(calibration[kind])
                yield {"sample": part.name, "map": name, "m": m, "of_d": multiple, "weights": kind, **row}


def fitted(made: FeatureMap, q: Tensor, k: Tensor, pairs: int = 8192) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by kind, (S, m), in units of the equal ones, and their kernel error on the pairs they were fitted to.

    q and k are (S, R, n, d): R sequences for each sample, of which `pairs` causal pairs are drawn.
    """
    from scipy.optimize import nnls

    S, R, n, _ = q.shape
    generator = torch.Generator().manual_seed(1)
    r, i, j = (torch.randint(0, high, (pairs,), generator=generator) for high in (R, n, n))
    i, j = torch.maximum(i, j), torch.minimum(i, j)
    target = exact(q.flatten(0, 1), k.flatten(0, 1))[0].view(S, R, n, n)[:, r, i, j]  # (S, P)
    scores = (q[:, r, i] * k[:, r, j]).sum(-1) / math.sqrt(q.shape[-1])
    row = scores - target.log()  # log of the row's sum
    products = log_features(made, q[:, r, i]) + log_features(made, k[:, r, j]) - row[..., None]
    weights: dict[str, list[Tensor]] = {"equal": [], "positive": [], "least squares": []}
    for columns, wanted in zip(products.exp(), target, strict=True):
        size = columns.square().mean(0).sqrt()
        basis, triangle = torch.linalg.qr(columns / size)
        right = basis.T @ wanted
        weights["equal"].append(torch.ones_like(size))
        weights["positive"].append(torch.from_numpy(nnls(triangle.numpy(), right.numpy())[0]) / size)
        weights["least squares"].append(torch.linalg.lstsq(triangle, right[:, None]).solution[:, 0] / size)
    stacked = {kind: torch.stack(values) for kind, values in weights.items()}
    calibration = {
        kind: ((products.exp() @ values[..., None])[..., 0] - target).norm(dim=-1) / target.norm(dim=-1)
        for kind, values in stacked.items()
    }
    return stacked, calibration


def slope(rows: list[dict[str, Any]], error: str) -> float:
    """Exponent b of error ~ m^b through the medians: -0.5 is Monte Carlo's, -1 that of ideal quasi-Monte Carlo."""
    x, y = (torch.tensor([math.log(value(row)) for row in rows]) for value in (
        lambda row: row["m"], lambda row: row[error][1]))  # fmt: skip
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def table(rows: list[dict[str, Any]], error: str, multiples: tuple[float, ...]) -> str:
    """Medians (quartiles) of one sample, a line a map and a column a number of features."""
    lines = [f"{'':<54}" + "".join(f"{f'm = {multiple:g} d':>24}" for multiple in multiples) + f"{'slope':>8}"]
    for name in dict.fromkeys((row["map"], row.get("weights", "")) for row in rows if error in row):
        own = {row.get("of_d"): row for row in rows if (row["map"], row.get("weights", "")) == name and error in row}
        cells = "".join(
            f"{'' if row is None else '{1:.3g} ({0:.2g}-{2:.2g})'.format(*row[error]):>24}"
            for row in (own.get(multiple, own.get(None)) for multiple in multiples)
        )
        exponent = f"{slope(list(own.values()), error):>8.2f}" if len(own) > 2 else ""
        lines.append(f"{', '.join(filter(None, name)):<54}{cells}{exponent}")
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> str:
    """Left: how the kernel's error falls on easy Gaussians. Right: output errors on the hardest sample of the run."""
    from yeoul.report.plots import INK, _end_labels, _svg

    colours = ("#d55e00", "#0080c8", "#009e73", "#cc79a7", "#b8860b", "#56a4d9", "#7a5195")

    def panel(axes: Any, rows: list[dict[str, Any]], error: str, names: dict[str, str]) -> None:
        ends = []
        for colour, (name, label) in zip(colours, names.items(), strict=False):
            own = [row for row in rows if row["map"] == name and error in row]
            x, values = [row["m"] for row in own], list(zip(*(row[error] for row in own), strict=True))
            axes.plot(x, values[1], "o-", color=colour, markersize=4)
            ends.append((x[-1], values[1][-1], label, colour))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log" if error == "kernel" else "linear")
        ticks = sorted({row["m"] for row in rows if "m" in row})
        axes.set_xticks(ticks[:: 1 + len(ticks) // 6], [f"{m:,}" for m in ticks[:: 1 + len(ticks) // 6]])
        axes.minorticks_off()
        axes.set_xlabel("features m")
        axes.figure.canvas.draw()
        _end_labels(axes, ends)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        rates = result["rates"]
        panel(left, rates, "kernel", {
            RATES[0]: "Monte Carlo", RATES[2]: "Sobol radii (PFF)", RATES[1]: "orthogonal",
            RATES[4]: "DCT, Sobol radii", RATES[5]: "orthogonal, pairs",
            RATES[6]: "Sobol, all dimensions"})  # fmt: skip
        first = next(row for row in rates if row["map"] == RATES[0])
        x = sorted({row["m"] for row in rates})
        for power, word in ((-0.5, "1/√m"), (-1.0, "1/m")):
            y = [first["kernel"][1] * (m / x[0]) ** power for m in x]
            left.plot(x, y, ":", color=INK, linewidth=1)
            left.annotate(word, (x[-2], y[-2]), xytext=(-30, -14), textcoords="offset points", color=INK, fontsize=8)
        left.set_title(f"error of the kernel, {rates[0]['sample']}")
        name = result["samples"][-1]["name"]
        rows = [row for row in result["rows"] if row["sample"] == name]
        panel(right, rows, "output", {
            "Monte Carlo, independent (performer)": "Performer, independent", "Sobol radii, independent (pff)": "PFF",
            "Sobol radii, DCT, no |x|^2 (dcf)": "DCF", "Sobol radii, DCT, pairs (dijiang, exp)": "dijiang, exp",
            "dijiang, softmax": "dijiang, softmax", "dijiang-code": "authors' code",
            "hedgehog, untrained": "Hedgehog"})  # fmt: skip
        even = next(row for row in rows if row["map"] == "all keys alike")["output"][1]
        right.axhline(even, linestyle=":", color=INK, linewidth=1)
        right.annotate("all keys alike", (0.02, even), xycoords=("axes fraction", "data"), xytext=(0, 4),
                       textcoords="offset points", color=INK, fontsize=8)  # fmt: skip
        right.set_title(f"error of the output, {name}")

    return _svg("approximation", (9.6, 4.0), draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="run of `yeoul pretrain` with softmax layers")
    parser.add_argument("--head-dim", type=int, default=64, help="of the Gaussian samples")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--samples", type=int, default=24, help="Gaussian samples, each with its own draw")
    parser.add_argument("--length", type=int, default=128, help="positions of a sample")
    parser.add_argument("--texts", type=int, default=4, help="pieces of text for each head of the model")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    parser.add_argument("--plot", type=Path, default=None, help="file for the SVG")
    arguments = parser.parse_args()

    runtime.set_threads()
    samples = [gaussian(arguments.head_dim, sigma, arguments.samples, arguments.length) for sigma in arguments.sigmas]
    if arguments.model:
        samples.append(of_model(arguments.model, arguments.length, arguments.texts))
    print(f"{runtime.cpu_name()}, torch {torch.__version__}, fp64")
    rows, weights = [], []
    for sample in samples:
        facts = sample.facts()
        S, n, d = sample.q.shape
        words = f"median |q' + k'|^2 {facts['squared_norm_of_sum']:.2f}, keys attended {facts['keys_attended']:.1f}"
        print(f"\n{sample.name}: {S} samples, d = {d}, n = {n}; {words}")
        own = list(compare(sample, MULTIPLES, tuple(MAPS)))
        for error in ("kernel", "kernel ratio", "output", "output ratio"):
            print(f"\n{sample.name}: {error}\n{table(own, error, MULTIPLES)}", flush=True)
        rows += own
    for sample in samples[:: len(samples) - 1] if len(samples) > 1 else samples:
        own = list(weighted(sample, MULTIPLES[:4], 8))
        for error, words in {
            "calibration": "kernel, on the pairs of the fit",
            "kernel": "kernel, on others",
            "kernel ratio": "kernel, on others, over that of equal weights",
            "output": "output, on others",
            "output ratio": "output, on others, over that of equal weights",
        }.items():
            print(f"\n{sample.name}, weights: {words}\n{table(own, error, MULTIPLES[:4])}", flush=True)
        weights += own
    rates = list(compare(samples[0], (*MULTIPLES, 16, 32), RATES))[:-1]
    for error in ("kernel", "kernel ratio"):
        print(f"\n{samples[0].name}, more features: {error}\n{table(rates, error, (*MULTIPLES, 16, 32))}")
    result = {
        "machine": runtime.machine(),
        "samples": [{"name": s.name, "shape": list(s.q.shape), **s.facts()} for s in samples],
        "rows": rows, "weights": weights, "rates": rates,
    }  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(result, default=str).replace("}, {", "},\n{") + "\n", encoding="utf-8")
    if arguments.plot:
        arguments.plot.write_text(plot(result), encoding="utf-8")


if __name__ == "__main__":
    main()
