"""The docs page of a service that asks for credentials: a person signs in on it, and predicts."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.server import ROOT, Server, clean_environment, running_server
from tests.system.test_docs_page import FLAGS, TEXT, operation

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as `make run` starts it: nobody predicts without a credential."""
    log = tmp_path_factory.mktemp("guarded") / "log"
    with running_server(models, log, {"AUTH_MODE": "jwt", "LOG_FORMAT": "json"}, arguments=["--migrate"]) as running:
        yield running


@pytest.fixture(scope="module")
def page(guarded: Server) -> Iterator[Page]:
    """Its docs page, drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(f"{guarded.url}/docs")
        expect(page.locator(".opblock").first).to_be_visible()
        yield page
        browser.close()


def _predict(page: Page, answer: re.Pattern[str]) -> None:
    block = operation(page, "post", "/predict")
    block.locator("textarea.body-param__text").fill(json.dumps({"text": TEXT}))
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .highlight-code").first).to_contain_text(answer)


def test_a_stranger_is_told_what_is_missing(page: Page) -> None:
    """The page is open in development, the prediction is not."""
    _predict(page, re.compile(r'"code":\s*"unauthenticated"'))


def test_a_client_signs_in_and_predicts(page: Page, guarded: Server) -> None:
    """With the id and the secret of a client, on the page's own form."""
    environment = clean_environment(DATABASE_URL=f"sqlite:///{guarded.log.parent}/presage.db")
    command = [sys.executable, "-m", "app", "clients", "add", "browser"]
    added = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    page.get_by_role("button", name="Authorize").first.click()
    form = page.locator(".auth-container").filter(has_text="clientCredentials").first
    form.locator("input[data-name=clientId]").fill("browser")
    form.locator("input[data-name=clientSecret]").fill(added.stdout.strip())
    form.locator(".auth-btn-wrapper button.authorize").click()
    expect(form.locator(".auth-btn-wrapper")).to_contain_text("Logout")
    page.locator(".modal-ux .btn-done").first.click()
    _predict(page, re.compile(r'"sentiment":\s*"positive"'))
