"""A function is found in whatever surrounds it, judged, and counted."""

from pathlib import Path

import pytest

from sizewise.core.task import Item, Task
from sizewise.measure.metric import Metric, metrics
from sizewise.measure.metrics.pass_at_1 import pass_at_k
from sizewise.measure.sandbox import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


TESTS = """
def check(candidate):
    for number in (1, 7, 21):
        assert candidate(number) == 2 * number
    assert candidate("ab") == "abab"
    assert candidate(True) is not True
"""

DOCUMENTED = '''
def double(x):
    """Twice x.

    >>> double(4)
    8
    >>> double("a") == "aa"
    True
    """
'''


@pytest.mark.parametrize(
    "cheat",
    [
        "    return type('S', (), {'__eq__': lambda *_: True, '__repr__': lambda _: '8'})()",
        "    return int(double.__doc__.split('double(4)')[1].split()[0])",
        "    import doctest\n    doctest.OutputChecker.check_output = lambda *_: True\n    return 0",
        "    import sys\n    sys.displayhook = lambda _: print(8)\n    return 0",
    ],
)
def test_a_cheat_does_not_pass_examples_either(cheat: str) -> None:
    assert score(DOCUMENTED, cheat) == 0.0
    assert score(DOCUMENTED, "    return 2 * x") == 1.0


def score(prompt: str, output: str, tests: str = "", entry: str = "double") -> float | None:
    """What the metric gives an output."""
    task = Task(
        name="t", kind="code", metric="pass-at-1", prompt="{input}", labels=(), shots=0, format="text", max_tokens=8,
        stop=(), system="", separator="", answer_prefix="", seed=0, splits={}, source="t.toml", digest="",
        fields={"tests": "test", "entry_point": "entry_point"},
    )  # fmt: skip
    metric: Metric = metrics().get("pass-at-1")
    row = {"test": tests, "entry_point": entry} if tests else {"entry_point": entry}
    return metric.score(Item("test:1", prompt, None, fields=row), output, task).score


PROMPT = "from typing import List\n\ndef helper(x):\n    return x\n\ndef double(x: int) -> int:\n    ''' Twice x. '''\n"


@pytest.mark.parametrize(
    "output",
    [
        "    return helper(x) * 2\n",
        "return helper(x) * 2",
        "y = helper(x)\n    return y * 2",
        "    return x * 2\n\nprint(double(3))\nThis doubles x.",
        "```python\ndef double(x: List) -> int:\n    return x * 2\n```",
        "Here you are:\n```py\ndef double(x):\n    return helper(x) * 2\n```\nIt doubles x.",
        "```\nprint('example')\n```\nand\n```python\ndef double(x):\n    return x * 2\n```",
        "```python\ndef double(x):\n    return x * 2",
        "Sure! This is it:\n\ndef double(x):\n    return x * 2\n\nI hope this helps.",
        "```python\n    return x * 2\n```",
    ],
)
def test_a_function_is_found_in_an_answer(output: str) -> None:
    assert score(PROMPT, output, TESTS) == 1.0


def test_what_is_no_function_fails_and_nothing_is_unanswered() -> None:
    for output in ("I cannot do that.", "```python\nimport os\n```", "x" * 10_000_000):
        assert score(PROMPT, output, TESTS) == 0.0
    assert score(PROMPT, " \n", TESTS) is None


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    from itertools import combinations

    for n, right, k in ((5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (5, 3, 4)):
        draws = list(combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(2, 1, 3)


def test_every_example_task_of_human_eval_is_solved_by_its_own_solution() -> None:
    from sizewise.load.tasks.file import load_task
    from sizewise.measure.metric import metric_for

    task = load_task(Path(__file__).parents[2] / "examples" / "humaneval.toml")
    items = task.splits["test"][::12]  # one in twelve, for time
    scores = [metric_for(task).score(item, item.worked, task).score for item in items]
    assert scores == [1.0] * len(items)
