"""Thirty texts that a model could write to get at the page that shows them, and a model that writes them."""

from pathlib import Path

import numpy as np

from sizewise.core.recipe import Lineage
from sizewise.load.linear_model import LinearModel
from sizewise.load.models import save_model
from sizewise.load.store.store import Store

PAYLOADS = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    '<iframe src="javascript:parent.pwned=1"></iframe>',
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    "<body onload=window.pwned=1>",
    "<details open ontoggle=window.pwned=1>x</details>",
    '<a href="javascript:window.pwned=1">click</a>',
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](&#106;avascript:window.pwned=1)",
    "[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "<javascript:window.pwned=1>",
    "[ref]\n\n[ref]: javascript:window.pwned=1 'x'",
    "![x](http://outside.invalid/leak.png)",
    '![x](x"onerror="window.pwned=1)',
    "![][leak]\n\n[leak]: https://outside.invalid/leak.png",
    '<img src="http://outside.invalid/leak.png">',
    "<style>@import 'http://outside.invalid/leak.css';</style>",
    '<link rel=stylesheet href="//outside.invalid/leak.css">',
    '<meta http-equiv="refresh" content="0;url=http://outside.invalid/">',
    '<base href="http://outside.invalid/">',
    '<form action="http://outside.invalid/"><button id=x formaction="javascript:window.pwned=1">go</button></form>',
    '<object data="http://outside.invalid/x.swf"></object><embed src="http://outside.invalid/x">',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.pwned=1&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=window.pwned=1>'>",
    "```html\"onmouseover='window.pwned=1'\n</code></pre><script>window.pwned=1</script>\n```",
    "`</code><script>window.pwned=1</script>`",
    "| a |\n|---|\n| <img src=x onerror=window.pwned=1> |",
    '<p style="background:url(http://outside.invalid/leak.png)" id="content">**bold** http://outside.invalid/auto',
)


def word(place: int) -> str:
    """The prompt that makes the model write that payload."""
    return f"payload{place:02d}"


def save_hostile(store: Store, folder: Path, name: str, *, last: str = "") -> None:
    """Put a classifier into a store whose labels are the payloads; `last` only makes it another model."""
    labels = (*PAYLOADS, last or "nothing")
    vocabulary = tuple(word(place) for place in range(len(labels)))
    model = LinearModel(
        "tfidf",
        labels,
        20 * np.eye(len(labels), dtype=np.float32),
        np.zeros(len(labels), np.float32),
        vocabulary,
        np.ones(len(labels), np.float32),
    )
    target = folder / name
    target.mkdir()
    save_model(name, "linear", model.save(target), lineage=Lineage(recipe=None), store=store)
