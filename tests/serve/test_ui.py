"""The web page in a real browser, against a real server: gallery, arena, vote, reports; by keyboard; on a phone."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CONTRAST
from served import Served, StartServer, launch, save_smollm2
from ui_pages import SETTLED, ask, check, opened, show

from sizewise.measure.ledger import Ledger


def test_the_gallery_shows_size_quality_and_lineage(page: Any) -> None:
    show(page, "models")
    assert "5 models" in page.locator("h1").inner_text()
    assert "tiny gets 71\u202f% right" in page.locator("h1").inner_text()
    assert page.locator(".open").all_inner_texts()[:2] != []
    row = page.locator(".models > tbody").filter(has=page.get_by_role("button", name="tiny2"))
    assert "quantize gguf from tiny" in row.inner_text()
    assert "56 to 68\u202f%, 300 rows" in row.inner_text()
    page.get_by_role("button", name="tiny2").click()
    picture = row.locator(".tree.wide")
    described = picture.get_attribute("aria-label")
    assert "tiny by quantize gguf (type q4_0): tiny2" in described
    assert picture.locator(".node").count() == 2
    assert row.locator(".tree.narrow").is_hidden()


def test_the_gallery_filters_and_sorts(page: Any) -> None:
    show(page, "models")
    page.get_by_label("Order").select_option("name")
    names = page.locator(".open").all_inner_texts()
    assert names == sorted(names)
    page.get_by_label("Order").select_option("quality")
    assert page.locator(".open").all_inner_texts()[:2] == ["tiny", "tiny2"]
    page.get_by_label("Filter").fill("quantize")
    assert page.locator(".open").all_inner_texts() == ["tiny2"]
    assert page.locator(".amount[role=status]").inner_text() == "1 of 5 shown"
    page.get_by_label("Filter").fill("")
    page.get_by_text("Classifier", exact=True).first.click()
    assert sorted(page.locator(".open").all_inner_texts()) == ["hostile", "hostile2"]


def test_the_arena_shows_what_each_answer_takes(page: Any) -> None:
    ask(page, ["tiny", "tiny2", "tiny3"], "abc")
    page.locator(SETTLED).first.wait_for()
    assert page.locator(".column h3").all_inner_texts() == ["tiny", "tiny2", "tiny3"]
    for column in page.locator(".column").all():
        took = dict(zip(column.locator("dt").all_inner_texts(), column.locator("dd").all_inner_texts(), strict=True))
        assert re.fullmatch(r"[\d.,]+\u202f(µs|ms|s)", took["First token"])
        assert re.fullmatch(r"[\d.,]+\u202ftokens/s", took["Speed"])
        assert took["Tokens"] == "16"
        assert re.fullmatch(r"[\d.,]+\u202f(MB|GB)", took["Peak memory"])
        assert re.fullmatch(r"[\d.,]+\u202fJ estimated", took["Energy"])
        assert column.locator(".state").inner_text() == "cut at the longest answer allowed"


def test_a_classifier_answers_and_says_what_it_cannot_tell(page: Any) -> None:
    ask(page, ["hostile", "tiny"], "nothing to classify here")
    page.locator(SETTLED).first.wait_for()
    assert page.locator(".column").first.locator(".model-text").inner_text() != ""
    reasons = page.locator(".column").first.locator(".none").all()
    assert reasons
    assert all(each.get_attribute("title") for each in reasons)


def test_a_missing_prompt_and_a_model_twice_are_told(page: Any) -> None:
    ask(page, ["tiny", "tiny2"], " ")
    assert page.get_by_role("alert").inner_text() == "Write a prompt first."
    ask(page, ["tiny", "tiny"], "abc")
    assert page.get_by_role("alert").inner_text() == "Choose each model once."
    assert [url for url in page.asked if "/api/chat" in url] == []


def test_a_blind_vote_by_keyboard_is_kept_and_shown(page: Any) -> None:
    ask(page, ["tiny", "tiny3"], "a blind question", blind=True)
    vote = page.get_by_role("region", name="Vote")
    vote.wait_for()
    assert page.locator(".column h3").all_inner_texts() == ["Answer A", "Answer B"]
    assert "tiny" not in page.locator(".results").inner_text()
    assert page.locator(".took:not(:empty)").count() == 0
    with Ledger(page.server.home / "ledger.db") as ledger:
        before = ledger.read("SELECT count(*) FROM vote")[0][0]
        page.keyboard.press("b")
        page.locator(".column.winner").wait_for()
        assert ledger.read("SELECT count(*) FROM vote")[0][0] == before + 1
        [(winner,)] = ledger.read("SELECT model FROM ballot WHERE vote = (SELECT max(id) FROM vote) AND share = 1")
    shown = page.locator(".column").nth(1).locator("h3")
    assert shown.inner_text() == winner  # B is who the ledger says has won
    assert sorted(page.locator(".column h3").all_inner_texts()) == ["tiny", "tiny3"]
    assert page.locator(".column dd", has_text="tokens/s").count() == 2
    show(page, "models")
    row = page.locator(".models > tbody").filter(has=page.get_by_role("button", name=winner, exact=True))
    assert re.search(r"\d+\u202f%\s+\d+ to \d+\u202f%, \d+ vote", row.inner_text())


def test_a_report_opens_in_a_sandbox_of_its_own(page: Any) -> None:
    show(page, "reports")
    assert "1 fit, 1 comparison and 2 evaluations" in page.locator("h1").inner_text()
    assert "On sentiment tiny is best with 71\u202f%" in page.locator("main").inner_text()
    page.get_by_role("link", name="sentiment").click()
    page.locator(".decision", has_text="tiny, 40 kB, gets 71 % right.").wait_for()
    assert page.evaluate("origin") == "null"
    page.locator(".point:visible").first.focus()
    assert page.locator(".tip:visible").count() == 1  # its own script runs
    check(page)
    reached = page.evaluate("fetch('/ui/api/models').then(() => 'reached', () => 'refused')")
    assert reached == "refused"
    page.told.clear()  # the browser has said that it refused


def test_all_of_it_works_by_keyboard(page: Any) -> None:
    show(page, "models")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.press("ArrowDown")
    first = page.evaluate("document.activeElement.innerText")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.innerText") != first
    page.keyboard.press("Enter")
    assert page.locator(".open[aria-expanded=true]").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Ask it in the arena"
    page.keyboard.press("Enter")
    page.locator("main[data-page=arena]").wait_for()
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("abc")
    page.keyboard.press("Control+Enter")
    page.locator(SETTLED).first.wait_for()
    page.locator("nav a").last.focus()
    page.keyboard.press("Enter")
    page.locator("main[data-page=reports]").wait_for()
    assert page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("where", ["models", "arena", "reports"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_is_readable(browser: Any, ui_server: Served, where: str, scheme: str, width: int) -> None:
    page = opened(browser, ui_server, width=width, scheme=scheme)
    if where == "arena":
        ask(page, ["tiny", "hostile"], "w" * 100)
        page.locator(SETTLED).first.wait_for()
    else:
        show(page, where)
    for each in page.locator(".open").all():
        each.click()
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = page.evaluate(CONTRAST)
    assert found["seen"] > 10
    assert found["poor"] == []
    headings = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(each => +each.tagName[1])")
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    check(page)
    page.context.close()


def test_an_empty_home_says_how_to_begin(browser: Any, start_server: StartServer, tmp_path: Path) -> None:
    page = opened(browser, start_server(tmp_path))
    show(page, "models")
    assert "sizewise pull" in page.locator("main").inner_text()
    show(page, "arena")
    assert "sizewise pull" in page.locator("main").inner_text()
    show(page, "reports")
    assert page.locator("h1").inner_text() == "Nothing was measured yet"
    assert not (tmp_path / "ledger.db").exists()  # looking leaves nothing behind
    check(page)


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Served]:
    """A server with SmolLM2 under two names."""
    home = tmp_path_factory.mktemp("real")
    save_smollm2(home, smollm2)
    save_smollm2(home, smollm2, "smollm2:again")
    served = launch(home)
    yield served
    served.stop()


@pytest.mark.model
def test_a_real_model_answers_beside_itself(browser: Any, real_server: Served) -> None:
    page = opened(browser, real_server)
    ask(page, ["smollm2", "smollm2:again"], "What is the capital of France?", tokens=24)
    page.locator(SETTLED).first.wait_for()
    first, second = page.locator(".model-text").all_inner_texts()
    assert min(len(first), len(second)) > 20
    assert "tokens a second" in page.locator("h1").inner_text()
    check(page)


@pytest.mark.model
def test_answers_can_be_stopped(browser: Any, real_server: Served) -> None:
    """What stops is the model, too: it takes another question at once."""
    page = opened(browser, real_server)
    ask(page, ["smollm2", "smollm2:again"], "Write a very long story.", tokens=4000)
    for place in range(2):
        page.locator(".state").nth(place).filter(has_text="writing").wait_for()
    page.keyboard.press("Escape")
    page.locator(SETTLED).first.wait_for()
    assert page.locator(".state").all_inner_texts() == ["stopped", "stopped"]
    assert page.locator(".model-text").first.inner_text() != ""
    assert page.get_by_role("button", name="Stop").is_hidden()
    ask(page, ["smollm2", "smollm2:again"], "Say: yes.", tokens=8)
    page.locator(SETTLED).first.wait_for()
    assert page.locator(".column dd", has_text="tokens/s").count() == 2
    check(page)


@pytest.mark.model
def test_one_model_under_two_names_takes_no_vote(browser: Any, real_server: Served) -> None:
    page = opened(browser, real_server)
    ask(page, ["smollm2", "smollm2:again"], "Say: yes.", tokens=4, blind=True)
    page.get_by_role("region", name="Vote").wait_for()
    page.keyboard.press("a")
    page.get_by_text("The vote was not kept").wait_for()
    assert "same one under two names" in page.locator(".vote .problem").inner_text()
    assert page.locator(".column h3").all_inner_texts() == ["Answer A", "Answer B"]
