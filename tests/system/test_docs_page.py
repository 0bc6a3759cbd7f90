"""The docs page as a real browser shows it."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.support.server import Server

pytestmark = pytest.mark.system

# The browser asks for nothing of its own accord; without a sandbox, since that refuses to run as root.
QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", *QUIET]
TEXT = "I love this product"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """The addresses that the page has asked for."""
    return []


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server, asked: list[str]) -> Page:
    """The docs page, drawn."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    return page


def operation(page: Page, method: str, path: str) -> Locator:
    """One operation of the page, opened."""
    block = page.locator(f".opblock-{method}").filter(has=page.locator(f'[data-path="{path}"]'))
    if block.locator(".opblock-body").count() == 0:
        block.locator(".opblock-summary-control").click()
    expect(block.locator(".opblock-body")).to_be_visible()
    return block


def test_the_page_shows_each_model_with_its_own_fields(page: Page, models: Path) -> None:
    """Each model that is loaded has its operations, with the fields that its manifest names."""
    for folder in (folder for folder in models.iterdir() if folder.is_dir()):
        manifest = json.loads((folder / "1/manifest.json").read_text())
        block = operation(page, "post", f"/v2/predict/{folder.name}")

        for field in manifest["fields"]:
            expect(block.locator(".opblock-section-request-body")).to_contain_text(field["name"])


def test_the_page_predicts(page: Page) -> None:
    """What a newcomer does first works: open the operation, type a text, execute, read the answer."""
    block = operation(page, "post", "/predict")
    block.locator("textarea.body-param__text").fill(json.dumps({"text": TEXT}))

    block.get_by_role("button", name="Execute").click()

    answer = block.locator(".live-responses-table .highlight-code").first
    expect(answer).to_contain_text(re.compile(r'"sentiment":\s*"positive"'))
    if where := os.environ.get("DOCS_SCREENSHOT"):
        _save_screenshot(page, block, Path(where))


def test_the_page_asks_nobody_else(page: Page, asked: list[str], server: Server) -> None:
    """Drawing the page and using it needs this server alone, so it works without a connection to anywhere."""
    page.reload()
    expect(page.locator(".opblock").first).to_be_visible()

    elsewhere = [url for url in asked if not url.startswith((f"{server.url}/", "data:", "blob:"))]
    assert len(asked) >= 4
    assert elsewhere == []


def test_the_page_draws_without_an_error(browser: Browser, server: Server) -> None:
    """Nothing goes to the browser's console, and no file of the page is missing."""
    complaints: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda answer: complaints.append(answer.url) if not answer.ok else None)

    page.goto(f"{server.url}/docs", wait_until="networkidle")
    page.close()

    assert complaints == []


def _save_screenshot(page: Page, block: Locator, where: Path) -> None:
    """The page from its title down to the answer of that operation."""
    last = block.locator(".live-responses-table").bounding_box()
    assert last is not None
    bottom = last["y"] + last["height"] + page.evaluate("window.scrollY")
    where.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=where, full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": bottom + 4})
