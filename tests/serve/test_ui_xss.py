"""Text from models, names and errors is text: nothing of it runs, loads or becomes a part of the page."""

import json
from typing import Any

import pytest
from gallery_home import a_comparison, a_fit
from hostile import PAYLOADS, word
from ui_pages import SETTLED, ask, show

from sizewise.pick.kept import keep

# Elements that only our own code may make, attributes that run or load, addresses that run.
FOREIGN = """(root) => {
  const all = [...(root ? document.querySelector(root) : document.body).querySelectorAll("*")];
  const own = (e) => e.closest("header.top");
  const tags = "script, iframe, object, embed, link, meta, base, form:not(.ask), style, img, frame, audio, video, math";
  return {
    pwned: window.pwned ?? null,
    tags: all.filter((e) => e.matches(tags)).map((e) => e.outerHTML.slice(0, 90)),
    handlers: all.flatMap((e) => e.getAttributeNames()).filter((name) => name.startsWith("on") || name === "srcdoc"),
    addresses: all.filter((e) => !own(e)).flatMap((e) => ["href", "src", "action", "formaction", "data", "xlink:href"]
      .map((name) => e.getAttribute(name)))
      .filter((found) => found !== null && !/^(#|\\/ui\\/reports\\/[\\w-]+$)/.test(found)),
    styled: all.filter((e) => e.hasAttribute("style")).length,
  };
}"""
NOTHING: dict[str, Any] = {"pwned": None, "tags": [], "handlers": [], "addresses": [], "styled": 0}
ALLOWED = {"P", "BR", "HR", "UL", "OL", "LI", "PRE", "CODE", "EM", "STRONG", "DEL", "BLOCKQUOTE", "TABLE", "THEAD",
           "TBODY", "TR", "TH", "TD"}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(set(PAYLOADS)) == 30


@pytest.mark.parametrize("place", range(len(PAYLOADS)))
def test_split_anywhere_it_stays_text(page: Any, place: int) -> None:
    """Every way to cut a payload in two, and one character at a time, through the page's own rendering."""
    show(page, "arena")
    text = "Sure:\n\n" + PAYLOADS[place] + "\n\nThat is *all*."
    grown = """async (text) => {
      const { rendered } = await import("/ui/text.js");
      const box = document.createElement("div");
      box.className = "model-text under-test";
      document.querySelector(".results").append(box);
      for (let end = 1; end <= text.length; end++) box.replaceChildren(rendered(text.slice(0, end)));
      return [...box.querySelectorAll("*")].map((e) => [e.tagName, e.getAttributeNames()]);
    }"""
    made = page.evaluate(grown, text)
    assert {tag for tag, _ in made} <= ALLOWED
    assert {name for _, names in made for name in names} <= {"start"}
    assert page.locator(".under-test em").inner_text() == "all"
    assert page.evaluate(FOREIGN, None) == NOTHING


@pytest.mark.parametrize("place", range(len(PAYLOADS)))
def test_the_sanitizer_alone_holds(page: Any, place: int) -> None:
    """Were Markdown to let it through as HTML, nothing would come of it either."""
    show(page, "arena")
    clean = """async (html) => {
      const { purified } = await import("/ui/text.js");
      const box = document.createElement("div");
      document.querySelector(".results").append(box);
      box.append(purified(html));
      return [...box.querySelectorAll("*")].map((e) => [e.tagName, e.getAttributeNames()]);
    }"""
    made = page.evaluate(clean, PAYLOADS[place])
    assert {tag for tag, _ in made} <= ALLOWED
    assert {name for _, names in made for name in names} <= {"start"}
    assert page.evaluate(FOREIGN, None) == NOTHING
    # The sanitizer reads HTML in a document of its own, where the policy holds as well and says so.
    page.told = [told for told in page.told if not told.endswith("The action has been blocked.")]


def test_a_model_that_writes_them_gets_nothing_done(page: Any) -> None:
    """All the way: a model of the store, the server's stream, the arena."""
    for place in range(len(PAYLOADS)):
        ask(page, ["hostile", "hostile2"], word(place))
        page.locator(SETTLED).first.wait_for()
        assert page.evaluate(FOREIGN, None) == NOTHING, PAYLOADS[place]
        made = page.evaluate("[...document.querySelectorAll('.model-text *')].map(e => e.tagName)")
        assert set(made) <= ALLOWED
    assert len([url for url in page.asked if url.endswith("/api/chat")]) == 2 * len(PAYLOADS)


