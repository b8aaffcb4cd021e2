"""The report as a person meets it: in a browser, from disk, without a network."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer.report.findings import findings
from optimizer.report.page import write_page
from storage.store import Store
from tests.optimizer.report.conftest import MERGES, objectives, rule

Known = Callable[..., Store]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium` brings one")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # Without a sandbox of its own: as root, as in most containers, it has none.
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def report(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; whatever it asks of a network, and whatever its console says, fails the test."""
    contexts, said = [], []

    def open_file(path: Path, **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert said == []


def test_it_opens_from_disk_and_shows_the_pick(report: Path, tab: Callable[..., Any]) -> None:
    page = tab(report)
    assert page.title() == "tiny: the merges found"
    assert page.locator("#trial h3").inner_text().endswith("the pick")
    assert page.locator(".figure .wide svg").first.is_visible()
    assert not page.locator(".figure .narrow svg").first.is_visible()


def test_a_click_on_a_mark_shows_its_trial(report: Path, tab: Callable[..., Any]) -> None:
    page = tab(report)
    mark = page.locator('.wide [data-trial="4"]').first  # the base, far from every other
    mark.hover(force=True)
    assert page.locator("#tip").inner_text().startswith("Trial 4, base")
    box = mark.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 + 5, box["y"] + box["height"] / 2)  # near is enough
    assert page.locator("#trial h3").inner_text().startswith("Trial 4, base")
    assert "mergefront export tiny --trial 4" in page.locator("#trial pre").inner_text()
    assert page.url.endswith("#trial-4")
    assert mark.evaluate("e => e.closest('.figure').contains(document.getElementById('trial'))")


def test_an_address_names_a_trial(report: Path, tab: Callable[..., Any]) -> None:
    page = tab(report)
    page.goto(f"{report.as_uri()}#trial-2")
    page.reload()
    assert page.locator("#trial h3").inner_text().startswith("Trial 2, beta")
    page.goto(f"{report.as_uri()}#trial-99999")
    page.reload()
    assert page.locator("#trial h3").inner_text().endswith("the pick")


def test_the_keyboard_reaches_every_mark(report: Path, tab: Callable[..., Any]) -> None:
    page = tab(report)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('mark')"):
            break
    seen = []
    while True:
        trial = page.evaluate("document.activeElement.dataset.trial")
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label.startswith(f"Trial {trial}")
        assert page.locator("#tip").is_visible()
        seen.append(trial)
        before = page.evaluate("document.activeElement.getAttribute('x')")
        page.keyboard.press("ArrowRight")
        if page.evaluate("document.activeElement.getAttribute('x')") == before and seen[-1] == page.evaluate(
            "document.activeElement.dataset.trial"
        ):
            break
    figure = page.locator(".figure .wide svg").first
    assert set(seen) == set(figure.locator("[data-trial]").evaluate_all("all => all.map(e => e.dataset.trial)"))
    page.keyboard.press("Enter")
    assert page.locator("#trial h3").inner_text().startswith(f"Trial {seen[-1]}")
    page.keyboard.press("Tab")  # one stop a figure: the next is outside of it
    assert not page.evaluate("document.activeElement.classList.contains('mark')")


def test_a_phone_has_drawings_of_its_own_and_nothing_wider_than_itself(report: Path, tab: Callable[..., Any]) -> None:
    page = tab(report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".figure .narrow svg").first.is_visible()
    mark = page.locator('.narrow [data-trial="4"]').first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#trial h3").inner_text().startswith("Trial 4, base")


def test_it_is_dark_where_the_reader_wants_it_dark(report: Path, tab: Callable[..., Any]) -> None:
    def lightness(page: Any, selector: str, of: str) -> float:
        colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{of}")
        return sum(float(c) for c in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3

    for scheme, paper in (("light", 255), ("dark", 23)):
        page = tab(report, color_scheme=scheme)
        ground = lightness(page, "body", "backgroundColor")
        assert abs(ground - paper) < 1
        for selector, of in (("p", "color"), (".wide .fill-ink", "fill"), (".wide .fill-front", "fill")):
            assert abs(lightness(page, selector, of) - ground) > 70


def test_a_script_in_what_a_model_wrote_does_not_run(
    known_study: Known, tmp_path: Path, tab: Callable[..., Any]
) -> None:
    evil = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    store = known_study(rule, merges=MERGES, says=lambda *_: ("refused", evil), objectives=objectives(at_least=0.85))
    path = tmp_path / "report.html"
    write_page(findings(store, "tiny"), path)
    page = tab(path)
    assert page.title() == "tiny: the merges found"
    assert page.locator(".items .text", has_text="document.title").first.is_visible()
