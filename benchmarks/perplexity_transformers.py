"""Perplexity of a published model here and in transformers, on the same chunks of text.

    python benchmarks/perplexity_transformers.py --model MODEL --data reviews.tsv.xz --text-column document \\
        --join-by movie_id --tokens 4096 --json docs/benchmarks/perplexity.json

The chunks of transformers are cut here, from what its own tokenizer makes of the documents: the tokens that begin a
text (where the tokenizer has some), then so much of the documents, each with its end token and, behind that, the
beginning of the next. The tokens of text that are inputs and those that begin a text fill the context together. Every
token of text is scored once, begin tokens are not. "without it" is the same text without begin tokens, for models
that have one. What Yeoul scores is what `yeoul evaluate` scores.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

import yeoul
from yeoul import runtime
from yeoul.data.documents import read_documents
from yeoul.evaluate.perplexity import score
from yeoul.recipes.token_data import held_out, token_shards

Chunk = tuple[list[int], list[bool]]
"""Ids, and which of them are scored."""


def chunks(tokenizer: Any, documents: Iterator[str], context: int, tokens: int, begin: list[int]) -> list[Chunk]:
    """Chunks of transformers' tokens, of at most `context` inputs; the last one's end is where `tokens` are scored."""
    bound = [tokenizer.eos_token_id]
    stream: list[tuple[int, bool]] = []
    for document in documents:
        plain = tokenizer(document, add_special_tokens=False)["input_ids"]
        stream += [*((token, False) for token in begin), *((token, True) for token in [*plain, *bound])]
        if len(stream) > 2 * tokens + context:
            break
    found, place, left = [], 0, tokens
    size = context + 1 - len(begin)
    if not begin:  # the first token has nothing before it; a chunk's last label is the next one's first input
        while left > 0 and place + 1 < len(stream):
            part = stream[place : place + min(size, left + 1)]
            found.append(([token for token, _ in part], [False, *(scored for _, scored in part[1:])]))
            place, left = place + len(part) - 1, left - len(part) + 1
        return found
    while left > 0 and place < len(stream):
        while not stream[place][1]:
            place += 1
        part = stream[place : place + min(size, left)]
        found.append(([*begin, *(token for token, _ in part)], [*(False for _ in begin), *(s for _, s in part)]))
        place, left = place + len(part), left - len(part)
    return found


@torch.inference_mode()
def theirs(model: Any, found: list[Chunk]) -> tuple[float, int]:
    """Mean loss of transformers, and the tokens scored."""
    total, count = 0.0, 0
    for ids, scored in found:
        row = torch.tensor([ids[:-1]])
        hidden = model.base_model(input_ids=row).last_hidden_state[0]
        for start in range(0, len(ids) - 1, 128):  # not all logits at once
            part = slice(start, start + 128)
            labels, wanted = torch.tensor(ids[1:][part]), torch.tensor(scored[1:][part])
            logits = model.lm_head(hidden[part]).float()
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
            total, count = total + float(losses[wanted].sum()), count + int(wanted.sum())
    return total / count, count


def ours(
    folder: str, arguments: argparse.Namespace, dtype: torch.dtype, weights: torch.dtype
) -> tuple[float, int, bool]:
    """Mean loss as `yeoul evaluate` has it, the tokens scored, and whether a begin token stands before each row."""
    model, tokenizer = yeoul.load(folder, device="cpu", dtype=weights)
    assert tokenizer is not None
    with tempfile.TemporaryDirectory() as place:
        shards, _ = token_shards(
            arguments.data, Path(place) / "data", tokenizer,
            text_column=arguments.text_column, join_by=arguments.join_by,
        )  # fmt: skip
        batches = held_out(shards, batch_size=2, context=arguments.context, max_tokens=arguments.tokens)
        found = score(model, batches(), None, dtype=dtype)
    return found.loss, found.tokens, bool(tokenizer.framing.begin)


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--data", required=True, help="text, as for yeoul evaluate --data")
    parser.add_argument("--text-column")
    parser.add_argument("--join-by")
    parser.add_argument("--context", type=int, default=512, help="inputs of a chunk, the begin token among them")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens to score")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    runtime.set_threads()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    begin = tokenizer("")["input_ids"]
    documents = lambda: islice(  # noqa: E731
        read_documents(arguments.data, text_column=arguments.text_column, join_by=arguments.join_by), 100_000
    )
    cut = {True: chunks(tokenizer, documents(), arguments.context, arguments.tokens, begin)}
    if begin:
        cut[False] = chunks(tokenizer, documents(), arguments.context, arguments.tokens, [])
    print(f"{runtime.cpu_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{arguments.model}, chunks of {arguments.context} inputs"
          + (f", each begins with {tokenizer.decode(begin)}" if begin else ""))  # fmt: skip
    rows: list[dict[str, Any]] = []
    bare: float | None = None
    print(
        f"{'type':<24} {'transformers':>12} {'Yeoul':>10} {'ratio':>8} {'without it':>11} {'tokens':>8} {'seconds':>8}"
    )
    for name in arguments.dtypes:
        dtype, start = getattr(torch, name), time.perf_counter()
        model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()
        reference, count = theirs(model, cut[True])
        if begin and bare is None:  # in the first type
            bare = theirs(model, cut[False])[0]
        del model
        kinds = [(name, dtype, dtype)] if dtype == torch.float32 else [
            (name, dtype, dtype), (f"{name} products", dtype, torch.float32)
        ]  # fmt: skip
        for label, products, weights in kinds:
            loss, own, begun = ours(arguments.model, arguments, products, weights)
            assert begun == bool(begin)
            row: dict[str, Any] = {
                "type": label, "transformers": math.exp(reference), "yeoul": math.exp(loss),
                "ratio": math.exp(loss - reference), "without": None if bare is None else math.exp(bare),
                "tokens": own, "tokens_transformers": count, "seconds": time.perf_counter() - start,
            }  # fmt: skip
            rows.append(row)
            without = "" if bare is None else f"{row['without']:.3f}"
            print(f"{label:<24} {row['transformers']:>12.4f} {row['yeoul']:>10.4f} {row['ratio']:>8.5f} "
                  f"{without:>11} {own:>8,} {row['seconds']:>8.0f}", flush=True)  # fmt: skip
    if arguments.json is not None:
        facts = {"machine": runtime.machine(), "transformers": transformers.__version__, "model": arguments.model,
                 "data": arguments.data, "context": arguments.context, "rows": rows}  # fmt: skip
        arguments.json.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
