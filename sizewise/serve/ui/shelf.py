"""The reports of past fits and comparisons: a list of them, and each as a page that can do nothing to this one."""

import re
from typing import Any

from sizewise.core.results import Comparison, FitResult
from sizewise.pick.kept import read_kept, readable
from sizewise.pick.report import render_html
from sizewise.pick.report.answers import clean
from sizewise.pick.report.comparison_view import comparison_sentence

_OWN_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">')


def shelf() -> list[dict[str, Any]]:
    """All kept results, the latest first, each in a sentence."""
    return [{"id": each.id, "kind": each.kind, "at": each.at} | told for each, told in readable(_told)]


def report_page(identity: str) -> tuple[str, str]:
    """A report as HTML, and the policy to send it under.

    The sandbox gives it an origin of its own, so that nothing in it can ask this server for anything; its one inline
    script and style are named by their hashes.

    Raises:
        UnknownName: there is no report of that identity.
    """
    page = render_html([read_kept(identity)])
    found = _OWN_POLICY.search(page)
    own = found.group(1) if found else "default-src 'none'"
    return page, f"sandbox allow-scripts allow-modals; frame-ancestors 'none'; {own}"


def _told(result: FitResult | Comparison) -> dict[str, Any]:
    if isinstance(result, Comparison):
        names = [clean(model.model, 200) for model in result.models]
        return {"title": f"{len(names)} models side by side", "sentence": comparison_sentence(result), "models": names}
    return {
        "title": clean(result.task, 200),
        "sentence": clean(result.decision.sentence, 1000),
        "status": result.decision.status,
        "winner": result.decision.model,
        "models": [clean(candidate.model, 200) for candidate in result.candidates],
    }
