"""What is read from the text of a map's or an update's file is what its class says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yeoul.model.declarations import declared_class
from yeoul.model.feature_maps.base import FeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.registry import Registry
from yeoul.model.state_updates.registry import STATE_UPDATES

MAP_SETTINGS = (
    "choices", "learned", "options", "learns_mass", "signed", "uses_positions", "keep_in_fp32", "scale_parameters",
    "bandwidths",
)  # fmt: skip


def read(registry: Registry[Any], name: str) -> Any:
    """The declarations of a class of this name, from the text although it has been imported."""
    return declared_class(f"{registry.package}.{name.replace('-', '_')}", "")


@pytest.mark.parametrize("name", FEATURE_MAPS.names)
def test_a_map_says_the_same_in_its_text(name: str) -> None:
    declared, imported = read(FEATURE_MAPS, name), FEATURE_MAPS[name]
    assert declared is not imported and declared.__name__ == imported.__name__ and not issubclass(declared, FeatureMap)
    for setting in MAP_SETTINGS:
        assert getattr(declared, setting) == getattr(imported, setting), setting
    for pairs in (False, True):
        assert declared.default_features(24, pairs) == imported.default_features(24, pairs)


@pytest.mark.parametrize("name", STATE_UPDATES.names)
def test_a_state_update_says_the_same_in_its_text(name: str) -> None:
    declared, imported = read(STATE_UPDATES, name), STATE_UPDATES[name]
    assert not issubclass(declared, LinearAttention)
    for setting in ("takes_signed", "takes_decay"):
        assert getattr(declared, setting) == getattr(imported, setting), setting
    assert declared.state_numbers(20, 8) == imported.state_numbers(20, 8)
    for decay in ("none", "fixed", "learned", "gated"):
        assert declared.gate_numbers(decay) == imported.gate_numbers(decay)


def test_what_is_compared_is_all_that_a_map_may_say() -> None:
    assert set(MAP_SETTINGS) == {name for name in FeatureMap.__annotations__ if name in vars(FeatureMap)}


def test_constants_of_other_modules_and_class_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "declared_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shared.py").write_text(
        "from typing import ClassVar\nimport not_installed\n\nEIGHT = 2**3\nNAMES: tuple[str, ...] = ('a', 'b')\n\n"
        "class Base(not_installed.Module):\n    first: ClassVar[tuple[str, ...]] = NAMES\n"
        "    second: ClassVar[int] = 0\n"
    )
    (package / "of_mine.py").write_text(
        "from declared_here.shared import EIGHT, Base as Other\nimport not_installed\n\nTWICE = 2 * EIGHT\n\n\n"
        "@REGISTRY.register\nclass OfMine(Other):\n    second: ClassVar[int] = TWICE\n"
        "    third = not_installed.value\n\n"
        "    @classmethod\n    def size(cls, n: int) -> int:\n        return max(n, EIGHT) + cls.second\n\n"
        "    def forward(self) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    declared: Any = declared_class("declared_here.of_mine", "")
    assert (declared.first, declared.second, declared.size(3)) == (("a", "b"), 16, 24)
    assert not hasattr(declared, "third") and not hasattr(declared, "forward")
    with pytest.raises(LookupError):
        declared_class("declared_here.shared", "")


def test_configurations_need_no_torch() -> None:
    program = (
        "import sys\nfrom yeoul.model.config import ModelConfig\n"
        "from yeoul.model.feature_maps.registry import FEATURE_MAPS\n"
        "from yeoul.model.state_updates.registry import STATE_UPDATES\n"
        "for name in FEATURE_MAPS.names:\n    for update in STATE_UPDATES.names:\n"
        "        if update == 'delta' or not FEATURE_MAPS.declared(name).signed:\n"
        "            ModelConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=1, attention='hybrid',\n"
        "                        state_update=update, feature_map={'name': name})\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
