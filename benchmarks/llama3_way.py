"""The way of Llama 3 in small, measured after each step: what did it give, and what did it cost?

    python benchmarks/llama3_way.py runs/way --reviews reviews --dialogs chatbot.csv \
        --out docs/benchmarks/llama3-way.json

Pretraining, instructions, a domain (its text, then its instructions), preferences, a safety screen: the commands of
`configs/ways/llama3.yaml`, once with softmax attention and once linearized behind the pretraining. The base is learned
from film reviews; all else from question-answer pairs (columns Q, A, label): everyday talk (label 0) as instructions,
love (label 2) as the domain, its one half as plain text and the other as instructions. Preferred is the answer to a
question over one to another question that is half as long again, or longer. The screen is to refuse talk of parting
(label 1) and to let all else pass. A tenth of the pairs is held out. What is in the folder already is not trained
again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gemma import measured

import yeoul
from yeoul import runtime
from yeoul.data.examples import Example, example_batches
from yeoul.data.labelled import read_labelled
from yeoul.evaluate.perplexity import score
from yeoul.evaluate.screening import screen_errors
from yeoul.text.chat import ensure_template, render_chat

RECIPE = Path(__file__).parents[1] / "configs" / "ways" / "llama3.yaml"
LINEAR, SCREEN, REFUSED, THRESHOLD = "linearized", "screen", "parting", 0.5
SCORED = ("reviews", "love", "everyday answers", "love answers", "preferred", "tasks", "refused wrongly", "missed")
NAMES = ("everyday", REFUSED, "love")
"""What the labels of the pairs mean."""


def write_data(table: Path, folder: Path) -> None:
    """The texts of all steps, and what is held out of each (`held-out-...`)."""
    folder.mkdir(parents=True, exist_ok=True)
    question_and_label = read_labelled(str(table), text_column="Q", label_column="label").records
    answers = read_labelled(str(table), text_column="A", label_column="label").records
    pairs = [(q.text, a.text, NAMES[int(q.label)]) for q, a in zip(question_and_label, answers, strict=True)]
    dice = random.Random(0)
    dice.shuffle(pairs)
    tenth = len(pairs) // 10
    for prefix, part in (("held-out-", pairs[:tenth]), ("", pairs[tenth:])):
        talks = {name: [pair[:2] for pair in part if pair[2] == name] for name in NAMES}
        half = len(talks["love"]) // 2
        texts, talks["love"] = talks["love"][:half], talks["love"][half:]
        for name in ("everyday", "love"):
            write_lines(folder / f"{prefix}{name}.jsonl", [{"messages": chat(*pair)} for pair in talks[name]])
        blocks = "\n\n".join(f"{question}\n{answer}" for question, answer in texts)
        (folder / f"{prefix}love.txt").write_text(blocks + "\n", encoding="utf-8")
        both = talks["everyday"] + talks["love"]
        longer = ((pair, dice.choice(both)[1]) for pair in both)
        write_lines(folder / f"{prefix}preferences.jsonl", [
            {"prompt": question, "chosen": answer, "rejected": other}
            for (question, answer), other in longer if len(other) >= 1.5 * len(answer)
        ])  # fmt: skip
        rows = ["text\tlabel", *(f"{q}\t{name if name == REFUSED else 'other'}" for q, _, name in part)]
        (folder / f"{prefix}screen.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def step(folder: Path, command: str, **places: Path) -> dict[str, Any]:
    """Runs a command of the recipe, unless it has been; what it took."""
    record = folder.with_suffix(".json")
    if not record.is_file():
        words = [word.format(**places) for word in shlex.split(command)]
        words = [sys.executable, "-m", "yeoul", *words, "--no-report", "--out", str(folder)]
        found = measured(words, folder.with_suffix(".log"))
        if found["exit_code"]:
            raise SystemExit(folder.with_suffix(".log").read_text(encoding="utf-8")[-2000:])
        record.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(record.read_text(encoding="utf-8"))


class Judge:
    """Scores that are the same for every step, on what is held out."""

    def __init__(self, data: Path, reviews: Path, scored: int) -> None:
        self.data, self.reviews = data, str(reviews / "test.tsv.xz")
        self.config = yeoul.EvaluateConfig(text_column="document", join_by="movie_id", context=256, max_tokens=scored)
        self.short = yeoul.EvaluateConfig(context=256, max_tokens=scored)

    def __call__(self, folder: Path) -> dict[str, float]:
        """By the names of `SCORED`, but for the screen's."""
        model, tokenizer = yeoul.load(folder)
        assert tokenizer is not None
        tokenizer = ensure_template(tokenizer)
        values: dict[str, float] = {}
        loaded = model, tokenizer
        texts = (("reviews", self.reviews, self.config), ("love", str(self.data / "held-out-love.txt"), self.short))
        for name, text, config in texts:
            values[name] = yeoul.evaluate_model(loaded, text, config).score.bits_per_byte or math.nan
        for name in ("everyday", "love"):
            talks = [record["messages"] for record in read_lines(self.data / f"held-out-{name}.jsonl")]
            values[f"{name} answers"] = self._score(model, tokenizer, talks).perplexity
        better = []
        for record in read_lines(self.data / "held-out-preferences.jsonl"):
            found = [
                self._score(model, tokenizer, [chat(record["prompt"], record[key])]) for key in ("chosen", "rejected")
            ]
            chosen, rejected = (own.loss * own.tokens for own in found)
            better.append(chosen < rejected)
        values["preferred"] = float(np.mean(better))
        tasks = yeoul.evaluate_tasks(loaded, "yeoul_korean").tasks
        right = sum(task.questions * task.metrics[0].value for task in tasks)
        return values | {"tasks": right / sum(task.questions for task in tasks)}

    def _score(self, model: yeoul.Decoder, tokenizer: yeoul.Tokenizer, talks: Sequence[Any]) -> Any:
        """The score of the answers of conversations."""
        examples = []
        for talk in talks:
            ids, trained = render_chat(tokenizer, talk)
            examples.append(Example(np.array(ids, np.int32), np.array(trained)))
        batches = example_batches(examples, batch_size=32, context=256, packing=False, pad_id=tokenizer.pad_id or 0)
        return score(model, batches, None)

    def screen(self, folder: Path) -> dict[str, float]:
        """How often the screen refuses what should pass, and passes what it should refuse."""
        texts = read_labelled(str(self.data / "held-out-screen.tsv")).records
        probabilities = yeoul.load_screen(folder, [REFUSED]).probabilities([text.text for text in texts])
        (errors,) = screen_errors(probabilities, [text.label == REFUSED for text in texts], (THRESHOLD,))
        return {"refused wrongly": errors.false_positives.value, "missed": errors.false_negatives.value}


