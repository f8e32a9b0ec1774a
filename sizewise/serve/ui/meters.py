"""Counters of a loaded model's processes: two readings, before and after an answer, say what it took."""

import os
from typing import Any

from sizewise.measure.machine import gpu_names
from sizewise.measure.meters.energy import energy
from sizewise.measure.meters.memory import high_water_bytes
from sizewise.measure.processes import cpu_seconds


def nothing_read(why: str) -> dict[str, Any]:
    """No figure, and why: an idle model may go at any time to make room for another."""
    return {"energy_j": None, "energy_why": why, "memory_bytes": None, "memory_why": why}


def read_meters(pids: list[int], memory_bytes: int | None) -> dict[str, Any]:
    """Joules so far and the most memory so far; a None says why.

    Args:
        pids: the model's processes; empty where it runs on another machine.
        memory_bytes: what the manager counts for it, where the system keeps no high-water mark.
    """
    if not pids:
        return nothing_read("the model runs on another machine")
    spent = energy(cpu_seconds(pids))
    marks = [mark for pid in pids if pid != os.getpid() and (mark := high_water_bytes(pid))]
    gpu = "" if not gpu_names() else "; the GPU's share is not in it"
    return {
        "energy_j": spent.value,
        "energy_why": spent.why,
        "energy_source": spent.provenance,
        "energy_method": spent.method + gpu,
        "memory_bytes": sum(marks) if marks else memory_bytes,
        "memory_method": "most that the model's process has held" if marks else "counted by the manager",
    }
