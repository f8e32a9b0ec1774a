"""Units are read and written without surprises."""

import pytest

from sizewise.core.errors import UsageError
from sizewise.core.units import format_bytes, format_count, format_seconds, parse_bytes, parse_seconds


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("5", "200MB", "1.5 GB", "1KiB")] == [5, 200_000_000, 1_500_000_000, 1024]
    assert [format_bytes(count) for count in (None, 12, 98_362_432, 270_000_000, 1_500_000_000)] == [
        "-", "12 B", "98.4 MB", "270 MB", "1.5 GB",
    ]  # fmt: skip


def test_durations() -> None:
    assert [parse_seconds(text) for text in ("90", "5m", "1h30m", "250ms")] == [90, 300, 5400, 0.25]
    assert [format_seconds(s) for s in (None, 5e-5, 0.014, 2.13, 200, 7260)] == [
        "-", "50 µs", "14 ms", "2.13 s", "3 min 20 s", "2 h 1 min",
    ]  # fmt: skip


def test_counts() -> None:
    counts = (None, 500, 134_515_008, 999_885_952, 1_240_000_000)
    assert [format_count(n) for n in counts] == ["-", "500", "135M", "1B", "1.24B"]


@pytest.mark.parametrize("text", ["", "x", "5 parsecs", "-5MB", "1e3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)
    with pytest.raises(UsageError):
        parse_seconds(text)
