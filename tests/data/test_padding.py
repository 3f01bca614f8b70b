"""Padding: ids, mask, side."""

import pytest

from yeoul.data.padding import pad_batch


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("left", [[1, 2, 3], [9, 9, 4], [9, 9, 9]], [[1, 1, 1], [0, 0, 1], [0, 0, 0]]),
        ("right", [[1, 2, 3], [4, 9, 9], [9, 9, 9]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
    ],
)
def test_pads_on_either_side(side, ids, mask):
    input_ids, attention_mask = pad_batch([[1, 2, 3], [4], []], 9, side)
    assert input_ids.tolist() == ids
    assert attention_mask.tolist() == mask


def test_refuses_what_cannot_be_padded():
    with pytest.raises(ValueError):
        pad_batch([[], []], 0)
    with pytest.raises(ValueError):
        pad_batch([[1]], 0, side="middle")
