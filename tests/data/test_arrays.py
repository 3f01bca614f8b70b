"""Damaged .npy files are named, whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yeoul.data.arrays import open_npy
from yeoul.errors import UserError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 140),
    cut=st.booleans(),
    bytes_there=st.binary(max_size=6) | st.text("(){}[],'\"09", max_size=6),
)
def test_a_damaged_file_opens_or_is_one_error(place: int, cut: bool, bytes_there: bytes | str, tmp_path: Path) -> None:
    file = tmp_path / "v.npy"
    np.save(file, np.arange(12, dtype=np.float32).reshape(3, 4))
    data = file.read_bytes()
    there = bytes_there.encode() if isinstance(bytes_there, str) else bytes_there
    file.write_bytes(data[:place] + there + (b"" if cut else data[place + len(there) :]))
    try:
        open_npy(file, "make it again")
    except UserError as error:
        assert str(error).endswith(f"({file}); make it again.") and "\n" not in str(error)


def test_whole_files_open(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    assert open_npy(tmp_path / "v.npy", "")[2, 3] == 11
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"the \.npy file is damaged.*o\.npy"):
        open_npy(tmp_path / "o.npy", "make it again")
    with pytest.raises(UserError, match="no such file"):
        open_npy(tmp_path, "make it again")
