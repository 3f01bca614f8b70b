"""Energy from a kernel's folder made by hand, from a power that is known, and estimated."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from yeoul import runtime
from yeoul.evaluate import energy
from yeoul.evaluate.energy import Counter, Energy, Meter, package_zones, stretched, total


def zone(folder: Path, name: str, label: str, start: int, wraps_at: int = 1_000_000) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(label + "\n")
    (path / "energy_uj").write_text(f"{start}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return path


def test_only_whole_packages_and_their_memory_count(tmp_path):
    wanted = [zone(tmp_path, "intel-rapl:0", "package-0", 0), zone(tmp_path, "intel-rapl:0:1", "dram", 0)]
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    zone(tmp_path, "intel-rapl:1", "psys", 0)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    (tmp_path / "intel-rapl").mkdir()
    assert package_zones(tmp_path) == wanted
    assert package_zones(tmp_path / "none") == []


def test_a_counter_that_wraps_goes_on_counting(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    counter = Counter(path)
    counter.look()
    for value in (950_000, 20_000, 30_000, 10_000):  # wraps twice
        (path / "energy_uj").write_text(str(value))
        counter.look()
    # 0.05, then 0.07 across the wrap, 0.01, then 0.98 across the next
    assert counter.joules == pytest.approx(1.11) and counter.readable


def test_the_packages_are_summed(tmp_path):
    zones = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 500) for i in (0, 1)]
    with Meter(powercap=tmp_path, interval=60) as meter:
        for i, path in enumerate(zones):
            (path / "energy_uj").write_text(str(250_500 + i * 500_000))
    found = meter.result
    assert found.joules == pytest.approx(1.0) and found.source == "cpu (RAPL)" and found.seconds > 0
    assert found.estimated_joules is None and str(found) == "1.0 J, measured: cpu (RAPL)"


def test_a_wrap_between_the_ends_is_seen_by_looking_meanwhile(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)

    def write(value: int) -> None:  # whole at once: a look must not find an empty file
        (path / "new").write_text(str(value))
        (path / "new").rename(path / "energy_uj")

    with Meter(powercap=tmp_path, interval=0.01) as meter:
        for value in (700_000, 400_000, 100_000):  # 0.7 up each time, round the range of 1 J
            write(value)
            deadline = time.monotonic() + 20
            while meter._counters[0]._last != value and time.monotonic() < deadline:
                time.sleep(0.005)
    assert meter.result.joules == pytest.approx(2.1)


def test_without_counters_it_is_an_estimate_that_names_its_assumption(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 3)
    with Meter(powercap=tmp_path) as meter:
        time.sleep(0.01)
    found = meter.result
    assert found.joules is None and found.assumed_watts == 30
    assert found.estimated_joules == pytest.approx(30 * found.seconds)
    assert found.assumption == "30 W were assumed, 10 for each of 3 cores" and "not measured" in str(found)
    with Meter(powercap=tmp_path, watts=65) as meter:
        pass
    assert meter.result.assumed_watts == 65 and meter.result.assumption == "65 W were assumed"


def test_an_unreadable_counter_is_no_measurement(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (path / "energy_uj").unlink()  # as for users other than root: it cannot be read
    (path / "energy_uj").mkdir()
    with Meter(powercap=tmp_path) as meter:
        pass
    assert meter.result.joules is None and meter.result.estimated_joules is not None


def test_power_of_a_gpu_is_summed_up_over_time(tmp_path):
    with Meter("cuda", powercap=tmp_path, gpu_power=lambda: 200.0, interval=0.01) as meter:
        time.sleep(0.05)
    found = meter.result
    assert found.joules == pytest.approx(200 * found.seconds, rel=0.2) and found.source == "gpu (NVML)"


def test_a_gpu_that_tells_nothing_leaves_the_energy_unknown(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 0)  # the CPU's part alone would pass for the whole
    with Meter("cuda:0", powercap=tmp_path, gpu_power=lambda: None) as meter:
        pass
    assert meter.result.joules is None and meter.result.estimated_joules is None and str(meter.result) == "not known"


def test_an_error_inside_passes_and_the_watch_ends(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = Meter(powercap=tmp_path)
    with pytest.raises(RuntimeError, match="work"), meter:
        raise RuntimeError("work")
    assert not meter._thread.is_alive() and meter.result.joules == 0


def test_amounts_read_well():
    assert energy._amount(12_345) == "12.3 kJ" and energy._amount(999) == "999.0 J"


def measured(joules: float, seconds: float = 10.0, source: str = "cpu (RAPL)") -> Energy:
    return Energy(
        seconds=seconds, joules=joules, source=source, estimated_joules=None, assumed_watts=None, assumption=None
    )  # fmt: skip


def assumed(watts: float, seconds: float = 10.0) -> Energy:
    return Energy(seconds=seconds, joules=None, source="", estimated_joules=watts * seconds, assumed_watts=watts,
                  assumption=f"{watts:g} W were assumed")  # fmt: skip


def test_stretches_of_work_are_summed_and_say_how_they_are_known():
    assert str(total([measured(1500), measured(500)])) == "2.0 kJ, measured: cpu (RAPL)"
    both = total([assumed(20), assumed(20)])
    assert (both.seconds, both.estimated_joules, both.assumed_watts) == (20, 400, 20)
    assert str(both) == "about 400.0 J, not measured: 20 W were assumed"
    mixed = total([measured(100), assumed(20)])
    assert mixed.joules is None and mixed.estimated_joules == 300 and "100.0 J of it was measured" in str(mixed)
    unknown = Energy(
        seconds=1, joules=None, source="", estimated_joules=None, assumed_watts=None, assumption=None
    )  # fmt: skip
    assert total([assumed(20), unknown]).amount == total([]).amount == "not known"


def test_what_a_killed_run_left_out_is_estimated_by_its_power():
    assert stretched(measured(100), 10.05) == measured(100)
    longer = stretched(measured(100), 30)
    assert longer.joules is None and longer.estimated_joules == 300 and longer.assumed_watts == 10
    assert "20 s that a killed run left no record of" in str(longer)
