"""What figures were measured on."""

from __future__ import annotations

from yeoul import runtime
from yeoul.units import size
from yeoul.version import VERSION


def machine_facts() -> tuple[tuple[str, str], ...]:
    """What the figures were measured on, in words."""
    facts = runtime.machine()
    lines = [
        ("processor", facts["cpu"]),
        ("usable cores", str(facts["cores"])),
        ("instruction sets", ", ".join(facts["features"]) or "none that matter"),
        ("threads", str(facts["threads"])),
        ("memory", size(facts["memory"])),
        ("GPU", ", ".join(facts["gpus"])),
        (
            "software",
            f"Yeoul {VERSION}, torch {facts['torch']}, Python {facts['python']}, {facts['system']}",
        ),
    ]
    return tuple((name, value) for name, value in lines if value)
