"""The pages of the web page as the tests open, fill in and check them."""

from typing import Any

from served import Served

WAIT_MS = 120_000
SETTLED = ".results:not(:has(.column[aria-busy=true])) .column"


def opened(browser: Any, server: Served, *, width: int = 1280, scheme: str = "light") -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.told, page.asked, page.server = [], [], server
    page.on("console", lambda message: page.told.append(message.text))
    page.on("pageerror", lambda error: page.told.append(f"error: {error}"))
    page.on("dialog", lambda dialog: page.told.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: page.asked.append(request.url))
    return page


def check(page: Any) -> None:
    assert page.told == [], page.told
    assert [url for url in page.asked if not url.startswith((page.server.url + "/", "data:,"))] == []


def show(page: Any, where: str) -> None:
    page.goto(f"{page.server.url}/ui#{where}")
    page.locator(f"main[data-page={where.partition('/')[0]}]").wait_for()


def ask(page: Any, models: list[str], prompt: str, *, tokens: int = 16, blind: bool = False) -> None:
    """Fill in the arena and send it off."""
    show(page, "arena")
    while page.locator(".slot select").count() < len(models):
        page.get_by_role("button", name="Add a model").click()
    for place, model in enumerate(models):
        page.locator(".slot select").nth(place).select_option(model)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Most tokens").fill(str(tokens))
    if blind:
        page.get_by_text("hidden until I vote").click()
    page.get_by_role("button", name="Ask", exact=True).click()
