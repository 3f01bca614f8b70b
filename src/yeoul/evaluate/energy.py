"""Joules of a stretch of work, measured where the machine can tell, else estimated with the assumption named.

CPU: the energy counters of Linux' powercap (RAPL: packages and their memory, which newer kernels let only root read).
GPU: power asked every second, summed up. Neither counts fans, disks and losses of the power supply.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.units import duration

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
WATTS_PER_CORE = 10.0
"""Assumed of a busy core with its share of the memory, where nothing can be measured."""
INTERVAL = 1.0
"""Seconds between two readings: power is summed up, and a counter must not wrap unseen (it takes minutes at least)."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a stretch of work took.

    Attributes:
        joules: measured; None where nothing could be.
        source: what was measured, "" for nothing: "cpu (RAPL)", "gpu (NVML)" or both.
        estimated_joules: `assumed_watts` times `seconds`; None where something was measured.
        assumption: the assumption behind `assumed_watts`, in words.
    """

    seconds: float
    joules: float | None
    source: str
    estimated_joules: float | None
    assumed_watts: float | None
    assumption: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def amount(self) -> str:
        """How much, without how it is known: "12.3 kJ", "about 12.3 kJ", "not known"."""
        if self.joules is not None:
            return _amount(self.joules)
        return "not known" if self.estimated_joules is None else f"about {_amount(self.estimated_joules)}"

    def __str__(self) -> str:
        if self.joules is not None:
            return f"{self.amount}, measured: {self.source}"
        return self.amount if self.estimated_joules is None else f"{self.amount}, not measured: {self.assumption}"


def total(parts: Iterable[Energy]) -> Energy:
    """What several stretches of work took together: measured where all of them were, not known where one is not."""
    parts = list(parts)
    seconds = sum(part.seconds for part in parts)
    measured = [part.joules for part in parts if part.joules is not None]
    if measured and len(measured) == len(parts):
        source = ", ".join(dict.fromkeys(part.source for part in parts))
        return Energy(seconds=seconds, joules=sum(measured), source=source, estimated_joules=None,
                      assumed_watts=None, assumption=None)  # fmt: skip
    known = [part.estimated_joules if part.joules is None else part.joules for part in parts]
    joules = [value for value in known if value is not None]
    whole = bool(parts) and len(joules) == len(parts)
    watts = {part.assumed_watts for part in parts if part.joules is None}
    words = list(dict.fromkeys(part.assumption for part in parts if part.assumption))
    if measured:
        words.append(f"{_amount(sum(measured))} of it was measured")
    return Energy(
        seconds=seconds, joules=None, source="", estimated_joules=sum(joules) if whole else None,
        assumed_watts=watts.pop() if whole and len(watts) == 1 else None, assumption="; ".join(words) or None,
    )  # fmt: skip


def stretched(energy: Energy, seconds: float) -> Energy:
    """For work of `seconds` of which `energy` was noted for a part: at the same power, and so an estimate.

    What took no longer than was noted, or is not known, is given back as it is.
    """
    known = energy.joules if energy.joules is not None else energy.estimated_joules
    if known is None or energy.seconds <= 0 or seconds <= 1.01 * energy.seconds:
        return energy
    watts = known / energy.seconds
    words = [energy.assumption] if energy.assumption else []
    words.append(
        f"{watts:.3g} W were assumed for {duration(seconds - energy.seconds)} that a killed run left no record of"
    )
    return Energy(
        seconds=seconds, joules=None, source="", estimated_joules=watts * seconds, assumed_watts=watts,
        assumption="; ".join(words),
    )  # fmt: skip


class Meter:
    """Measures what happens inside `with Meter() as meter:`; `meter.result` is there afterwards.

    Args:
        device: where the work is done; on a GPU its power is counted, too.
        watts: assumed where nothing can be measured; None assumes `WATTS_PER_CORE` for each usable core.
        powercap: folder of the kernel's counters.
        gpu_power: asks for the GPU's power in watts; None asks torch, then nvidia-smi.
        interval: seconds between two looks.
    """

    result: Energy

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        watts: float | None = None,
        powercap: Path = POWERCAP,
        gpu_power: Callable[[], float | None] | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._watts, self._interval = watts, interval
        self._counters = [Counter(zone) for zone in package_zones(powercap)]
        gpu = str(device).startswith("cuda")
        self._gpu = _GpuPower(gpu_power or (lambda: cuda_power(str(device)))) if gpu else None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="yeoul-energy")

    def __enter__(self) -> Meter:
        self._start = time.perf_counter()
        self._look()
        if self._counters or self._gpu:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._look()
        self.result = self._energy(time.perf_counter() - self._start)

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        for counter in self._counters:
            counter.look()
        if self._gpu:
            self._gpu.look()

    def _energy(self, seconds: float) -> Energy:
        parts: dict[str, float] = {}
        blind = self._gpu is not None and not self._gpu.known  # the CPU's part alone would pass for the whole
        if self._counters and not blind and all(counter.readable for counter in self._counters):
            parts["cpu (RAPL)"] = sum(counter.joules for counter in self._counters)
        if self._gpu and self._gpu.known:
            parts["gpu (NVML)"] = self._gpu.joules
        if parts:
            return Energy(
                seconds=seconds, joules=sum(parts.values()), source=" and ".join(parts),
                estimated_joules=None, assumed_watts=None, assumption=None,
            )  # fmt: skip
        watts, assumption = self._watts, f"{self._watts:g} W were assumed" if self._watts is not None else ""
        if watts is None and self._gpu is None:
            cores = runtime.usable_cpus()
            watts = WATTS_PER_CORE * cores
            assumption = f"{watts:g} W were assumed, {WATTS_PER_CORE:g} for each of {cores} cores"
        return Energy(
            seconds=seconds, joules=None, source="", assumed_watts=watts, assumption=assumption or None,
            estimated_joules=None if watts is None else watts * seconds,
        )  # fmt: skip


def package_zones(powercap: Path = POWERCAP) -> list[Path]:
    """Zones of whole CPU packages, and of memory that they do not count.

    Left out: cores and integrated graphics (parts of a package), "psys" (has the packages in it) and the same
    counters read through another interface ("intel-rapl-mmio").
    """
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []:
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if name.startswith("package") or name == "dram":
            zones.append(zone)
    return zones


class Counter:
    """One energy counter of the kernel, in microjoules, that begins again at 0 behind `max_energy_range_uj`."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self.joules, self.readable = 0.0, True
        self._last: int | None = None
        try:
            self._range = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            self._range, self.readable = 0, False

    def look(self) -> None:
        """Adds what was used since the last reading."""
        try:
            value = int(self._file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            self.readable = False
            return
        if self._last is not None:
            used = value - self._last
            self.joules += (used if used >= 0 else used + self._range) / 1e6
        self._last = value


class _GpuPower:
    """Sums power up over time, by the trapezoid rule."""

    def __init__(self, power: Callable[[], float | None]) -> None:
        self._power, self.joules, self.known = power, 0.0, True
        self._last: tuple[float, float] | None = None

    def look(self) -> None:
        watts = self._power()
        now = time.perf_counter()
        if watts is None:
            self.known = False
            return
        if self._last is not None:
            then, before = self._last
            self.joules += (now - then) * (watts + before) / 2
        self._last = now, watts


def cuda_power(device: str) -> float | None:
    """Watts that a GPU draws now: from NVML through torch, else from nvidia-smi; None where neither can tell."""
    import torch

    if not torch.cuda.is_available():
        return None
    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    try:
        return torch.cuda.power_draw(index) / 1000  # needs the package nvidia-ml-py
    except (ModuleNotFoundError, RuntimeError):
        pass
    card = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    command = ["nvidia-smi", f"--id={card}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _amount(joules: float) -> str:
    """12,345 -> "12.3 kJ"."""
    return f"{joules / 1000:,.1f} kJ" if joules >= 1000 else f"{joules:.1f} J"
