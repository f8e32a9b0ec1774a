"""Peak memory of the processes that run a model.

Of a process of the model's own the kernel keeps the high-water mark, from its start, loading included. Otherwise, and
for several processes together, memory is sampled while the work runs: what is resident, and for several processes
their proportional share, so that a page that two of them map is counted once.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from sizewise.core.measurement import Measurement, unmeasured
from sizewise.measure.machine import machine_id
from sizewise.measure.processes import process_tree

INTERVAL_S = 0.02
_LOOK_EVERY = 25  # samples between two looks for new processes, which go through all that the system has
_NAME, _UNIT = "peak_memory_bytes", "bytes"


class PeakMemory:
    """Watches processes while the `with` block runs; `measurement()` says the most that they held together."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = tuple(pids)
        self.peak = 0
        self.samples = 0
        self.processes = 0
        self._family: list[psutil.Process] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def measurement(self) -> Measurement:
        """The peak so far."""
        if not self.pids:
            return unmeasured(_NAME, _UNIT, "the model runs where its memory cannot be seen")
        mark = high_water_bytes(self.pids[0]) if self.processes == 1 and os.getpid() not in self.pids else None
        if not self.peak and not mark:
            return unmeasured(_NAME, _UNIT, "the model's process had ended")
        if mark and mark >= self.peak:
            method = "VmHWM of the model's process, since it was started"
        elif os.getpid() in self.pids:
            method = f"resident memory of this whole process, Python included, every {INTERVAL_S * 1e3:.0f} ms"
        else:
            method = f"resident or proportional memory of the process tree, every {INTERVAL_S * 1e3:.0f} ms"
        return Measurement(_NAME, _UNIT, max(self.peak, mark or 0), n=self.samples, method=method, machine=machine_id())

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        if self.samples % _LOOK_EVERY == 0:
            self._family = process_tree(self.pids)
            self.processes = max(self.processes, len(self._family))
        shared = len(self._family) > 1
        self.peak = max(self.peak, sum(_bytes_of(process, shared=shared) for process in self._family))
        self.samples += 1


def memory(pids: Iterable[int]) -> PeakMemory:
    """Watch these processes, and all that they start, for as long as a `with` block runs."""
    return PeakMemory(pids)


def high_water_bytes(pid: int) -> int | None:
    """The most that one process has held in memory since it began; None where the system does not keep it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _bytes_of(process: psutil.Process, *, shared: bool) -> int:
    try:
        if shared:
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
        return int(process.memory_info().rss)
    except (OSError, psutil.Error):  # it has ended, or its pages are not ours to see
        return 0
