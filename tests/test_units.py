import re
from pathlib import Path

import pytest

from yeoul.units import count, duration, rate, short, size, spelled

SOURCE = Path(__file__).resolve().parents[1] / "src" / "yeoul"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (size, 0, "0 B"), (size, 1023, "1,023 B"), (size, 1536, "1.5 KiB"), (size, 2**20 - 1, "1.0 MiB"),
        (size, 5 * 2**20, "5.0 MiB"), (size, 3 * 2**30, "3.0 GiB"), (size, 2**50, "1,024.0 TiB"),
        (duration, -1, "0 s"), (duration, 0, "0 s"), (duration, 0.012, "12 ms"), (duration, 0.0999, "0.1 s"),
        (duration, 3.21, "3.2 s"), (duration, 9.97, "10 s"), (duration, 59.6, "1 min 0 s"),
        (duration, 75, "1 min 15 s"), (duration, 3599.9, "1 h 0 min"), (duration, 7320, "2 h 2 min"),
        (duration, 5 * 86400, "5 d 0 h"),
        (rate, 9.26, "9.3 tokens/s"), (rate, 99.97, "100 tokens/s"), (rate, 1234.5, "1,234 tokens/s"),
        (short, 1500, "1.5k"), (short, 2e6, "2M"), (short, 500, "500"),
        (spelled, 999, "999"), (spelled, 1_234_567, "1.23 million"), (spelled, 2e9, "2 billion"),
    ],
)  # fmt: skip
def test_numbers_as_text(function, value, text):
    assert function(value) == text


def test_a_noun_follows_its_number():
    assert [count(n, "token") for n in (0, 1, 2, 1234)] == ["0 tokens", "1 token", "2 tokens", "1,234 tokens"]
    assert [count(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a size made by hand", r"/ ?(2 ?\*\* ?[123]0|1e[369]|10 ?\*\* ?[369]|1024)\b.*\} ?[KMGkm]i?B"),
        ("a plural in brackets", r"\b[a-z]+\(s\)"),
        ("a duration made by hand", r"\d?f\} (s|min|h|seconds|minutes|hours)\b"),
        ("a speed made by hand", r"\d?f\} tokens/s"),
    ],
)
def test_nothing_else_in_the_source_makes_them(what, pattern):
    """One system of units: whatever prints a size, a duration, a speed or a plural asks yeoul.units."""
    found = []
    for file in sorted(SOURCE.rglob("*")):
        if file.suffix not in (".py", ".j2") or file.name == "units.py":
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{file.relative_to(SOURCE)}:{number}: {line.strip()}")
    assert not found, f"{what}: " + "\n".join(found)
