"""A teacher to which distance matters, for judging conversions: a window alone must lose something on its text.

    python benchmarks/fair_test.py text RUN --reviews train.tsv.xz      # the mixture of texts, and a tokenizer
    python benchmarks/fair_test.py teacher RUN                          # 10M parameters, about an hour on two cores
    yeoul linearize RUN/teacher --data RUN/text.jsonl --val-data RUN/held-out.jsonl ...
    yeoul evaluate RUN/converted --teacher RUN/teacher --data RUN/held-out.jsonl

A small model trained briefly on natural text does not look back: its induction heads (find the last time this token
stood here, say what followed) form late. Three things bring them early, each found by trying:

- the text has much to look back for: films' reviews joined (names and jokes come back), the built-in corpus with facts
  told early and asked late, and lists and pairs of words that are said again after some text;
- a curriculum of nothing but pairs and lists, short rows first, whose loss counts only what can be known. Counting
  every token drowned it: 0.5 million tokens so taught nothing, 0.7 million without the noise taught it whole;
- gaps of random length between the two times. With a fixed one the model learns to look a fixed way back.
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
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from yeoul import Tokenizer
from yeoul.data.batch import IGNORE, Batch
from yeoul.data.builtin import generate_documents, generate_recall
from yeoul.evaluate.words import whole_words
from yeoul.model.checkpoint import save_model
from yeoul.model.config import preset
from yeoul.model.decoder import Decoder
from yeoul.text.training import TokenizerConfig, train_tokenizer
from yeoul.train.loss import language_model_objective

CURRICULUM = ((8, 256), (16, 512), (32, 1024), (64, 2048), (128, 4000), (256, 4000))
"""Words said twice in a row, and of how many they are drawn; the next begins when 85 % are right."""


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


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "teacher"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--reviews", type=Path, help="train.tsv.xz of the reviews; the built-in corpus without it")
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--before", type=int, default=2_460_000, help="tokens read before the curriculum")
    parser.add_argument("--seconds", type=float, default=900, help="longest time for the curriculum")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    if args.what == "text":
        write_text(args.run, args.reviews, args.tokens)
    else:
        train_teacher(args.run, args.before, args.seconds)


if __name__ == "__main__":
    main()
