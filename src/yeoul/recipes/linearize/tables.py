"""Cost and results of a conversion, as plain text."""

from __future__ import annotations

from typing import Any

from yeoul.evaluate.energy import Energy, total
from yeoul.units import duration


def total_energy(stages: dict[str, Any]) -> Energy:
    """Energy of all stages together."""
    return total(Energy(**stage["energy"]) for stage in stages.values())


def cost_table(stages: dict[str, Any]) -> str:
    """Tokens, time and energy of each stage as plain text."""
    width = max(map(len, [*stages, "total"]))
    lines = [f"{'training':<{width}}  {'tokens':>12}  {'time':>12}  {'tokens/s':>9}  {'energy':>15}"]
    rows = [(name, s["tokens"], s["seconds"], Energy(**s["energy"])) for name, s in stages.items()]
    whole = total_energy(stages)
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows), whole))
    for name, tokens, seconds, energy in rows:
        speed = tokens / seconds if seconds else 0.0
        lines.append(f"{name:<{width}}  {tokens:>12,}  {duration(seconds):>12}  {speed:>9,.0f}  {energy.amount:>15}")
    return "\n".join([*lines, f"Energy, validations and checkpoints included: {whole}."])


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores as plain text, with the loss against the first row."""
    width = max(len(name) for name in scores)
    first = next(iter(scores.values()))["loss"]
    lines = [f"{'model':<{width}}  {'loss':>8}  {'perplexity':>10}  {'bits/byte':>9}  {'against teacher':>15}"]
    for name, s in scores.items():
        bits = "-" if s["bits_per_byte"] is None else f"{s['bits_per_byte']:.4f}"
        lines.append(
            f"{name:<{width}}  {s['loss']:>8.4f}  {s['perplexity']:>10.3f}  {bits:>9}  {s['loss'] - first:>+15.4f}"
        )
    return "\n".join(lines)
