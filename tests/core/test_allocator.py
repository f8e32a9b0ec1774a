"""Freed memory goes back to the system."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from contextlib import nullcontext
from sizewise.core.allocator import give_back, returning_at_once
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
del_me = bytearray(30_000_000); del del_me  # glibc's bound is now 30 MB
with returning_at_once() if sys.argv[1] == "at once" else nullcontext():
    blocks = [bytearray(b"x") * 4_000_000 for _ in range(20)]
    keeps = bytearray(b"x") * 100_000  # at the heap's end
    del blocks
    if sys.argv[1] == "asked":
        give_back()
    print(resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the setting")
@pytest.mark.parametrize("way", ["asked", "at once"])
def test_holes_in_the_heap_are_given_back(way: str) -> None:
    def left(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert left(way) < left("never") - 40_000_000