def walk(options: argparse.Namespace, judge: Judge, *, linear: bool) -> list[dict[str, Any]]:
    """One way, a row for each step."""
    recipe: dict[str, str] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    way, rows = "linear" if linear else "softmax", list[dict[str, Any]]()
    base = model = options.folder / "pretraining"
    known: dict[str, float] = {}
    for name, command in recipe.items():
        if name == LINEAR and not linear:
            continue
        folder = (
            base if name == "pretraining" else options.folder / f"{way}-{name.replace(', ', '-').replace(' ', '-')}"
        )
        costs = step(folder, command, model=model, base=base, reviews=options.reviews, data=judge.data)
        cached = folder.with_suffix(".scores.json")
        if not cached.is_file():
            found = judge.screen(folder) if name == SCREEN else judge(folder)
            cached.write_text(json.dumps(found), encoding="utf-8")
        known = known | json.loads(cached.read_text(encoding="utf-8"))
        if name == LINEAR:
            base = folder  # the screen begins with what this way began with
        model = model if name == SCREEN else folder
        rows.append({"step": name, **known, "cpu_seconds": costs["cpu_seconds"], "peak_bytes": costs["peak_bytes"]})
        cells = "".join(f"{rows[-1][key]:>18.4f}" if key in known else f"{'–':>18}" for key in SCORED)
        print(f"{way:8}{name:28}{cells}{costs['cpu_seconds']:>10,.0f}", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reviews", type=Path, required=True, help="folder with train.tsv.xz and test.tsv.xz")
    parser.add_argument("--dialogs", type=Path, required=True, help="table with the columns Q, A and label (0, 1, 2)")
    parser.add_argument("--scored", type=int, default=40_000, help="tokens of a text that are scored")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args(arguments)
    runtime.set_threads()
    data = options.folder / "data"
    if not data.is_dir():
        write_data(options.dialogs, data)
    judge = Judge(data, options.reviews, options.scored)
    print(f"{'':36}" + "".join(f"{name:>18}" for name in SCORED) + f"{'CPU s':>10}")
    ways = {name: walk(options, judge, linear=name == "linear") for name in ("softmax", "linear")}
    record = {"torch": torch.__version__, "cpu": runtime.cpu_name(), "ways": ways}
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
