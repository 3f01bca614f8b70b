"""Records the golden values of this kind of machine into values.json, beside those of others.

    python tests/golden/record.py

Run it before a change of structure on a machine whose kind is new, and after a change that is meant to change numbers;
the other kinds' values of a case that has changed have to be recorded on their machines, or deleted.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from cases import CASES, VALUES, Home, kind_of_machine, one_thread


def record() -> None:
    recorded = json.loads(VALUES.read_text(encoding="utf-8")) if VALUES.exists() else {}
    with tempfile.TemporaryDirectory() as folder, one_thread():
        home = Home(Path(folder))
        recorded[kind_of_machine()] = {case: home.values(case) for case in CASES}
    VALUES.write_text(json.dumps(recorded, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(CASES)} cases of {kind_of_machine()} are in {VALUES}")


if __name__ == "__main__":
    record()