def test_markdown_is_shown_and_links_are_only_words(page: Any) -> None:
    show(page, "arena")
    written = "# Title\n\n1. **one**\n2. two\n\n```py\nif a < b: pass\n```\n\n[docs](https://a.example/x) ![cat](c.png)"
    text, tags = page.evaluate(
        """async (written) => {
          const { rendered } = await import("/ui/text.js");
          const box = document.createElement("div");
          box.append(rendered(written));
          document.querySelector(".results").append(box);
          return [box.innerText, [...box.querySelectorAll("*")].map((e) => e.tagName)];
        }""",
        written,
    )
    assert {"OL", "LI", "PRE", "CODE", "STRONG"} <= set(tags)
    assert {"A", "IMG"}.isdisjoint(tags)
    assert "if a < b: pass" in text
    assert "docs (https://a.example/x) [picture: cat, c.png]" in text


SLOW = ("*" * 40_000, "[" * 40_000, "> " * 20_000, "`" * 40_001, "<" * 200_000, "a_" * 29_000)


@pytest.mark.parametrize("place", range(len(SLOW)))
def test_text_made_to_be_slow_is_shown(page: Any, place: int) -> None:
    show(page, "arena")
    length = """async (text) => {
      const { rendered } = await import("/ui/text.js");
      return rendered(text).textContent.length;
    }"""
    assert page.evaluate(length, SLOW[place]) > 0


def test_names_and_numbers_of_models_are_text(page: Any) -> None:
    """As if a store held what no store takes: the page does not count on it."""

    def poison(value: Any, place: int = 0) -> Any:
        if isinstance(value, dict):
            return {key: item if key in ("kind", "digest") else poison(item, place) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item, number) for number, item in enumerate(value)]
        return PAYLOADS[place % len(PAYLOADS)] + value if isinstance(value, str) else value

    def answer(route: Any) -> None:
        body = json.loads(route.fetch().text())
        body["models"] = [
            poison({**body["models"][0], "digest": f"sha256:{place:064d}"}, place) for place in range(len(PAYLOADS))
        ]
        body["evaluations"] = poison(body["evaluations"] * 15)
        route.fulfill(json=body)

    page.route("**/ui/api/models", answer)
    page.route("**/ui/api/reports", lambda route: route.fulfill(json=poison(json.loads(route.fetch().text()))))
    for where in ("models", "arena", "reports"):
        show(page, where)
        for each in page.locator(".open").all():
            each.click()
        found = page.evaluate(FOREIGN, None)
        assert found == NOTHING | {"addresses": [at for at in found["addresses"] if at.startswith("/ui/reports/")]}
    assert page.locator("main").inner_text().count("window.pwned=1") > 0


@pytest.mark.parametrize("place", range(0, len(PAYLOADS), 5))
def test_errors_are_text(page: Any, place: int) -> None:
    said = PAYLOADS[place]
    page.route("**/api/generate", lambda route: route.fulfill(json={"done": True}))
    line = json.dumps({"message": {"role": "assistant", "content": "half "}, "done": False})
    page.route("**/api/chat", lambda route: route.fulfill(body=f"{line}\n{json.dumps({'error': said})}\n"))
    ask(page, ["tiny", "tiny2"], "abc")
    page.locator(SETTLED).first.wait_for()
    assert page.locator(".state.problem").first.text_content() == said
    assert page.locator(".model-text").first.inner_text() == "half"
    page.route("**/ui/api/models", lambda route: route.fulfill(status=200, json={"models": said}))
    page.route("**/ui/api/reports", lambda route: route.fulfill(status=418, json={"error": said}))
    page.evaluate("location.hash = '#reports'")
    page.get_by_role("alert").filter(has_text="cannot be shown").wait_for()
    assert page.evaluate(FOREIGN, None) == NOTHING
    page.told = [told for told in page.told if "418" not in told]  # the browser notes the status that we made up


def test_reports_with_them_are_text_in_a_sandbox(page: Any) -> None:
    kept = [keep(a_fit(task=text), page.server.home / "hostile-reports") for text in PAYLOADS[:3]]
    kept.append(keep(a_comparison("\n".join(PAYLOADS)), page.server.home / "hostile-reports"))
    for each in kept:
        each.path.rename(page.server.home / "reports" / each.path.name)
    try:
        show(page, "reports")
        assert page.locator(".shelf li").count() >= len(kept)
        assert page.evaluate(FOREIGN, None) == NOTHING
        for each in kept:
            page.goto(f"{page.server.url}/ui/reports/{each.id}")
            assert page.evaluate("window.pwned ?? null") is None
            assert page.evaluate("origin") == "null"
            assert page.evaluate("document.querySelectorAll('script').length") == 1  # the report's own
            assert page.evaluate("document.querySelectorAll('iframe, img, object, embed, base').length") == 0
    finally:
        for each in kept:
            (page.server.home / "reports" / each.path.name).unlink()
