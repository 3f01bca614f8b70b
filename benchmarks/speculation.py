"""Tokens guessed from the text itself and by a draft model, verified together: how much sooner is the same text there?

    python benchmarks/speculation.py gemma-3-270m --reviews reviews --out docs/benchmarks/speculation.json

Two kinds of text: "reviews", the reviews of a film joined, which the model continues, and "quote", a review that it is
to write out once more, after three that have been. Each prompt is continued greedily without guesses and with them, in
turns; the ids must be the same where no two logits are equal. Medians of --repeats over --prompts prompts each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import yeoul
from yeoul import runtime
from yeoul.data.documents import read_documents
from yeoul.infer.engine import run
from yeoul.infer.params import SamplingParams
from yeoul.infer.speculation import Speculation


def prompts_of(reviews: Path, number: int, length: int) -> dict[str, list[str]]:
    """By kind of text; of `length` characters."""
    films = read_documents([str(reviews / "test.tsv.xz")], text_column="document", join_by="movie_id")
    long = [text for text in films if len(text) > 2 * length][:number]
    quoted = []
    for text in long:
        own = [line for line in text.split("\n") if 40 <= len(line) <= 200][:4]
        quoted.append("".join(f"원문: {line}\n옮김: {line}\n\n" for line in own[:3]) + f"원문: {own[3]}\n옮김:")
    return {"reviews": [text[:length] for text in long], "quote": quoted}


def measured(
    model: Any, tokenizer: Any, prompt: str, ways: dict[str, Speculation | None], options: Any
) -> dict[str, Any]:
    """Tokens per second of each way, behind the prompt, in turns."""
    params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Any] = {}
    for _ in range(options.repeats):
        for way, speculation in ways.items():
            (found[way],) = run(model, tokenizer, [prompt], params, speculation=speculation)
            rates[way].append(found[way].tokens_per_second)
    plain = found["plain"].ids
    return {
        way: {
            "rate": statistics.median(rates[way]), "same": result.ids == plain, "guessed": result.guessed,
            "right": result.right,
        } for way, result in found.items()
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="softmax or linearized")
    parser.add_argument("--draft-model", default=None)
    parser.add_argument("--reviews", type=Path, required=True, help="folder with test.tsv.xz")
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--characters", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    runtime.set_threads()
    ways: dict[str, Speculation | None] = {"plain": None, "lookup": Speculation(tokens=options.draft_tokens)}
    if options.draft_model is not None:
        ways["draft model"] = Speculation(tokens=options.draft_tokens, model=yeoul.load(options.draft_model)[0])
    prompts = prompts_of(options.reviews, options.prompts, options.characters)
    rows = []
    print(f"{runtime.cpu_name()}, {torch.get_num_threads()} threads")
    for name in options.models:
        model, tokenizer = yeoul.load(name)
        for kind, texts in prompts.items():
            each = [measured(model, tokenizer, text, ways, options) for text in texts]
            for way in ways:
                own = [row[way] for row in each]
                ratios = [row[way]["rate"] / row["plain"]["rate"] for row in each]
                guessed, right = sum(row["guessed"] for row in own), sum(row["right"] for row in own)
                rate = statistics.median(row["rate"] for row in own)
                rows.append({
                    "model": Path(name).name, "text": kind, "way": way, "rate": rate,
                    "ratio": statistics.median(ratios), "ratios": ratios, "guessed": guessed, "right": right,
                    "same": sum(row["same"] for row in own), "prompts": len(own),
                })  # fmt: skip
                last = rows[-1]
                print(f"{last['model']:20}{kind:10}{way:14}{last['rate']:>8.1f} tokens/s{last['ratio']:>7.2f} × "
                      f"({min(ratios):.2f}–{max(ratios):.2f}), right {right} of {guessed}, "
                      f"same {last['same']} of {last['prompts']}", flush=True)  # fmt: skip
    if options.out is not None:
        record = {
            "torch": torch.__version__,
            "cpu": runtime.cpu_name(),
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
