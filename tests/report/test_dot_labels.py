"""Labels beside dots: near where there is room, apart where there is none."""

from __future__ import annotations

import pytest

from yeoul.report.content import Dot, Scatter
from yeoul.report.content import Text as Words
from yeoul.report.dot_labels import dot_labels

pytest.importorskip("matplotlib")


def test_labels_of_dots_in_one_place_stand_apart() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(4.6, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    dots = [(1.0, 1.0), (1.001, 1.0), (1.0, 1.001), (0.0, 0.0), (1.0, 0.999)]
    axes.plot([x for x, _ in dots], [y for _, y in dots], "o")
    dot_labels(axes, [(x, y, f"tokenizer-{i}", "black") for i, (x, y) in enumerate(dots)], dots, "grey")
    figure.draw_without_rendering()
    # Without the lines that lead to the dots, and the space above and below the letters.
    boxes = [Text.get_window_extent(label).expanded(0.95, 0.8) for label in axes.texts]
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    alone = axes.texts[3]
    assert alone.xyann == (8, 7) and alone.arrow_patch is None, "a label that has room stands beside its dot"
    assert any(label.arrow_patch is not None for label in axes.texts)


def test_a_scatter_with_near_values_has_ticks() -> None:
    from yeoul.report.plots import scatter

    plot = scatter(Scatter(
        name="near", x_label="bytes per token (more is shorter)", y_label="bits per byte of held-out text",
        dots=(Dot(x=1, y=2.2, label="a"), Dot(x=2, y=2.4, label="b")), caption=Words("", ""), alt=Words("", ""),
    ))  # fmt: skip
    drawn = plot.panels[0].in_language("ko")
    assert "바이트당 비트" in drawn and ">2.2<" in drawn and ">2.4<" in drawn
