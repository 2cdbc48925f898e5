"""Chromium without a screen, where there is one, looking at one page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]

SECONDS = 15  # until the curves are drawn


def chromium() -> str | None:
    """The path of a Chromium on this machine."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@contextmanager
def open_page(
    playwright: Any, browser: str, address: str, *, width: int, height: int, dark: bool = False, touch: bool = False
) -> Iterator[Any]:
    """A page at `address` whose curves are drawn. `page.said` has its console's messages and errors, `page.asked` the
    addresses of its requests."""
    opened = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
    try:
        page = opened.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=touch
        )
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append((message.type, message.text)))
        page.on("pageerror", lambda error: page.said.append(("error", str(error))))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        if page.locator("html.live").count():
            try:
                page.wait_for_selector("html[data-drawn]", timeout=SECONDS * 1000)
            except Exception as error:
                raise AssertionError(f"The curves are not drawn: {page.said}") from error
            page.wait_for_timeout(300)
        yield page
    finally:
        opened.close()
