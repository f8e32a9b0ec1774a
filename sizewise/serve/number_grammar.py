"""Numbers within bounds as GBNF: digits are written from the left, so a range becomes a few runs of digits."""

import math

from sizewise.core.errors import UsageError

_TOP = 10**15 - 1  # the largest whole part; all of these are exact in any reader of JSON
_FRACTION = '("." [0-9]{1,15})?'


# minimum, maximum, exclusiveMinimum, exclusiveMaximum
Ends = tuple[float | None, ...]


def integers(ends: Ends, where: str = "the schema") -> str:
    """Whole numbers within bounds.

    Raises:
        UsageError: none lies between them.
    """
    low, high, above, below = ends
    if ends == (None,) * 4:
        return '"-"? ("0" | [1-9] [0-9]{0,14})'
    lows = [math.ceil(low)] if low is not None else []
    lows += [math.floor(above) + 1] if above is not None else []
    highs = [math.floor(high)] if high is not None else []
    highs += [math.ceil(below) - 1] if below is not None else []
    least, most = max([-_TOP, *lows]), min([_TOP, *highs])
    if least > most:
        raise UsageError(f"{where}: no whole number lies between its bounds")
    return " | ".join(_signed(least, most))


def numbers(ends: Ends, where: str = "the schema") -> str:
    """Numbers within bounds, which must be whole themselves where there are any.

    Raises:
        UsageError: a bound has a fraction, or nothing lies between them.
    """
    low, high, above, below = ends
    if ends == (None,) * 4:
        return f'"-"? ("0" | [1-9] [0-9]{{0,14}}) {_FRACTION} ([eE] [-+]? [0-9]{{1,2}})?'
    if any(end is not None and end != int(end) for end in ends):
        raise UsageError(f"{where}: a bound with a fraction cannot be enforced: round it")
    least = max([-_TOP, *(int(end) for end in (low, above) if end is not None)])
    most = min([_TOP, *(int(end) for end in (high, below) if end is not None)])
    open_low, open_high = above is not None and above >= least, below is not None and below <= most
    if least > most or (least == most and (open_low or open_high)):
        raise UsageError(f"{where}: no number lies between its bounds")
    parts: list[str] = []
    if most > 0:
        parts += _between(max(0, least), most, open_low and least >= 0, open_high)
    if least < 0:
        parts += [f'"-" ({one})' for one in _between(max(0, -most), -least, open_high and most <= 0, open_low)]
    if least <= 0 <= most and not (least == 0 and open_low) and not (most == 0 and open_high):
        parts.append('"0"')
    return " | ".join(dict.fromkeys(parts))


def _between(low: int, high: int, open_low: bool, open_high: bool) -> list[str]:
    """Numbers with fractions from `low` to `high`, neither below 0; the ends included unless they are open."""
    parts = []
    first = low + 1 if open_low else low
    if open_low:
        parts.append(f'"{low}" "." [0-9]{{0,8}} [1-9]')
    if first <= high - 1:
        parts.append(f"({' | '.join(_digits(first, high - 1))}) {_FRACTION}")
    if not open_high and (low < high or not open_low):
        parts.append(f'"{high}" ("." "0")?')
    return parts


def _signed(low: int, high: int) -> list[str]:
    parts = _digits(max(low, 0), high) if high >= 0 else []
    if low < 0:
        parts += [f'"-" {one}' for one in _digits(max(1, -high), -low)]
    return parts


def _digits(low: int, high: int) -> list[str]:
    """Runs of digits for all whole numbers from `low` to `high`, neither below 0."""
    found: list[str] = []
    for length in range(len(str(low)), len(str(high)) + 1):
        start, end = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        found += _run(str(start), str(end))
    return found


def _run(low: str, high: str) -> list[str]:
    """Runs for all numbers between two of the same length."""
    if not low:
        return [""]
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}'.rstrip() for rest in _run(low[1:], high[1:])]
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    start: list[str] = []
    end: list[str] = []
    if low[1:] != "0" * rest:
        start = [f'"{first}" {one}' for one in _run(low[1:], "9" * rest)]
        first += 1
    if high[1:] != "9" * rest:
        end = [f'"{last}" {one}' for one in _run("0" * rest, high[1:])]
        last -= 1
    middle = [f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else "")] if first <= last else []
    return [*start, *middle, *end]
