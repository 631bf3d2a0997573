"""The chat page in a headless Chromium: pictures, streamed answers, keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llava_cli.browser import chromium
from tests.llava_cli.serving.conftest import Start

webdriver = pytest.importorskip("selenium.webdriver")

PATIENCE_S = 100


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def wait(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE_S).until(
        lambda b: b.execute_script(f"return {script}"), script
    )


def test_a_conversation_about_a_picture(start: Start, browser: Any, tmp_path: Path) -> None:
    from PIL import Image as PIL
    from selenium.webdriver.common.keys import Keys

    PIL.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    server = start(script=("<b>bold</b> ", 0.05, "answer"))
    browser.get(server.url)
    wait(browser, "document.querySelector('#model').textContent === 'llava-demo'")
    browser.find_element("id", "file").send_keys(str(tmp_path / "red.png"))
    wait(browser, "document.querySelectorAll('#staged img').length === 1")
    text = browser.find_element("id", "text")
    text.send_keys("line one" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "line two" + Keys.ENTER)
    said = "document.querySelector('.assistant:last-child').textContent"
    wait(browser, f"{said} === '<b>bold</b> answer'")
    assert browser.execute_script("return document.querySelectorAll('.assistant b').length") == 0
    message = server.engine.asked[0][0].messages[-1]
    assert message.text == "line one\nline two"
    assert message.images[0].open().size == (40, 30)
    wait(browser, "document.querySelector('#send').textContent === 'Send'")
    text.send_keys("and now?" + Keys.ENTER)
    wait(browser, "document.querySelectorAll('.assistant').length === 2")
    wait(browser, f"{said} === '<b>bold</b> answer'")
    roles = [message.role for message in server.engine.asked[1][0].messages]
    assert roles == ["user", "assistant", "user"]
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in errors if "favicon" not in entry["message"]] == []


def test_escape_stops_an_answer(start: Start, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    server = start(script=[*[0.02, "more "] * 5000])
    browser.get(server.url)
    text = browser.find_element("id", "text")
    text.send_keys("go" + Keys.ENTER)
    wait(browser, "(document.querySelector('.assistant')?.textContent || '').includes('more')")
    text.send_keys(Keys.ESCAPE)
    server.wait_until(lambda: server.worker.active == 0)
    assert wait(browser, "document.querySelector('#send').textContent === 'Send'")
