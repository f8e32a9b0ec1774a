"""The report: one HTML file that opens offline, and the same as JSON and Markdown."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sizewise import __version__
from sizewise.core.errors import UsageError
from sizewise.core.results import Comparison, FitResult
from sizewise.load.store.atomic import write_atomic
from sizewise.pick.report.answers import plainly
from sizewise.pick.report.comparison_view import ComparisonView, comparison_view
from sizewise.pick.report.fit_view import KINDS, STATUS, FitView, fit_view
from sizewise.pick.report.read import as_result

MOST_BYTES = 2_000_000
_FOLDER = Path(__file__).parent
_LONGEST = (4000, 1500, 600, 200)  # characters of a text; the next one is taken while the page is too large


def write_report(results: Sequence[dict[str, Any] | FitResult | Comparison], path: Path) -> list[Path]:
    """Write results where people can look at them.

    Args:
        results: fits and comparisons, or their JSON; what stands first gives the headline.
        path: `.html` writes the page and, beside it, `.json` and `.md`; `.json` or `.md` writes that one alone.

    Returns:
        The files written.

    Raises:
        UsageError: the JSON is not that of a result (the field is named), or the path ends in something else.
        StorageError: a file cannot be written; none is left half written.
    """
    from sizewise.pick.markdown import render_markdown

    checked = as_results(results)
    writers = {".json": render_json, ".md": render_markdown, ".html": render_html}
    if path.suffix not in writers:
        raise UsageError(f"{path}: a report ends in .html, .json or .md")
    suffixes = list(writers) if path.suffix == ".html" else [path.suffix]  # the page last: it names the others
    # All are rendered before the first is written: a fault in one leaves no half a report.
    files = {path.with_suffix(suffix): writers[suffix](checked).encode() for suffix in suffixes}
    for target, content in files.items():
        write_atomic(target, [content])
    return list(files)


def as_results(results: Sequence[dict[str, Any] | FitResult | Comparison]) -> list[FitResult | Comparison]:
    """Results from objects or JSON; the JSON of a whole report counts as the results in it.

    Raises:
        UsageError: there are none, or one is not what it should be.
    """
    checked: list[FitResult | Comparison] = []
    for place, each in enumerate(results, 1):
        if isinstance(each, dict) and each.get("kind") == "report":
            inner = each.get("results")
            if not isinstance(inner, list):
                raise UsageError(f"result {place}.results: expected a list")
            checked += as_results(inner)
        else:
            checked.append(as_result(each, f"result {place}"))
    if not checked:
        raise UsageError("there is nothing to report: give the result of a fit or a comparison")
    return checked


def render_json(results: Sequence[FitResult | Comparison]) -> str:
    """The results as one JSON document, which `write_report` takes again."""
    body = {"kind": "report", "sizewise": __version__, "results": [each.as_json() for each in results]}
    return json.dumps(body, ensure_ascii=True, indent=2, allow_nan=False) + "\n"


def render_html(results: Sequence[FitResult | Comparison]) -> str:
    """The page. Long texts are cut until it is below the limit; the JSON has them whole.

    Raises:
        UsageError: it is too large even so.
    """
    for longest in _LONGEST:
        page = _page([_view(each, longest) for each in results])
        size = len(page.encode())
        if size <= MOST_BYTES:
            return page
    raise UsageError(f"the page would hold {size:,} bytes, over {MOST_BYTES:,}: report fewer results at a time")


def _view(result: FitResult | Comparison, longest: int) -> FitView | ComparisonView:
    return fit_view(result, longest) if isinstance(result, FitResult) else comparison_view(result, longest)


def _page(views: list[FitView | ComparisonView]) -> str:
    style, script = _asset("look.css") + "\n" + _asset("style.css"), _asset("script.js")
    text: str = _environment().get_template("page.html.jinja").render(
        views=[("fit" if isinstance(view, FitView) else "comparison", view) for view in views],
        kinds=KINDS,
        status=STATUS,
        version=__version__,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )  # fmt: skip
    return text.encode("utf-8", "replace").decode()


@cache
def _environment() -> Any:
    import jinja2

    # Autoescape always, not by file name: everything but our own style and script is somebody else's text.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plainly"] = plainly
    return environment


@cache
def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """What a Content-Security-Policy names an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
