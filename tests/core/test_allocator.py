"""Freed memory goes back to the system."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from sizewise.core.allocator import give_back_large
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
del_me = bytearray(30_000_000); del del_me  # glibc's bound is now 30 MB
if sys.argv[1] == "yes":
    give_back_large()
blocks = [bytearray(b"x") * 4_000_000 for _ in range(20)]
keeps = bytearray(b"x") * 100_000  # at the heap's end
del blocks
print(resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the setting")
def test_holes_in_the_heap_are_given_back() -> None:
    def left(asked: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert left("yes") < left("no") - 40_000_000
