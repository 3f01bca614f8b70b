"""What a conversion cost, as it is printed at its end."""

from __future__ import annotations

from yeoul.evaluate.energy import Energy
from yeoul.recipes.linearize.tables import cost_table, total_energy


def stage(tokens: int, seconds: float, **energy: object) -> dict[str, object]:
    known = dict(joules=None, source="", estimated_joules=None, assumed_watts=None, assumption=None)
    return {
        "tokens": tokens, "seconds": seconds, "energy": Energy(seconds=seconds, **(known | energy)).as_dict(),  # type: ignore[arg-type]
    }  # fmt: skip


def test_each_stage_and_all_together_with_how_the_energy_is_known() -> None:
    guess = dict(assumed_watts=20.0, assumption="20 W were assumed")
    stages = {
        "align": stage(3000, 60, estimated_joules=1200.0, **guess),
        "distil": stage(9000, 120, estimated_joules=2400.0, **guess),
    }
    lines = cost_table(stages).split("\n")
    assert [line.split()[0] for line in lines[:4]] == ["training", "align", "distil", "total"]
    assert lines[1].split()[1:7] == ["3,000", "1", "min", "0", "s", "50"] and lines[2].endswith("about 2.4 kJ")
    assert lines[3].split()[1:7] == ["12,000", "3", "min", "0", "s", "67"] and lines[3].endswith("about 3.6 kJ")
    assert lines[4].endswith("about 3.6 kJ, not measured: 20 W were assumed.")
    assert total_energy(stages).seconds == 180


def test_what_was_measured_is_said_to_be() -> None:
    stages = {"distil": stage(1000, 10, joules=500.0, source="cpu (RAPL)")}
    assert cost_table(stages).endswith("500.0 J, measured: cpu (RAPL).")
