"""What exact pairs beside window and state keep of a published model's far context, with nothing trained.

    python benchmarks/exact_pairs.py gemma-3-270m --novel botchan-en.txt --reviews reviews \
        --out docs/benchmarks/exact-pairs.json

MODEL is a Hugging Face folder or a GGUF file whose sliding layers stay; the layers that see everything keep their
sliding window, 4 sinks and so many pairs. The first half of the novel and the reviews of test.tsv.xz, joined by film,
are scored; scores and codebooks are fitted on the other half, on train.tsv.xz, and on pairs of words that come again at
the end of a text. Losses are taken at every fourth position behind the window; kept is the share of the gain that the
model has over itself cut to window and sinks. Recall: eight four-digit numbers told at the beginning are asked for at
the end, right where all four digits are the likeliest; three texts a length. "newest" keeps the newest pairs, which is
a longer window of as many bytes, "random" any. With `--converted` a folder that `yeoul linearize` made of MODEL is
scored too, whole and without its parts. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import lzma
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul import runtime
from yeoul.adapt.linear_init import calibrate
from yeoul.adapt.linearize import Conversion, convert
from yeoul.data.batch import Batch
from yeoul.evaluate.ablations import parts
from yeoul.evaluate.associative import recall_rows
from yeoul.evaluate.long_context import cut_teacher
from yeoul.model.decoder import Decoder
from yeoul.model.linear_attention import LinearAttention
from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.model_folder import ModelFolder
from yeoul.text.tokenizer import Tokenizer

SINKS, STRIDE = 4, 4
NAMES = (
    "Anna Boris Clara David Emma Felix Grace Henry Irene Jacob Karen Louis Maria Nathan Olivia Peter Quentin Rachel "
    "Simon Teresa Ursula Victor Wendy Xavier"
).split()
TOLD = 8
FITTED = 24_576
"""Tokens that scores and codebooks are fitted on: a third novel, a third reviews, a third recall."""


class Chosen(nn.Module):
    """In place of a layer's score: the newest, or any."""

    def __init__(self, how: str, groups: int) -> None:
        super().__init__()
        self.how, self.groups = how, groups

    def forward(self, x: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        shape = (x.shape[0], self.groups, x.shape[1])
        if self.how == "newest":
            return torch.arange(shape[2], dtype=torch.float32).expand(shape)
        return torch.rand(shape, generator=torch.Generator().manual_seed(shape[2]))


class Texts:
    """Token ids without begin token: what is fitted on, and what is scored."""

    def __init__(self, tokenizer: Tokenizer, novel: Path, reviews: Path, count: int) -> None:
        self.tokenizer, self.begin, self.count = tokenizer, list(tokenizer.framing.begin), count
        words = self.ids(novel.read_text(encoding="utf-8-sig"))
        half = len(words) // 2
        films = [self._films(reviews / f"{part}.tsv.xz") for part in ("test", "train")]
        self.scored = {"novel": words[:half], "reviews": films[0]}
        self.fitted = {"novel": words[half:], "reviews": films[1]}

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))

    def _films(self, path: Path, most: int = 250_000) -> list[int]:
        found: dict[str, list[str]] = {}
        length = 0
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for row in csv.DictReader(io.StringIO(file.read()), delimiter="\t", quoting=csv.QUOTE_NONE):
                found.setdefault(row["movie_id"], []).append(row["document"])
                length += len(row["document"])
                if length > most:
                    break
        return [token for film in found.values() for token in self.ids("\n".join(film))]

    def rows(self, name: str, length: int) -> Iterator[Tensor]:
        """The first rows of what is scored, (1, T)."""
        text, take = self.scored[name], length - len(self.begin)
        for number in range(self.count):
            yield torch.tensor([self.begin + text[number * take : (number + 1) * take]])

    def calibration(self, length: int) -> list[Batch]:
        """Rows of what is fitted on, a third of them recall."""
        count, take = max(1, FITTED // length // 3), length + 1 - len(self.begin)
        rows = [self.begin + text[n * take : (n + 1) * take] for text in self.fitted.values() for n in range(count)]
        rows += recall_rows(self.tokenizer, self.fitted["novel"], rows=count, length=length + 1)
        return [Batch(input_ids=ids[:, :-1], labels=ids[:, 1:]) for ids in torch.tensor(rows).split(1)]

    def told(self, length: int, seed: int) -> tuple[Tensor, list[tuple[list[int], list[int]]]]:
        """A text with numbers at its beginning that come again at its end: (1, T), and positions and ids of each."""
        dice = random.Random(seed)
        names = dice.sample(NAMES, TOLD)
        numbers = ["".join(dice.choice("0123456789") for _ in range(4)) for _ in names]
        facts = "".join(f"The secret number of {a} is {b}.\n" for a, b in zip(names, numbers, strict=True))
        head, tail, asked = [*self.begin, *self.ids(facts + "\n")], self.ids("\n\n"), []
        for place in dice.sample(range(TOLD), TOLD):
            tail += self.ids(f"The secret number of {names[place]} is ")
            digits = self.ids(numbers[place])
            asked.append((len(tail), digits))
            tail += [*digits, *self.ids(".\n")]
        text = self.scored["novel" if seed % 2 else "reviews"]
        room = length - len(head) - len(tail)
        start = dice.randrange(len(text) - room)
        before = len(head) + room
        ids = head + text[start : start + room] + tail
        places = [([before + at - 1 + n for n in range(len(digits))], digits) for at, digits in asked]
        return torch.tensor([ids]), places


@torch.inference_mode()
def losses(model: Decoder, rows: Iterator[Tensor], first: int) -> Tensor:
    """Nats at every so many positions from `first` on, (N,) fp64."""
    found = []
    for ids in rows:
        hidden, places = model.hidden(ids)[0], torch.arange(first, ids.shape[1] - 1, STRIDE)
        for part in places.split(256):
            logits = hidden[part] @ model.output_weight.T
            found.append(F.cross_entropy(logits, ids[0, part + 1], reduction="none").double())
    return torch.cat(found)


@torch.inference_mode()
def recall(model: Decoder, texts: Texts, length: int) -> float:
    """Share of the numbers of which all digits are right."""
    right = []
    for seed in range(3):
        ids, asked = texts.told(length, seed)
        hidden = model.hidden(ids)[0]
        for places, digits in asked:
            right.append((hidden[places] @ model.output_weight.T).argmax(-1).tolist() == digits)
    return sum(right) / len(right)


class Table:
    """The rows, against the teacher and the cut teacher of each length."""

    def __init__(self, texts: Texts, window: int, more: Sequence[int]) -> None:
        self.texts, self.window, self.more = texts, window, more
        self.base: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.rows: list[dict[str, Any]] = []

    def reference(self, teacher: Decoder, cut: Decoder, length: int) -> None:
        for name in self.texts.scored:
            own, other = (losses(model, self.texts.rows(name, length), self.window) for model in (teacher, cut))
            self.base[name, length] = own, other
        for name, model in (("teacher", teacher), ("cut", cut)):
            self.add(name, model, length, teacher is model)

    def add(self, name: str, model: Decoder, length: int, whole: bool = False) -> None:
        start, row = time.perf_counter(), dict(name=name, length=length, texts={})
        for text in self.texts.scored:
            teacher, cut = self.base[text, length]
            own = teacher if whole else cut if name == "cut" else losses(
                model, self.texts.rows(text, length), self.window)  # fmt: skip
            gap, won = cut - teacher, cut - own
            share = float(won.sum() / gap.sum())
            row["texts"][text] = {
                "loss": float(own.mean()), "gain": float(gap.mean()), "gain_stderr": float(gap.std() / len(gap) ** 0.5),
                "kept": share, "kept_stderr": float((won - share * gap).std() / len(gap) ** 0.5 / gap.mean().abs()),
                "ratio": float((own - teacher).mean().exp()),
            }  # fmt: skip
        row["recall"] = {str(n): recall(model, self.texts, n) for n in (length, *self.more)}
        row["cache_bytes"], row["cache_bytes_per_token"] = cache_bytes(model.config, 2)
        row["seconds"] = time.perf_counter() - start
        self.rows.append(row)
        kept = "  ".join(
            f"{text} {r['loss']:.4f} ({r['ratio']:.4f} x) kept {r['kept']:.2f} +- {r['kept_stderr']:.2f}"
            for text, r in row["texts"].items()
        )
        print(f"{length:>6} {name:34} {kept}  recall {row['recall']}", flush=True)


@contextmanager
def instead(model: Decoder, how: str) -> Iterator[None]:
    """Other scores meanwhile."""
    layers = [b.self_attn for b in model.layers if isinstance(b.self_attn, LinearAttention)]
    before = [layer.exact_score for layer in layers]
    try:
        for layer in layers:
            layer.exact_score = Chosen(how, layer.num_kv_heads)  # type: ignore[assignment]
        yield
    finally:
        for layer, score in zip(layers, before, strict=True):
            layer.exact_score = score


def whole_layers(model: Decoder) -> list[int]:
    """Those that see everything."""
    return [layer for layer, kind in enumerate(model.config.attention) if kind == "softmax"]


def of_layers(model: Decoder, pairs: str) -> tuple[int, ...]:
    """Pairs of every layer of the model, 0 where it is not converted."""
    given, layers = [int(number) for number in pairs.split(",")], whole_layers(model)
    chosen = dict(zip(layers, given * len(layers) if len(given) == 1 else given, strict=True))
    return tuple(chosen.get(layer, 0) for layer in range(model.config.num_layers))


@contextmanager
def one_cut(teacher: Decoder, cut: Decoder, layer: int) -> Iterator[None]:
    """One layer that sees only window and sinks meanwhile."""
    block, before = teacher.layers[layer], teacher.layers[layer].self_attn
    try:
        block.self_attn = cut.layers[layer].self_attn
        yield
    finally:
        block.self_attn = before


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--novel", type=Path, required=True)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--pairs", nargs="*", default=["64", "128", "256", "512"],
                        help="of each converted layer: one number, or one for each with commas")  # fmt: skip
    parser.add_argument("--costs", action="store_true", help="also cut each layer alone")
    parser.add_argument("--converted", type=Path, nargs="*", default=[], help="folders of trained conversions")
    parser.add_argument("--rows", type=int, default=2, help="that are scored of each text")
    parser.add_argument("--chosen", default="128", help="pairs with which newest and random are compared")
    parser.add_argument("--features", type=int, default=None)
    parser.add_argument("--recall-at", type=int, nargs="*", default=[], help="further lengths of recall")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON; lengths that are in it stay")
    options = parser.parse_args(arguments)
    runtime.set_threads()
    folder = ModelFolder.open_whole(options.model)
    teacher = folder.load(torch.device("cpu"), torch.float32).eval().requires_grad_(False)
    texts = Texts(folder.needed_tokenizer(), options.novel, options.reviews, options.rows)
    window = teacher.config.sliding_window or 64
    table = Table(texts, window, options.recall_at)
    record: Callable[[], dict[str, Any]] = lambda: {  # noqa: E731
        "torch": torch.__version__, "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "rows": kept + table.rows,
    }  # fmt: skip
    kept: list[dict[str, Any]] = []
    if options.out is not None and options.out.is_file():
        kept = [row for row in json.loads(options.out.read_text())["rows"] if row["length"] not in options.lengths]
    for length in options.lengths:
        cut = cut_teacher(teacher, window, SINKS)
        table.reference(teacher, cut, length)
        for layer in whole_layers(teacher) if options.costs else ():
            with one_cut(teacher, cut, layer):
                table.add(f"layer {layer} cut", teacher, length)
        for path in options.converted:
            student = ModelFolder.open_whole(path).load(torch.device("cpu"), torch.float32).eval().requires_grad_(False)
            table.add(f"trained, {path.parent.name}", student, length)
            with parts(student, linear=False):
                table.add(f"trained, {path.parent.name}, no state", student, length)
            with parts(student, exact=False):
                table.add(f"trained, {path.parent.name}, no pairs", student, length)
        batches = texts.calibration(length) if options.pairs else []
        for pairs in options.pairs:
            conversion = Conversion(window=window, sinks=SINKS, exact=of_layers(teacher, pairs))
            student = convert(teacher, conversion, share=True)
            start = time.perf_counter()
            calibrate(teacher, student, batches)
            print(f"{length:>6} {pairs} pairs calibrated in {time.perf_counter() - start:.0f} s", flush=True)
            table.add(pairs, student, length)
            with parts(student, linear=False):
                table.add(f"{pairs}, no state", student, length)
                for how in ("newest", "random") if pairs == options.chosen else ():
                    with instead(student, how):
                        table.add(f"{pairs} {how}, no state", student, length)
            if pairs == options.chosen:
                with parts(student, exact=False):
                    table.add(f"state of {pairs} alone", student, length)
        if options.out is not None:
            options.out.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
