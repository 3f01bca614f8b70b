"""Names are those of the files, and the flags of `yeoul linearize` know them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yeoul.errors import UserError
from yeoul.model.feature_maps.base import FeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.registry import Registry
from yeoul.model.state_updates.registry import STATE_UPDATES


def test_every_file_holds_the_class_that_it_is_named_after() -> None:
    assert {"dijiang", "dijiang-code", "fourier", "cosformer"} <= set(FEATURE_MAPS.names)
    assert {"additive", "delta", "retention"} <= set(STATE_UPDATES.names)
    assert all(issubclass(FEATURE_MAPS[name], FeatureMap) for name in FEATURE_MAPS.names)
    assert all(issubclass(STATE_UPDATES[name], LinearAttention) for name in STATE_UPDATES.names)
    with pytest.raises(UserError, match="performr") as caught:
        FEATURE_MAPS["performr"]
    assert "performer" in str(caught.value.fix)


def test_a_new_file_is_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added_maps").mkdir()
    for name in ("__init__", "registry", "shared"):
        (tmp_path / "added_maps" / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "added_maps" / "of_mine.py").write_text(
        "import test_registry_of_maps\n\n@test_registry_of_maps.MAPS.register\nclass OfMine: pass\n"
    )
    registry: Registry[object] = Registry("added_maps", tmp_path / "added_maps", "the map", shared=("shared",))
    module = type(sys)("test_registry_of_maps")
    module.MAPS = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_registry_of_maps", module)
    assert registry.names == ("of-mine",)
    assert registry["of-mine"].__name__ == "OfMine"
