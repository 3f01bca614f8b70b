"""How often the judge of Korean speaks on real text, and how many planted mistakes it finds.

    python benchmarks/korean_rules.py reviews=train.tsv.xz:document news=news.ko chat=chatbot-ko.csv:A

Each argument is NAME=FILE, with :COLUMN for a table. Of every text, the rates of `yeoul.evaluate.korean` are printed
with examples of what was found: in text that people wrote and edited, nearly all of it would be a false alarm. Then
each particle that looks like one (으로, 은, 는, ...) is put into its other form, one at a time, and the share that the
judge then calls wrong is printed: what it cannot decide, it misses. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from yeoul.data.builtin.hangul import PARTICLES
from yeoul.data.documents import read_documents
from yeoul.evaluate.korean import decide, findings, judge_all

FORMS = {form: name for name in ("은", "이", "을", "과", "으로") for form in PARTICLES[name]}
ENDING = re.compile(r"(?<![가-힣])([가-힣]+?)(으로|은|는|이|가|을|를|과|와|로)(?![가-힣\w])")


def texts(source: str, most: int) -> list[str]:
    """Texts of a file, every n-th of a long one."""
    file, _, column = source.partition(":")
    own = list(islice((d.strip() for d in read_documents(file, text_column=column or None)), 40 * most))
    lines = [line for text in own for line in text.split("\n") if line.strip()]
    return lines[:: max(1, len(lines) // most)][:most]


def planted(lines: list[str]) -> dict[str, tuple[int, int]]:
    """Right forms by particle: how many were exchanged, and how many of these the judge calls wrong."""
    counts: dict[str, list[int]] = {name: [0, 0] for name in PARTICLES if name in FORMS.values()}
    for stem, form in exchanged(lines):
        counts[FORMS[form]][0] += 1
        counts[FORMS[form]][1] += decide(stem, form) is False
    return {name: (all_, found) for name, (all_, found) in counts.items()}


def exchanged(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(stem, the other form) of every ending that people wrote in the form that goes with its final consonant."""
    from yeoul.data.builtin.hangul import particle

    for line in lines:
        for match in ENDING.finditer(line):
            stem, form = match[1], match[2]
            if particle(stem[-1], FORMS[form]) == form:
                yield stem, next(other for other in PARTICLES[FORMS[form]] if other != form)


def main() -> None:
    """Judge every source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="NAME=FILE[:COLUMN]")
    parser.add_argument("--lines", type=int, default=20_000, help="lines of each source")
    parser.add_argument("--examples", type=int, default=100, help="findings of each kind that are listed")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    print(
        f"{'text':<10} {'words':>9}  {'particles':>9}  {'wrong':>16}  {'broken / 1,000':>14}  {'spacing / 1,000':>15}"
    )
    for source in args.sources:
        name, _, file = source.partition("=")
        lines = texts(file, args.lines)
        score = judge_all(lines)
        print(
            f"{name:<10} {score.words:>9,}  {score.particles:>9,}  "
            f"{score.wrong_particles:>6,} ({100 * (score.particle_rate or 0):.3f} %)  "
            f"{1000 * (score.broken_rate or 0):>14.3f}  {1000 * (score.spacing_rate or 0):>15.2f}"
        )
        draw, found = random.Random(0), [f for line in lines for f in findings(line)]
        examples = {}
        for kind in ("particle", "syllable", "spacing"):
            own = [str(f) for f in found if f.kind == kind]
            examples[kind] = draw.sample(own, min(args.examples, len(own)))
        rows[name] = score.as_dict() | {"examples": examples, "planted": planted(lines)}
    print("\nparticles in their other form that are found")
    for name, row in rows.items():
        parts = [f"{p} {found:,}/{all_:,} ({found / max(all_, 1):.0%})" for p, (all_, found) in row["planted"].items()]
        print(f"{name:<10} " + "  ".join(parts))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
