"""On which machine a number was measured. A time, a memory or an energy without it says nothing."""

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sizewise.core.digests import digest_of_json
from sizewise.core.units import format_bytes

_LIBRARIES = ("sizewise", "numpy", "scikit-learn", "xllamacpp", "torch", "transformers")
_POWER = Path("/sys/class/power_supply")


@functools.cache
def _fingerprint() -> dict[str, Any]:
    import psutil

    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list(gpu_names()),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
        "power": power_source(),
    }
    # The name is of the hardware and the software; whether the plug is in changes by the minute.
    machine["id"] = digest_of_json({key: item for key, item in machine.items() if key != "power"})[7:19]
    return machine


def fingerprint() -> dict[str, Any]:
    """CPU, memory, GPUs, system, library versions and power source (None: unknown), with a short `id` for all of it."""
    return dict(_fingerprint())


def machine_id() -> str:
    """The fingerprint's short id; what a Measurement carries as its `machine`."""
    return str(_fingerprint()["id"])


def describe(machine: dict[str, Any]) -> str:
    """A fingerprint in one line for people."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return f"{machine['cpu']}, {machine['threads']} threads, {format_bytes(machine['memory_bytes'])}, {gpus}"


def cpu_name() -> str:
    """The processor's name as it gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware", "Processor"):
                return " ".join(value.split())
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver lists; none where there is no driver."""
    names = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = information.read_text(errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(names)


def power_source() -> str | None:
    """`mains` or `battery`; None where the system does not say."""
    supplies = {}
    for supply in sorted(_POWER.glob("*")) if _POWER.is_dir() else ():
        try:
            supplies[(supply / "type").read_text().strip()] = supply
        except OSError:
            continue
    try:
        if "Mains" in supplies and (supplies["Mains"] / "online").read_text().strip() == "1":
            return "mains"
        if "Battery" in supplies and (supplies["Battery"] / "status").read_text().strip() == "Discharging":
            return "battery"
    except OSError:
        return None
    return "mains" if "Battery" in supplies or "Mains" in supplies else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
