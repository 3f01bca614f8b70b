"""Labels beside the dots of a plot, where they cover neither dots nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge, points."""
HEIGHTS = (7, -12, -3, 17, -22, 27, -32, 37, -42, 47, -52, -62, -72, -82)
"""Points above its dot at which a label may stand; the first where it covers nothing is taken."""
NEAR = HEIGHTS[:3]
LETTER, LINE = 5.4, 9.0
"""Points that a letter and a line of a label take, about."""
PANEL = 60
"""Points of an inch of a figure that its panel takes; the rest is for its labels."""


def dot_labels(
    axes: Axes, labels: Sequence[tuple[float, float, str, str]], dots: Sequence[tuple[float, float]], ink: str
) -> None:
    """Labels on the side of their dots where there is more room; those that come first have the first choice.

    Args:
        axes: with their limits and scales as they will be.
        labels: (x, y, label, colour).
        dots: (x, y) of all dots, which no label may cover.
        ink: colour of the thin line that leads from a label that stands far from its dot.
    """
    low, high = axes.get_xlim()
    size = axes.get_figure().get_size_inches() * PANEL  # type: ignore[union-attr]
    to_points = axes.transScale + axes.transLimits
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in (to_points.transform(dot) * size for dot in dots)]
    line: Any = {"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    for x, y, label, colour in labels:
        sides = (-8, 8) if x > (low + high) / 2 else (8, -8)
        at = to_points.transform((x, y)) * size
        boxes = {(side, up): _box(at, side, up, len(label) * LETTER) for side in sides for up in HEIGHTS}
        inside = ((place, box) for place, box in boxes.items() if box[0] > 0 and box[1] > 0 and box[2] < size[0])
        free = (place for place, box in inside if not any(_touch(box, other) for other in taken))
        aside, up = next(free, (sides[0], HEIGHTS[0]))
        taken.append(boxes[aside, up])
        axes.annotate(
            label, (x, y), xytext=(aside, up), textcoords="offset points", ha="right" if aside < 0 else "left",
            color=colour, fontweight="bold", fontsize=8.5, arrowprops=None if up in NEAR else line,
        )  # fmt: skip


def _box(at: Sequence[float], side: float, up: float, width: float) -> Box:
    left, bottom = at[0] + side - (width if side < 0 else 0), at[1] + up - 2
    return left, bottom, left + width, bottom + LINE


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
