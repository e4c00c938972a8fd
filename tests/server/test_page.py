"""The page: what it is made of, and how it works in a browser."""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO

import pytest
import requests
from PIL import Image

from tests.server.conftest import Running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def html() -> str:
    return (files("txt2img.server") / "page.html").read_text("utf-8")


def test_every_field_has_a_label(html: str) -> None:
    page = Elements()
    page.feed(html)
    labelled = {attrs["for"] for tag, attrs in page.found if tag == "label"}
    fields = [attrs for tag, attrs in page.found if tag in ("input", "textarea", "select")]
    assert len(fields) >= 6
    assert {attrs["id"] for attrs in fields} == labelled
    assert all(attrs.get("aria-label") for tag, attrs in page.found if tag == "progress")
    assert all(attrs.get("alt") for tag, attrs in page.found if tag == "img")
    assert ("html", {"lang": "en"}) in page.found
    assert [tag for tag, _ in page.found].count("h1") == 1
    assert any(attrs.get("role") == "status" for _, attrs in page.found)


def test_nothing_comes_from_elsewhere(html: str, serving: Running) -> None:
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"(?m)^\s*//.*$|; +// .*$", "", html))
    answer = requests.get(serving.url, timeout=10)
    assert answer.text == html
    policy = dict(part.strip().split(" ", 1) for part in
                  answer.headers["content-security-policy"].split(";"))  # fmt: skip
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert " style=" not in html
    assert not re.findall(r"\son\w+=", html)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium, if the machine has one."""
    library = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with library.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield chromium
        chromium.close()


def test_a_picture_is_asked_for_by_keyboard_and_shown(browser, serving: Running) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme="dark")
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(serving.url)
    page.get_by_role("option", name="tiny-sd1").wait_for(state="attached")
    page.keyboard.type('a "red" <b>apple</b>')  # the prompt has the focus
    for text in ("tree", None, "128", "64", "2", "18446744073709551615"):
        page.keyboard.press("Tab")
        if text is not None:
            page.keyboard.type(text)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Draw"
    page.keyboard.press("Enter")
    picture = page.get_by_role("img", name='a "red" <b>apple</b>')
    picture.wait_for(timeout=60_000)
    assert picture.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [128, 64]
    assert page.get_by_role("status").inner_text().startswith("Done in")
    assert page.get_by_role("list", name="Last pictures").get_by_role("listitem").count() == 1
    with page.expect_download() as download:
        page.get_by_role("link", name="Save the picture with seed 18446744073709551615").click()
    with open(download.value.path(), "rb") as file:
        content = file.read()
    text = Image.open(BytesIO(content)).text["parameters"]  # type: ignore[attr-defined]
    assert "Seed: 18446744073709551615, Size: 128x64" in text
    assert "Negative prompt: tree" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert not complaints
    page.close()


def test_roles_have_names_and_mistakes_are_told(browser, serving: Running) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page()
    page.goto(serving.url)
    for name in ("Prompt", "Negative prompt", "Seed"):
        assert page.get_by_role("textbox", name=name, exact=True).count() == 1
    for name in ("Width, pixels", "Height, pixels", "Steps"):
        assert page.get_by_role("spinbutton", name=name).count() == 1
    assert page.get_by_role("combobox", name="Model").count() == 1
    page.get_by_label("Prompt", exact=True).fill("a <lora:nothing:1>")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("no LoRA").wait_for(timeout=30_000)
    assert not page.get_by_role("button", name="Stop").is_enabled()
    page.close()


def test_stop_stops_the_picture(browser, serving: Running) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page()
    page.goto(serving.url)
    page.get_by_label("Prompt", exact=True).fill("a")
    page.get_by_label("Steps").fill("900")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("progressbar", name="Progress of the picture").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for(timeout=30_000)
    page.close()
    for _ in range(200):
        if not serving.service.queue.jobs:
            break
        requests.get(f"{serving.url}/health", timeout=10)
    assert serving.service.metrics.values["jobs_cancelled", ""] >= 1
