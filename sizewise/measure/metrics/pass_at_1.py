"""pass@1: the share of functions that pass all their tests, of one answer each (Chen et al. 2021).

The tests run in one sandbox and the answer in another (see `sandbox`). An answer is a whole function, alone or in a
fenced block, or the body that continues the prompt; what surrounds it is left out. With several answers to each item,
`pass_at_k` estimates the share of items that at least one of k would solve.
"""

import ast
import math
import textwrap
from collections.abc import Iterator

from sizewise.core.task import Item, Task
from sizewise.measure.metric import Metric, Scored
from sizewise.measure.sandbox import run_tests, unfence

_STARTS = ("def ", "async def ", "class ", "import ", "from ", "@")


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that at least one of k answers is right, from n answers of which `right` are."""
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} of {right} right in {n} answers")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def _score(item: Item, output: str, task: Task) -> Scored:
    """1 if the tests pass, else 0; no score for an empty output.

    Raises:
        Unsupported: this system cannot build a sandbox.
    """
    if not output.strip():
        return Scored(None, None)
    names = task.fields
    tests = str(item.fields.get(names.get("tests", "test")) or "")
    entry = str(item.fields.get(names.get("entry_point", "entry_point")) or _last_function(item.input))
    verdict = run_tests(list(_programs(item.input, output, entry)), entry, setup=item.input, tests=tests)
    return Scored(output, float(verdict.passed))


def _last_function(prompt: str) -> str:
    """The name of the function that a prompt leaves open: the last one at the margin."""
    names = [line[4:].partition("(")[0].strip() for line in prompt.splitlines() if line.startswith("def ")]
    return names[-1] if names else ""


def _programs(prompt: str, output: str, entry: str) -> Iterator[str]:
    """Ways to read an answer as a program, likeliest first. The prompt brings imports and helpers."""
    before = _without_docstrings(prompt)
    for code in unfence(output, entry):
        if f"def {entry}" in code:
            for whole in (code, _from_first_start(code), _to_margin(_from_first_start(code), entry)):
                yield f"{before}\n{whole}"
                yield whole
        else:
            for body in (code, "    " + code.lstrip(), textwrap.indent(textwrap.dedent(code), "    ")):
                yield before + body
                if part := _indented_part(body).strip("\n"):
                    yield f"{before}{part}\n"


def _from_first_start(code: str) -> str:
    """Without the prose before the first line that begins a definition."""
    lines = code.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith(_STARTS)), 0)
    return "".join(lines[first:])


def _to_margin(code: str, entry: str) -> str:
    """Up to the end of the function: without whatever follows it at the margin."""
    head, mark, rest = code.partition(f"def {entry}")
    signature, newline, body = rest.partition("\n")
    return head + mark + signature + newline + _indented_part(body)


def _indented_part(body: str) -> str:
    """The lines up to the first that is not indented, where a continued function is over."""
    kept: list[str] = []
    for line in body.splitlines(keepends=True):
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "".join(kept)


def _without_docstrings(prompt: str) -> str:
    """The prompt with empty docstrings: examples in them hold expected values, which no candidate process may."""
    try:
        tree = ast.parse(prompt)
    except (SyntaxError, ValueError):
        return prompt
    lines = prompt.splitlines(keepends=True)
    for node in sorted(ast.walk(tree), key=lambda node: -getattr(node, "lineno", 0)):
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node) is not None
        ):
            text = node.body[0]
            if text.lineno > node.lineno and text.end_lineno is not None:
                lines[text.lineno - 1 : text.end_lineno] = [" " * text.col_offset + '""" """\n']
    return "".join(lines)


pass_at_1 = Metric.of_mean("pass-at-1", "share of items", frozenset({"code"}), _score)
