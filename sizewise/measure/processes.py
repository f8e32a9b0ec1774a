"""CPU time and memory of the processes that run a model, read from the operating system."""

import os
import sys
import time
from collections.abc import Iterable

import psutil


def process_tree(pids: Iterable[int]) -> list[psutil.Process]:
    """The processes and all that they started; those that have ended are left out.

    This process itself stands for itself only: what it started are other models.
    """
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            family = [process] if pid == os.getpid() else [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        found.update((member.pid, member) for member in family)
    return list(found.values())


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that the processes, and children of theirs that have ended, have used so far."""
    total = 0.0
    for process in process_tree(pids):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += exact_cpu_seconds(process.pid) or times.user + times.system
        if process.pid != os.getpid():
            total += times.children_user + times.children_system
    return total


def exact_cpu_seconds(pid: int) -> float | None:
    """A process's CPU time in nanosecond steps; the usual counters step by 10 ms. None where there is no such clock."""
    if pid == os.getpid():
        return time.process_time()
    if not sys.platform.startswith("linux"):
        return None
    try:
        # The kernel's clock of another process: its number inverted, three bits for the kind (2: scheduled time).
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


class CpuClock:
    """CPU seconds spent on a model's behalf since `start`: in its processes, and in the thread that asks it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = tuple(pids)
        self.start()

    def start(self) -> None:
        """Begin at zero."""
        self._theirs, self._ours = cpu_seconds(self.pids), time.thread_time()

    def read(self) -> float | None:
        """Seconds since the start; None for a model without processes here (an endpoint), whose work cannot be seen."""
        if not self.pids:
            return None
        theirs = cpu_seconds(self.pids) - self._theirs
        # A model within this process: its time is already that of all threads.
        return max(0.0, theirs if os.getpid() in self.pids else theirs + time.thread_time() - self._ours)
