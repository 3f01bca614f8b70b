"""A classifier that screens what people ask and what models answer: settings, and how it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.infer.screen import Screen

THRESHOLD = 0.5
"""When none is given."""


@dataclass(frozen=True, kw_only=True)
class ScreenOptions:
    """The safety screen."""

    screen: Place | None = None
    """Classifier that screens questions and answers: a model folder, a run folder, or an id on the hub."""
    screen_label: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    """Label of the classifier that is refused. The flag can be repeated; then the probabilities are added."""
    screen_threshold: float | None = None
    """Refuse at this probability or above; 0.5 when not given."""

    def __post_init__(self) -> None:
        for flag, given in (("--screen-label", self.screen_label), ("--screen-threshold", self.screen_threshold)):
            if self.screen is None and given not in ((), None):
                raise UserError("there is no classifier to screen with", flag, "name it: --screen FOLDER")

    def open(self, device: str = "auto") -> Screen | None:
        """The screen, None without one; raises as `load_screen`."""
        if self.screen is None:
            return None
        threshold = THRESHOLD if self.screen_threshold is None else self.screen_threshold
        return load_screen(self.screen, self.screen_label, threshold, device=device)


def load_screen(
    path: str | Path, labels: Sequence[str] | str, threshold: float = THRESHOLD, *, device: str = "auto"
) -> Screen:
    """A classifier that refuses texts with some of its labels, see `yeoul.infer.screen.Screen`.

    Args:
        path: as for `yeoul.load_classifier`.
        labels: those that are refused; their probabilities are added.
        threshold: refused from this probability on, above 0 and at most 1.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: no classifier there, one that cannot screen, or one without the label.
    """
    from yeoul.infer.screen import Screen
    from yeoul.recipes.classify import load_classifier

    _refuse_independent_labels(path)
    return Screen(load_classifier(path, device=device), labels, threshold)


def _refuse_independent_labels(path: str | Path) -> None:
    """UserError for a classifier whose labels do not exclude one another: their probabilities are other ones."""
    from yeoul.hub import local_folder
    from yeoul.model.classifier_folder import head_folder
    from yeoul.model.folder import model_folder, read_description

    folder = local_folder(path)
    if head_folder(folder) is not None:
        return
    config = model_folder(folder)
    if read_description(config).get("problem_type") in ("multi_label_classification", "regression"):
        what = "the labels of this classifier do not exclude one another, so it cannot screen"
        raise UserError(what, config, "give one with single_label_classification")
