"""A teacher to which distance matters, for judging conversions: a window alone must lose something on its text.

    python benchmarks/fair_test.py text RUN --reviews train.tsv.xz      # the mixture of texts, and a tokenizer
    python benchmarks/fair_test.py teacher RUN                          # 10M parameters, about an hour on two cores
    yeoul linearize RUN/teacher --data RUN/text.jsonl --val-data RUN/held-out.jsonl ...
    yeoul evaluate RUN/converted --teacher RUN/teacher --data RUN/held-out.jsonl
    python benchmarks/fair_test.py pairs RUN --reviews test.tsv.xz --converted RUN/converted ... --out pairs.json

A small model trained briefly on natural text does not look back: its induction heads (find the last time this token
stood here, say what followed) form late. Three things bring them early, each found by trying:

- the text has much to look back for: films' reviews joined (names and jokes come back), the built-in corpus with facts
  told early and asked late, and lists and pairs of words that are said again after some text;
- a curriculum of nothing but pairs and lists, short rows first, whose loss counts only what can be known. Counting
  every token drowned it: 0.5 million tokens so taught nothing, 0.7 million without the noise taught it whole;
- gaps of random length between the two times. With a fixed one the model learns to look a fixed way back.

`pairs` scores conversions as a whole and without their parts: conversions that are calibrated here and not trained
(`--exact`), and folders of `yeoul linearize` (`--converted`). Beside the former stand others: "newest" keeps the newest
pairs, which is a longer window of as many bytes, "random" any, and the teacher is cut to a window of as many bytes as
all that the conversion keeps.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import lzma
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from exact_pairs import instead
from torch import Tensor

from yeoul import Tokenizer, runtime
from yeoul.adapt.linear_init import calibrate
from yeoul.adapt.linearize import convert
from yeoul.data.batch import IGNORE, Batch
from yeoul.data.builtin import generate_documents, generate_recall
from yeoul.data.loader import PackedLoader
from yeoul.evaluate.ablations import View, parts
from yeoul.evaluate.associative import Material, ask, mqar_questions, recall_rows
from yeoul.evaluate.layer_costs import layer_costs
from yeoul.evaluate.long_context import CUT, TEACHER, aligned_losses, cut_teacher, long_context_score
from yeoul.evaluate.words import TEXT_TOKENS, text_ids, whole_words
from yeoul.model.checkpoint import save_model
from yeoul.model.config import preset
from yeoul.model.decoder import Decoder
from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.linearize.config import ConversionOptions
from yeoul.recipes.model_folder import ModelFolder
from yeoul.recipes.token_data import held_out, token_shards
from yeoul.text.training import TokenizerConfig, train_tokenizer
from yeoul.train.loss import language_model_objective

CURRICULUM = ((8, 256), (16, 512), (32, 1024), (64, 2048), (128, 4000), (256, 4000))
"""Words said twice in a row, and of how many they are drawn; the next begins when 85 % are right."""

WINDOW, SINKS, CONTEXT = 64, 4, 1024
SCORED = 10_240
"""Tokens of each text that conversions are scored on."""


def films(path: Path) -> Iterator[str]:
    """The reviews of each film, joined by line breaks."""
    with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for _, group in itertools.groupby(rows, key=lambda row: row["movie_id"]):
            yield "\n".join(text for row in group if (text := row["document"].strip()))


def facts(seed: int, count: int) -> Iterator[str]:
    """Facts told early and asked late, answers included, over four distances."""
    for distance in (5, 10, 20, 40):
        for item in generate_recall(seed=seed + distance, count=count, distance=distance):
            yield f"{item['prompt'].rstrip()} {item['answer']}"


def said_again(words: list[str], lines: list[str], dice: random.Random) -> Iterator[str]:
    """Documents in which lists or pairs of words are said again behind some lines of text."""
    line = lambda group: "".join(f" {word}" for word in group)  # noqa: E731
    while True:
        count = round(math.exp(dice.uniform(math.log(2), math.log(48))))
        between = dice.sample(lines, dice.choice((0, 0, 1, 3, 8, 20)))
        kind = dice.random()
        if kind < 0.25:
            group = dice.sample(words, min(2 * count + 4, 100))
            yield "\n".join([line(group), *between, line(group)])
            continue
        pairs = [dice.sample(words, 2) for _ in range(count)]
        again = dice.sample(pairs, count)
        if kind < 0.75:
            yield "\n".join([line(sum(pairs, [])), *between, line(sum(again, []))])
        else:  # each pair in a line of its own somewhere in the text
            told = [*map(line, pairs[:12]), *dice.sample(lines, 12)]
            dice.shuffle(told)
            yield "\n".join([*told, line(sum((pair for pair in again if pair in pairs[:12]), []))])


def taken(documents: Iterable[str], tokens: int, tokenizer: Tokenizer) -> list[str]:
    """Documents up to so many tokens."""
    found, seen = [], 0
    for document in documents:
        found.append(document)
        seen += len(tokenizer.encode(document))
        if seen >= tokens:
            break
    return found


def write_text(run: Path, reviews: Path | None, tokens: int) -> None:
    """RUN/tokenizer, RUN/text.jsonl and RUN/held-out.jsonl."""
    dice = random.Random(0)
    natural = list(films(reviews)) if reviews else list(generate_documents(seed=7, target_bytes=30_000_000))
    dice.shuffle(natural)
    kept_apart, natural = natural[:60], natural[60:]
    built_in = list(generate_documents(seed=11, target_bytes=9_000_000))
    train_tokenizer(itertools.chain(natural[:3000], built_in), TokenizerConfig(vocab_size=8000), run / "tokenizer")
    tokenizer = Tokenizer.load(run / "tokenizer")
    words = [tokenizer.decode([id]).strip() for id in whole_words(tokenizer)]
    for name, texts, corpus_seed, budget in (
        ("text", natural, 100, tokens), ("held-out", kept_apart, 900, 85_000),
    ):  # fmt: skip
        lines = [line for document in texts[:3000] for line in document.split("\n")]
        own = built_in if name == "text" else list(generate_documents(seed=999, target_bytes=300_000))
        parts = [(texts, 0.44), (own, 0.16), (facts(corpus_seed, 2500), 0.08), (said_again(words, lines, dice), 0.32)]
        documents = [d for source, share in parts for d in taken(source, int(budget * share), tokenizer)]
        dice.shuffle(documents)
        with open(run / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents)


def pairs_batch(length: int, words: Tensor, tokens: int) -> Batch:
    """Rows of words in which `length` of them are said again behind a gap; labels only where the next is known.

    A quarter of the rows are lists said again from a random place on, the others pairs in another order.
    """
    rows, width = tokens // (3 * length), 3 * length
    unlike = len(words) >= width  # words that do not come twice by chance
    draw = lambda: torch.randperm(len(words))[:width] if unlike else torch.randint(len(words), (width,))  # noqa: E731
    x = torch.stack([words[draw()] for _ in range(rows)])
    labels = torch.full_like(x, IGNORE)
    for r in range(rows):
        start = 2 * int(torch.randint(length // 2 + 1, ()))
        again = min(start + length + int(torch.randint(max(1, length - start), ())), 2 * length)
        first = x[r, start : start + length].clone()
        if r < max(1, rows // 4):
            skipped = int(torch.randint(max(1, length // 2), ()))
            rest = first[skipped:]
            x[r, again : again + len(rest)] = rest
            labels[r, again : again + len(rest) - 1] = rest[1:]
        else:
            pairs = first.view(-1, 2)[torch.randperm(length // 2)]
            x[r, again : again + length] = pairs.flatten()
            labels[r, again : again + length : 2] = pairs[:, 1]
    return Batch(input_ids=x, labels=labels)


class Trainer:
    """Muon for matrices, AdamW for the rest, bfloat16 products."""

    def __init__(self, model: Decoder, lr: float, weight_decay: float) -> None:
        embedding = model.model.embed_tokens.weight
        matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
        others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
        self.model, self.lr = model.train(), lr
        self.optimizers = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )

    def step(self, batch: Batch, factor: float) -> float:
        """One step; returns the loss in nats a token."""
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_model_objective(self.model, batch)
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.total.detach()) / loss.count


def read(model: Decoder, ids: Tensor, context: int, rows: int, lr: float, say: Callable[[str], None]) -> None:
    """Language modelling over a stream of ids, cosine to a tenth."""
    trainer, size = Trainer(model, lr, 0.1), context * rows
    steps = (len(ids) - 1) // size
    for step in range(steps):
        chunk = ids[step * size : (step + 1) * size + 1]
        batch = Batch(input_ids=chunk[:-1].view(rows, context), labels=chunk[1:].view(rows, context))
        factor = min(1, (step + 1) / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        loss = trainer.step(batch, factor)
        if step % 50 == 49:
            say(f"{step + 1}/{steps} loss {loss:.3f}")


def practise(model: Decoder, words: Tensor, seconds: float, say: Callable[[str], None]) -> int:
    """The curriculum; returns the tokens it took."""
    trainer, began, step, stage, right = Trainer(model, 2e-3, 0.0), time.monotonic(), 0, 0, 0.0
    while stage < len(CURRICULUM) and time.monotonic() - began < seconds:
        length, count = CURRICULUM[stage]
        batch = pairs_batch(length, words[:count], 2048)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            if step % 10 == 0:
                known = batch.labels != IGNORE
                hidden = model.hidden(batch.input_ids)[known]
                guess = F.linear(hidden.float(), model.output_weight).argmax(-1)
                right = 0.5 * right + 0.5 * (guess == batch.labels[known]).float().mean().item()
        loss = trainer.step(batch, min(1, (step + 1) / 20))
        step += 1
        if step % 40 == 0:
            say(f"step {step}, {length} words of {count}: loss {loss:.3f}, right {right:.2f}")
        if right > 0.85:
            stage, right = stage + 1, 0.0
    return step * 2048


def train_teacher(run: Path, before: int, seconds: float) -> None:
    """RUN/teacher: language modelling, the curriculum, then language modelling over the rest of the text."""
    tokenizer = Tokenizer.load(run / "tokenizer")
    with open(run / "text.jsonl", encoding="utf-8") as file:
        ids = [id for line in file for id in [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eos_id or 0]]
    stream, words = torch.tensor(ids), torch.tensor(whole_words(tokenizer))
    torch.manual_seed(0)
    model = Decoder(preset("10m", vocab_size=tokenizer.vocab_size, max_position_embeddings=1024,
                           bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id))  # fmt: skip
    say = lambda text: print(text, flush=True)  # noqa: E731
    read(model, stream[:before], 1024, 4, 2e-3, say)
    practised = practise(model, words, seconds, say)
    read(model, stream[before:], 1024, 4, 1.5e-3, say)
    target = run / "teacher"
    save_model(model.eval(), target)
    tokenizer.save(target)
    say(f"{len(stream) + practised:,} tokens; the model is in {target}")


Views = dict[str, View]


class Fair:
    """A teacher, the texts that conversions of it are scored on, and the rows of the table."""

    def __init__(self, run: Path, reviews: Path) -> None:
        self.run, folder = run, ModelFolder.open_whole(run / "teacher")
        self.teacher = folder.load(torch.device("cpu"), torch.float32).eval().requires_grad_(False)
        self.tokenizer = folder.needed_tokenizer()
        self.cut = cut_teacher(self.teacher, WINDOW, SINKS)
        own = {"reviews": itertools.islice(films(reviews), 150), "built-in": generate_documents(
            seed=1234, target_bytes=150_000)}  # fmt: skip
        for name, documents in own.items():
            with open(run / f"{name}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents)
        self.batches = {name: self._batches(file) for name, file in (
            ("mixture", "held-out"), ("reviews", "reviews"), ("built-in", "built-in"))}  # fmt: skip
        text = text_ids(self.tokenizer, self.batches["mixture"](), TEXT_TOKENS)
        self.questions = mqar_questions(
            Material(self.tokenizer, text, lead=SINKS),
            context=CONTEXT,
            window=WINDOW,
            distances=(128, 512),
            questions=64,
        )
        self.dtype = runtime.resolve_dtype("auto", torch.device("cpu"))
        self.rows: list[dict[str, Any]] = []
        both: Views = {TEACHER: lambda: nullcontext(self.teacher), CUT: lambda: nullcontext(self.cut)}
        self.base = {text: aligned_losses(both, batches, dtype=self.dtype) for text, batches in self.batches.items()}
        self.told = ask(self.teacher, self.questions, dtype=self.dtype)
        self.add(both, tokens=0)

    def _batches(self, name: str) -> Callable[[], Iterable[Batch]]:
        shards, _ = token_shards(str(self.run / f"{name}.jsonl"), self.run / "scored" / name, self.tokenizer)
        return held_out(shards, batch_size=4, context=CONTEXT, max_tokens=SCORED)

    def add(self, models: Views, **facts: Any) -> None:
        """A row of each model, against the teacher and the cut teacher."""
        texts = {}
        for text, batches in self.batches.items():
            losses = self.base[text]
            if not models.keys() <= losses.losses.keys():
                own = aligned_losses(models, batches, dtype=self.dtype)
                losses = replace(losses, losses={**losses.losses, **own.losses})
            texts[text] = long_context_score(losses, window=WINDOW, sinks=SINKS, training_length=CONTEXT)
        for name, view in models.items():
            with view() as model:
                share = ask(model, self.questions, dtype=self.dtype).share_of(self.told, beyond_window=True)
            row: dict[str, Any] = {"name": name, **facts, "recall": share.exact, "recall_choice": share.choice}
            for text, score in texts.items():
                found = score.row(name)
                row[text] = {
                    "loss": found.loss, "ratio": found.ratio, "gain": score.gain.value,
                    "gain_stderr": score.gain.stderr, "retained": found.retained.value,
                    "retained_stderr": found.retained.stderr, "long_range": found.retained_long_range.value,
                }  # fmt: skip
            self.rows.append(row)
            kept = "  ".join(
                f"{text} {row[text]['loss']:.4f} ({row[text]['ratio']:.4f} x) kept "
                + ("-" if row[text]["retained"] is None else f"{row[text]['retained']:.2f}")
                for text in texts
            )
            print(f"{name:44} {kept}  recall {share.exact or 0:.2f} / {share.choice or 0:.2f}", flush=True)

    def conversion(self, label: str, model: Decoder, *, others: bool, **facts: Any) -> None:
        """A conversion and its parts, and if `others`, what it would be with other pairs."""

        def view(*contexts: Callable[[], AbstractContextManager[Any]]) -> View:
            @contextmanager
            def opened() -> Iterator[Decoder]:
                with ExitStack() as stack:
                    for context in contexts:
                        stack.enter_context(context())
                    yield model

            return opened

        stateless = lambda: parts(model, linear=False)  # noqa: E731
        names: Views = {label: view(), f"{label}, no state": view(stateless)}
        if any(model.config.exact):
            names[f"{label}, no pairs"] = view(lambda: parts(model, exact=False))
        total = cache_bytes(model.config, 4)[0]
        if others:
            for how in ("newest", "random"):
                other = lambda how=how: instead(model, how)  # noqa: E731
                names[f"{label}, {how}, no state"] = view(other, stateless)
            longer = self.window_of(total)
            names[f"{label}, teacher cut to {longer}"] = lambda: nullcontext(cut_teacher(self.teacher, longer, SINKS))
        self.add(names, exact=list(model.config.exact), cache_bytes=total, **facts)

    def window_of(self, total: int) -> int:
        """The window of a cut teacher whose cache has so many bytes."""
        each = lambda window: cache_bytes(cut_teacher(self.teacher, window, SINKS).config, 4)[0]  # noqa: E731
        return int(WINDOW + (total - each(WINDOW)) // (each(WINDOW + 1) - each(WINDOW)))


def calibration(fair: Fair) -> list[Batch]:
    """What `yeoul linearize` calibrates on: text, and half as much that asks for what its beginning said."""
    shards, _ = token_shards(str(fair.run / "text.jsonl"), fair.run / "scored" / "text", fair.tokenizer)
    loader = PackedLoader(shards, batch_size=4, context=CONTEXT, seed=0)
    batches = [loader.next_batch() for _ in range(4)]
    ids = [id for batch in batches for id in batch.labels[batch.labels != IGNORE].tolist()]
    rows = torch.tensor(recall_rows(fair.tokenizer, ids, rows=8, length=CONTEXT + 1))
    return [*batches, *(Batch(input_ids=row[:, :-1], labels=row[:, 1:]) for row in rows.split(1))]


def untrained(fair: Fair, exact: str, batches: list[Batch]) -> Decoder:
    """A conversion in closed form: as with --exact, or "total 512" as with --exact-total 512."""
    total = int(exact.removeprefix("total ")) if exact.startswith("total ") else None
    options = ConversionOptions(exact="auto" if total else exact, exact_total=total, window=WINDOW, sinks=SINKS)
    config, costs = fair.teacher.config, None
    if total:
        costs = layer_costs(fair.teacher, lambda: batches, window=WINDOW, sinks=SINKS, dtype=fair.dtype)
        print("  cost of cutting each layer:", {layer: round(cost, 4) for layer, cost in costs.items()}, flush=True)
    student = convert(fair.teacher, options.conversion(config, context=CONTEXT, costs=costs), share=True)
    calibrate(fair.teacher, student, batches)
    return student


def score_pairs(run: Path, reviews: Path, exact: list[str], converted: list[Path], out: Path | None) -> None:
    """The table of conversions, printed and written; rows of others that the file has stay."""
    runtime.set_threads()
    fair = Fair(run, reviews)
    kept = json.loads(out.read_text())["rows"] if out is not None and out.is_file() else []

    def write() -> None:
        if out is not None:
            new = {row["name"] for row in fair.rows}
            rows = [row for row in kept if row["name"] not in new] + fair.rows
            out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")

    batches = calibration(fair) if exact else []
    for pairs in exact:
        fair.conversion(f"{pairs}, untrained", untrained(fair, pairs, batches), others=True, tokens=0)
        write()
    for path in converted:
        folder = ModelFolder.open_whole(path)
        model = folder.load(torch.device("cpu"), torch.float32).eval().requires_grad_(False)
        record = json.loads((path / "linearize.json").read_text(encoding="utf-8"))
        facts = {"tokens": record["tokens"], "seconds": record["seconds"], "command": record["command"]}
        fair.conversion(path.name, model, others=False, **facts)
        write()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "teacher", "pairs"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--reviews", type=Path, help="train.tsv.xz of the reviews; the built-in corpus without it")
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--before", type=int, default=2_460_000, help="tokens read before the curriculum")
    parser.add_argument("--seconds", type=float, default=900, help="longest time for the curriculum")
    parser.add_argument("--exact", nargs="*", default=[], help="conversions that are not trained: 64, or total 256")
    parser.add_argument("--converted", type=Path, nargs="*", default=[], help="runs of yeoul linearize")
    parser.add_argument("--out", type=Path, help="file for the JSON of pairs")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    if args.what == "pairs":
        if args.reviews is None:
            parser.error("pairs needs --reviews")
        score_pairs(args.run, args.reviews, args.exact, args.converted, args.out)
    elif args.what == "text":
        write_text(args.run, args.reviews, args.tokens)
    else:
        train_teacher(args.run, args.before, args.seconds)


if __name__ == "__main__":
    main()
