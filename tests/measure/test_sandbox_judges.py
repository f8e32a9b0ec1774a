"""Code of a model cannot cheat, and right code passes, whatever kind of values it takes and gives."""

import textwrap

import pytest

from sizewise.measure.sandbox import Limits, run_tests, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


TESTS = """
def check(candidate):
    for number in (1, 7, 21):
        assert candidate(number) == 2 * number
    assert candidate("ab") == "abab"
    assert candidate(True) is not True
"""

CHEATS = {
    "a wrong answer": "def double(x):\n    return x + x + 1",
    "equal to everything": """
        class Same:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
        def double(x): return Same()
    """,
    "a number equal to everything": """
        class Same(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def double(x): return Same(3)
    """,
    "leave as if done": "import os\ndef double(x):\n    os._exit(0)",
    "leave as if done while it is read": "import os\nos._exit(0)",
    "exit": "import sys\ndef double(x):\n    sys.exit(0)",
    "exit by hand": "def double(x):\n    raise SystemExit(0)",
    "interrupt": "def double(x):\n    raise KeyboardInterrupt",
    "end a loop": "def double(x):\n    raise StopIteration",
    "look at the frames": """
        import sys
        def double(x):
            frame = sys._getframe()
            while frame:
                for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                    if "".join(("2 * ", "number")) in repr(value):
                        return 2 * x
                frame = frame.f_back
    """,
    "look through the memory": """
        import gc
        def double(x):
            for found in gc.get_objects():
                for value in gc.get_referents(found):
                    if isinstance(value, str) and "".join(("2 * ", "number")) in value:
                        return 2 * x
    """,
    "write the verdict": """
        import json, os, struct
        def double(x):
            data = json.dumps({"passed": True, "nonce": "", "reason": "", "value": True}).encode()
            for fd in range(1, 20):
                try:
                    os.write(fd, struct.pack(">I", len(data)) + data)
                except OSError:
                    pass
            return 0
    """,
    "answer before being asked": """
        import json, os, struct
        data = json.dumps({"ready": 0, "value": True, "passed": True}).encode()
        for _ in range(20):
            os.write(4, struct.pack(">I", len(data)) + data)
        def double(x): return 0
    """,
    "call into the tests": """
        import json, os, struct
        def double(x):
            message = {"call": 0, "args": ["import os; os._exit(0)"], "kwargs": {"dict": []}}
            data = json.dumps(message).encode()
            os.write(4, struct.pack(">I", len(data)) + data)
            return {"builtin": "exec"}
    """,
    "change what an assertion is": """
        import builtins, sys
        builtins.AssertionError = ValueError
        builtins.isinstance = lambda *_: True
        sys.settrace(lambda *_: None)
        def double(x): return None
    """,
    "change the modules that compare": """
        import json, operator, doctest, unittest
        json.dumps = lambda *a, **k: '{"value": true, "passed": true}'
        operator.eq = lambda *_: True
        doctest.OutputChecker.check_output = lambda *_: True
        def double(x): return 0
    """,
    "print the verdict": """
        import sys
        def double(x):
            for file in (sys.stdout, sys.stderr, sys.__stdout__):
                print('{"passed": true}', 'OK', 'PASSED', file=file, flush=True)
    """,
    "kill the others": """
        import os, signal
        def double(x):
            for pid in (-1, 1, os.getppid(), 0):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
    """,
    "set a variable that a harness reads": """
        import os
        os.environ["TIMEOUT_PER_TASK"] = "0"
        os.environ["PYTHONOPTIMIZE"] = "2"
        def double(x): return 0
    """,
    "never end": "def double(x):\n    while True: pass",
    "be no function": "double = 3",
    "not be there": "import os",
    "be empty": "",
    "not be Python": "def double(x) return 2 * x",
    "not be text": "\0",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_does_not_pass(cheat: str) -> None:
    verdict = run_tests([textwrap.dedent(CHEATS[cheat])], "double", tests=TESTS, limits=Limits(wall_s=3))
    assert not verdict.passed
    assert verdict.reason


RIGHT = {
    "plain": "def double(x):\n    return 2 * x",
    "prints": "print('loading')\ndef double(x):\n    print('x is', x)\n    return x * 2",
    "threads": """
        import threading
        def double(x):
            found = []
            workers = [threading.Thread(target=found.append, args=(x,)) for _ in range(8)]
            [worker.start() for worker in workers]
            [worker.join() for worker in workers]
            return found[0] + found[1]
    """,
    "a pool of threads": """
        from concurrent.futures import ThreadPoolExecutor
        def double(x):
            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(lambda y: y + y, [x]))[0]
    """,
    "exits at the end": "import sys\ndef double(x):\n    return x * 2\nif __name__:\n    sys.exit(0)",
    "has a main": "def double(x):\n    return x * 2\nif __name__ == '__main__':\n    print(double(input()))",
    "a dataclass": """
        from dataclasses import dataclass
        from typing import Any
        @dataclass
        class Box:
            x: Any
        def double(x): return Box(x).x * 2
    """,
    "cached": "from functools import lru_cache\n@lru_cache\ndef double(x):\n    return x * 2",
    "recursive": "def double(x, depth=900):\n    return x * 2 if depth == 0 else double(x, depth - 1)",
    "a lambda": "double = lambda x: x + x",
    "an object that can be called": "class D:\n    def __call__(self, x): return x * 2\ndouble = D()",
    "a number with a name": """
        import enum
        class Value(int): pass
        def double(x): return Value(2 * x) if isinstance(x, int) else x * 2
    """,
    "files of its own": """
        import os, tempfile
        def double(x):
            with tempfile.TemporaryDirectory() as folder:
                open(os.path.join(folder, "x"), "w").write("y")
            return x * 2
    """,
    "a child process": """
        import os
        def double(x):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            return x * 2
    """,
    "wide imports": "import re, math, json, random, itertools, collections, datetime, decimal, heapq, ctypes, typing\n"
    "def double(x):\n    return x * 2",
    "redirects what it prints": """
        import contextlib, io
        def double(x):
            with contextlib.redirect_stdout(io.StringIO()) as kept:
                print(x)
            return x * 2 if kept.getvalue() else None
    """,
    "writes to standard error": "import sys\ndef double(x):\n    print(x, file=sys.stderr)\n    return x * 2",
    "handles its own errors": "def double(x):\n    try:\n        x / 0\n    except Exception:\n        return 2 * x",
}


@pytest.mark.parametrize("right", RIGHT)
def test_a_right_answer_passes(right: str) -> None:
    verdict = run_tests([textwrap.dedent(RIGHT[right])], "double", tests=TESTS)
    assert verdict.passed, verdict.reason


VALUES = {
    "every kind of value": (
        "def f(*a, **k):\n    return a, k",
        "v = (1, -2.5, None, True, 'caf\u00e9\\ud800', b'x', (), {1: {2}}, frozenset({3}), 2+3j, range(3), [[]])\n"
        "v += (10**5000,)\n"
        "assert candidate(*v, z=v) == (v, {'z': v})\n"
        "assert repr(candidate(*v)) == repr((v, {}))",
    ),
    "not a number": ("def f():\n    return float('nan')", "import math\nassert math.isnan(candidate())"),
    "a counter": (
        "from collections import Counter\ndef f(x):\n    return Counter(x)",
        "assert candidate('aab') == {'a': 2, 'b': 1}\nassert repr(candidate('a')) == \"Counter({'a': 1})\"",
    ),
    "a generator": ("def f(n):\n    yield from range(n)", "assert list(candidate(3)) == [0, 1, 2]\nnext(candidate(1))"),
    "a function made of a function": (
        "def f(g):\n    return lambda *a: g(*a) + 1",
        "assert candidate(lambda a, b: a * b)(3, 4) == 13\nassert candidate(len)('abc') == 4",
    ),
    "the same function back": (
        "def f(g):\n    return g",
        "h = lambda: 1\nassert candidate(h) is h\nassert candidate(len) is len",
    ),
    "an error of the caller": (
        "def f(g):\n    try:\n        return g()\n    except KeyError as e:\n        return str(e)",
        "def g(): raise KeyError('k')\nassert candidate(g) == \"'k'\"",
    ),
    "errors": (
        "class Own(Exception): pass\ndef f(x):\n    raise {1: ValueError('v'), 2: Own('o'), 3: KeyError('k')}[x]",
        "for x, name in ((1, 'ValueError'), (2, 'Own'), (3, 'KeyError')):\n"
        "    try:\n        candidate(x)\n        assert False\n"
        "    except Exception as e:\n        assert type(e).__name__ == name, e",
    ),
    "changes what it is given": (
        "def f(a, b, c):\n    a.sort()\n    b['x'] = 1\n    c.add(4)",
        "a, b, c = [3, 1], {}, {1}\nassert candidate(a, b, c) is None\nassert (a, b, c) == ([1, 3], {'x': 1}, {1, 4})",
    ),
    "keeps state": (
        "n = 0\ndef f():\n    global n\n    n += 1\n    return n",
        "assert [candidate(), candidate()] == [1, 2]",
    ),
    "the same order of a set every time": (
        "def f():\n    return list({'a', 'b', 'c', 'd'})",
        "assert candidate() == list({'a', 'b', 'c', 'd'})",
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_cross(kind: str) -> None:
    program, tests = VALUES[kind]
    verdict = run_tests([program], "f", tests=tests)
    assert verdict.passed, verdict.reason
