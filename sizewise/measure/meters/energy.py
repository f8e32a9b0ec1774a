"""Energy: read from the machine's own counters where they can be read, else estimated, and labelled so.

RAPL counts what the processor packages use, NVML what the GPUs use: all of it, idling and other programs included, so
measure on a quiet machine. Where neither can be read (virtual machines, counters for root only) processor time is
multiplied by a stated power per busy core. That is an estimate within a factor of two or three; it ranks models on one
machine and is not to be compared with a measurement.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from sizewise.core.measurement import Measurement, unmeasured
from sizewise.measure.machine import gpu_names, machine_id
from sizewise.measure.processes import CpuClock

WATTS_PER_CORE = 5.0  # server processors of 2020 to 2024: 180 to 400 W for 32 to 96 cores, fully busy
POWERCAP = Path("/sys/class/powercap")
_NAME, _UNIT = "energy_j", "J"


class EnergyWatch:
    """Counts joules while the `with` block runs."""

    def __init__(self, pids: Iterable[int], watts_per_core: float = WATTS_PER_CORE, powercap: Path = POWERCAP) -> None:
        self.clock = CpuClock(pids)
        self.watts_per_core = watts_per_core
        self.powercap = powercap
        self.cpu_s: float | None = None
        self._package_j: float | None = None
        self._gpu_j: float | None = None

    def __enter__(self) -> Self:
        self._packages, self._gpus = read_rapl(self.powercap), _read_gpus()
        self.clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cpu_s = self.clock.read()
        self._package_j = spent(self._packages, read_rapl(self.powercap))
        after = _read_gpus()
        self._gpu_j = after - self._gpus if after is not None and self._gpus is not None else None

    def measurement(self) -> Measurement:
        """Joules of the block: measured where there are counters, else estimated, else None with the reason."""
        if not self.clock.pids:
            return unmeasured(_NAME, _UNIT, "the model runs on another machine")
        if self._package_j is None and gpu_names() and self._gpu_j is None:
            return unmeasured(_NAME, _UNIT, "neither RAPL nor NVML can be read, and a GPU's share cannot be estimated")
        if self._package_j is None:
            estimate = energy(self.cpu_s, self.watts_per_core)
            return estimate if self._gpu_j is None else _with_gpu(estimate, self._gpu_j)
        method = "RAPL, all processor packages" + ("" if self._gpu_j is None else " + NVML, all GPUs")
        joules = self._package_j + (self._gpu_j or 0.0)
        return Measurement(_NAME, _UNIT, joules, method=method, machine=machine_id())


def energy(cpu_s: float | None, watts_per_core: float = WATTS_PER_CORE) -> Measurement:
    """An estimate from processor time.

    Args:
        cpu_s: user and system seconds; None where they cannot be seen.
        watts_per_core: power of one busy core, its share of memory and package included.
    """
    if cpu_s is None:
        return unmeasured(_NAME, _UNIT, "processor time cannot be seen")
    method = f"processor seconds x {watts_per_core:g} W per busy core (stated)"
    return Measurement(
        _NAME, _UNIT, cpu_s * watts_per_core, provenance="estimated", method=method, machine=machine_id()
    )


def read_rapl(powercap: Path = POWERCAP) -> dict[str, tuple[int, int]] | None:
    """Microjoules so far and the value at which the counter starts again, by package; None where they can't be read."""
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:  # a part (cores, memory) of a package
            continue
        try:
            counter, limit = (zone / "energy_uj").read_text(), (zone / "max_energy_range_uj").read_text()
            found[zone.name] = int(counter), int(limit)
        except (OSError, ValueError):
            return None
    return found or None


def spent(before: dict[str, tuple[int, int]] | None, after: dict[str, tuple[int, int]] | None) -> float | None:
    """Joules between two readings, each counter having started again at most once."""
    if before is None or after is None:
        return None
    total = 0
    for name, (end, limit) in after.items():
        start = before[name][0]
        total += end - start if end >= start else end + limit - start
    return total / 1e6


def _read_gpus() -> float | None:
    """Joules that all GPUs have used so far; None where there is none or its driver does not count."""
    if not gpu_names():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return float(sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)) / 1e3
    except pynvml.NVMLError:
        return None


def _with_gpu(estimate: Measurement, gpu_j: float) -> Measurement:
    method = estimate.method + " + NVML, all GPUs"
    return Measurement(
        _NAME, _UNIT, (estimate.value or 0.0) + gpu_j, provenance="estimated", method=method, machine=machine_id()
    )
