"""The files of the page, from a table: what is not in it does not exist. Nothing a caller sends becomes a path."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sizewise.pick import report

_FOLDER = Path(__file__).parent
_LOOK = Path(report.__file__).parent / "look.css"  # the report's own: both look alike
_HTML, _CSS, _SCRIPT, _TEXT = "text/html", "text/css", "text/javascript", "text/plain"
TYPES = {
    "index.html": _HTML,
    "look.css": _CSS,
    "style.css": _CSS,
    "main.js": _SCRIPT,
    "dom.js": _SCRIPT,
    "numbers.js": _SCRIPT,
    "text.js": _SCRIPT,
    "server.js": _SCRIPT,
    "gallery.js": _SCRIPT,
    "model.js": _SCRIPT,
    "lineage.js": _SCRIPT,
    "arena.js": _SCRIPT,
    "choose.js": _SCRIPT,
    "answer.js": _SCRIPT,
    "vote.js": _SCRIPT,
    "reports.js": _SCRIPT,
    "vendor/purify.min.js": _SCRIPT,
    "vendor/purify.LICENSE": _TEXT,
    "vendor/marked.esm.js": _SCRIPT,
    "vendor/marked.LICENSE": _TEXT,
}
# No inline code, nothing from elsewhere; and a string becomes HTML through the sanitizer or not at all.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again by its tag
}


@dataclass(frozen=True, slots=True)
class File:
    """One file, as it is sent."""

    content: bytes
    type: str
    tag: str


@cache
def file(name: str) -> File:
    """A file of the table.

    Raises:
        KeyError: it is not in the table.
    """
    media = TYPES[name]
    content = (_LOOK if name == "look.css" else _FOLDER / name).read_bytes()
    return File(content, f"{media}; charset=utf-8", f'"{hashlib.sha256(content).hexdigest()[:32]}"')
