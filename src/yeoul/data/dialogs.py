"""Dialogs as text: one line a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yeoul.errors import UserError

SPEAKERS = {"user": "가", "system": "나"}
"""How speakers are written, as in Korean textbooks; other names are written as they are."""


def render_dialog(conversation: Sequence[Any], where: object | None = None) -> str:
    """The turns of a dialog as lines "가: ..." and "나: ...".

    Args:
        conversation: [{"speaker": "user" | "system" | name, "utterance": text}, ...].
        where: what to name in an error.

    Raises:
        UserError: not of that schema.
    """
    lines = []
    for number, turn in enumerate(conversation, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("utterance"), str):
            raise UserError(f'turn {number} of the dialog has no text under "utterance"', where)
        speaker = turn.get("speaker")
        if not isinstance(speaker, str):
            raise UserError(f'turn {number} of the dialog has no name under "speaker"', where)
        lines.append(f"{SPEAKERS.get(speaker, speaker)}: {' '.join(turn['utterance'].split())}")
    return "\n".join(lines)
