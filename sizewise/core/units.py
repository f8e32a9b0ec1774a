"""Units: how quantities are written for people and read from them. Sizes are decimal (1 MB = 1,000,000 bytes)."""

import re

from sizewise.core.errors import UsageError

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_DURATIONS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_bytes(text: str) -> int:
    """`200MB`, `1.5 GiB` or a plain number of bytes."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    unit = _SIZES.get(match.group(2).lower() or "b") if match else None
    if not match or unit is None:
        raise UsageError(f"{text!r} is no size; write for example 200MB or 1.5GB")
    return int(float(match.group(1)) * unit)


def parse_seconds(text: str) -> float:
    """`90s`, `5m`, `1h30m`, `250ms` or a plain number of seconds."""
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text.strip()):
        return float(text)
    parts = re.findall(r"([0-9]*\.?[0-9]+)(ms|min|h|m|s)", text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().replace(" ", ""):
        raise UsageError(f"{text!r} is no duration; write for example 90s, 5m or 1h30m")
    return sum(float(number) * _DURATIONS[unit] for number, unit in parts)


def format_bytes(count: float | None) -> str:
    """Bytes for people: `98 MB`, `1.5 GB`; a dash where there is no number."""
    if count is None:
        return "-"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size * 0.9995:
            scaled = count / size
            return f"{scaled:.3g} {unit}" if scaled < 100 else f"{scaled:.0f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float | None) -> str:
    """Seconds for people: `37 µs`, `14 ms`, `2.1 s`, `3 min 20 s`; a dash where there is no number."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_count(count: float | None) -> str:
    """Large counts for people: `135M`, `1.2B`."""
    if count is None:
        return "-"
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size * 0.9995:  # 999.6 million reads 1B, never 1e+03M
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
