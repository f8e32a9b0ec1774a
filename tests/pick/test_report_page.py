"""The report in a real browser: hostile text stays text, all works by keyboard, nothing scrolls sideways."""

import json
from pathlib import Path
from typing import Any

import pytest
from browser import CONTRAST

from sizewise.core.results import Comparison, FitResult
from sizewise.pick.report import as_results, write_report

PAYLOADS = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror=window.pwned=1>',
    "</title></style></script><script>window.pwned=1</script>",
    "<svg onload=window.pwned=1>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:window.pwned=1",
    "' onmouseover='window.pwned=1' x='",
    "\u202eevil\u0000\ud800\u001b[31m",
)


@pytest.fixture
def page_file(tmp_path: Path, fit_result: FitResult, comparison: Comparison) -> Path:
    write_report([fit_result, comparison], tmp_path / "report.html")
    return tmp_path / "report.html"


def opened(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Any:
    """The page in a window of its own, its errors and requests in `page.told`."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.told = []
    page.on("console", lambda message: page.told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.told.append(f"error: {error}"))
    page.on("dialog", lambda dialog: page.told.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: page.told.append(request.url))
    page.goto(path.as_uri())
    return page


def test_it_opens_alone_without_a_word(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    assert [told for told in page.told if told != "data:,"] == [page_file.as_uri()]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_is_only_text(
    browser: Any, tmp_path: Path, fit_result: FitResult, comparison: Comparison, payload: str
) -> None:
    kinds = {"fit", "comparison", "pass", "stop", "length", "prompted", "tfidf", "embedding", "majority", "measured",
             "estimated", "stated"}  # fmt: skip

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(each) for key, each in value.items()}
        if isinstance(value, list):
            return [poison(each) for each in value]
        return payload + value if isinstance(value, str) and value not in kinds and value else value

    bodies = [poison(json.loads(json.dumps(each.as_json()))) for each in (fit_result, comparison)]
    bodies[0]["candidates"][2]["per_class"] = {payload: {"f1": 0.5, "precision": 0.5, "recall": 0.5, "n": 4}}
    bodies[0]["machine"] = {payload: payload}
    write_report(as_results(bodies), tmp_path / "r.html")
    page = opened(browser, tmp_path / "r.html")
    page.locator(".point:visible").first.focus()  # the tip is made by script
    clean = opened(browser, self_made(tmp_path, fit_result, comparison))
    assert page.evaluate("window.pwned") is None
    for tag in ("script", "img", "style", "iframe", "title"):
        count = f"document.getElementsByTagName('{tag}').length"
        assert page.evaluate(count) == clean.evaluate(count)
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    assert page.evaluate(handlers) == []
    assert [told for told in page.told if told.startswith(("console", "error", "dialog", "http"))] == []


def self_made(folder: Path, fit_result: FitResult, comparison: Comparison) -> Path:
    write_report([fit_result, comparison], folder / "clean.html")
    return folder / "clean.html"


def test_the_axis_switches_by_keyboard(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    titles = [page.locator(".panel:visible h2").inner_text()]
    page.locator(".switch input").first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        assert page.locator(".panel:visible").count() == 1
        titles.append(page.locator(".panel:visible h2").inner_text())
    assert page.locator(".switch input:checked").get_attribute("value") == "money"
    assert len(set(titles)) == 5


def test_a_point_tells_its_reason_by_keyboard(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    assert page.locator(".tip:visible").count() == 0
    page.locator(".switch input").first.focus()
    reasons = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reasons.append(page.locator(".tip:visible").inner_text())
    assert any("behind the best by 5.9 points" in reason for reason in reasons)
    assert "chosen" in reasons[-1]  # drawn last, so that it lies on top
    page.keyboard.press("Escape")
    assert page.locator(".tip:visible").count() == 0


def test_it_works_without_script(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.locator(".switch label").nth(2).click()
    assert page.locator(".panel:visible").count() == 1
    assert page.locator(".panel:visible h2").inner_text().endswith("sentiment-smollm2-head")
    assert "size" in page.locator(".panel:visible h2").inner_text()


@pytest.mark.parametrize("width", [320, 390, 768, 1000, 1280])
def test_nothing_scrolls_sideways(browser: Any, page_file: Path, width: int) -> None:
    page = opened(browser, page_file, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".chart:visible").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_all_text_stands_out_from_its_ground(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    page = opened(browser, page_file, width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    found = page.evaluate(CONTRAST)
    assert found["seen"] > 200
    assert found["poor"] == []


def test_drawn_labels_do_not_overlap(browser: Any, page_file: Path) -> None:
    """The widths that places were computed with are estimates: check them against a real font."""
    page = opened(browser, page_file)
    boxes = page.evaluate("""() => [...document.querySelectorAll(".panel")].flatMap(panel => {
        panel.style.display = "block";
        return [...panel.querySelectorAll(".chart")].filter(c => c.getClientRects().length).map(chart =>
            [...chart.querySelectorAll(".labels text")].map(t => { const b = t.getBBox();
                return [b.x, b.y + 2, b.x + b.width, b.y + b.height - 2]; })); })""")
    assert len(boxes) == 5
    for chart in boxes:
        for place, one in enumerate(chart):
            for other in chart[:place]:
                apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
                assert apart, (one, other)


def test_it_prints_open_and_light(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert not page.locator(".switch").first.is_visible()
