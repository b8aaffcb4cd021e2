"""The pages: what they say to whom, and a person's whole way through them in a real browser."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from optimizer.demo.family import make_family
from storage.lease import Holder
from storage.store import Store

CHROMIUM = shutil.which("chromium")
Serve = Callable[..., TestClient]
Token = Callable[[str], dict[str, str]]
HTML = {"accept": "text/html"}
SCRIPT = "<script>document.title='taken over'</script>"


def test_the_pages_open_and_say_how_studies_stand(client: TestClient, measured: Store) -> None:
    home = client.get("/")
    assert '<a href="/studies/tiny">tiny</a>' in home.text
    assert "paused" in home.text
    page = client.get("/studies/tiny").text
    assert "8 measured, 0 failed, 0 running, 12 planned" in page
    assert 'id="trial-' in page
    assert "<svg" in client.get("/studies/tiny/figure").text
    assert client.get("/studies/other").status_code == 404
    assert "there is no &#39;other&#39;" in client.get("/studies/other").text


def test_every_page_keeps_to_its_own_policy(client: TestClient, measured: Store) -> None:
    """No inline script, style or handler: the policy would stop them, and a page that needs them would be broken."""
    import re

    for path in ("/", "/new", "/login", "/studies/tiny", "/studies/tiny/live", "/studies/tiny/figure"):
        text = client.get(path).text
        assert not re.search(r"<style|<[^>]+\sstyle=|<[^>]+\son\w+=", text), path
        for tag in re.findall(r"<script[^>]*>", text):
            assert 'src="/static/app.js"' in tag or 'type="application/json"' in tag, path


def test_a_script_in_a_log_a_reason_or_a_name_is_text(client: TestClient, measured: Store, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "tiny.log").write_text(SCRIPT)
    job = measured.jobs.add("tiny", "resume", {"trials": 0}, "me")
    measured.jobs.end(job.key, 1, SCRIPT)
    for path in ("/studies/tiny", "/studies/tiny/live"):
        text = client.get(path).text
        assert text.count("&lt;script&gt;document.title") == 2
        assert SCRIPT not in text
    wrong = client.get(f"/studies/{SCRIPT}", headers=HTML)
    assert SCRIPT not in wrong.text or wrong.headers["content-type"] == "application/problem+json"


def test_the_report_cannot_act_for_who_reads_it(client: TestClient, measured: Store) -> None:
    """Sandboxed: whatever a model wrote into it, it has neither our cookie nor our origin."""
    shown = client.get("/v1/studies/tiny/report")
    assert shown.headers["content-type"].startswith("text/html")
    assert "sandbox allow-scripts" in shown.headers["content-security-policy"]
    assert "allow-same-origin" not in shown.headers["content-security-policy"]
    kept = client.get("/v1/studies/tiny/report?download=true")
    assert kept.headers["content-disposition"] == 'attachment; filename="tiny.html"'
    assert "<h1>tiny</h1>" in kept.text
    assert client.get("/v1/studies/tiny/report?pick=best").status_code == 422


def test_who_has_no_token_is_led_to_where_one_is_given(serve: Serve, token: Token) -> None:
    bearer = token("viewer")["authorization"].removeprefix("Bearer ")
    client = serve()
    led = client.get("/", headers=HTML, follow_redirects=False)
    assert (led.status_code, led.headers["location"]) == (303, "/login")
    assert client.get("/login").status_code == 200
    assert client.get("/static/app.js").status_code == 200
    client.post("/v1/session", json={"token": bearer})
    assert client.get("/", headers=HTML).status_code == 200


def test_a_viewer_is_offered_nothing_to_change(serve: Serve, token: Token, measured: Store) -> None:
    viewer, client = token("viewer"), serve()
    page = client.get("/studies/tiny", headers=viewer).text
    for offer in ("Pause", "Resume", 'id="export"', "Delete this study", "Start a study"):
        assert offer not in page
    assert "Start a study" not in client.get("/", headers=viewer).text


@pytest.fixture(scope="module")
def pages() -> Iterator[Any]:
    """A browser; its pages fail the test when a script of theirs does."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Path:
    """Where screenshots are kept: ``.pytest_cache/d/service-pages``."""
    return request.config.cache.mkdir("service-pages")


def opened(browser: Any, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_context(**options).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(300_000)
    return page, errors


SLOW_DISK = """
const read = Blob.prototype.text;
Blob.prototype.text = async function () {
  await new Promise((done) => setTimeout(done, 1000));
  return read.call(this);
};
"""


def test_a_person_launches_watches_picks_exports_and_takes_the_report_home(
    pages: Any, pictures: Path, request: pytest.FixtureRequest, tmp_path: Path, storage: str, start: Callable[..., Any]
) -> None:
    family = make_family(request.config.cache.mkdir("demo-family"), progress=lambda *_: None).parent
    root = tmp_path / "demo"
    shutil.copytree(family, root)
    study_file = root / "study.yaml"
    study_file.write_text(study_file.read_text().replace("trials: 60", "trials: 24"))
    service = start(root, storage)
    page, errors = opened(pages, viewport={"width": 1200, "height": 900}, accept_downloads=True)

    page.add_init_script(SLOW_DISK)
    page.goto(f"{service.url}/")
    page.get_by_role("link", name="Start one").click()
    page.get_by_label("Open a file").set_input_files(study_file)
    assert page.get_by_role("button", name="Launch").is_disabled(), "nothing is launched before it is checked"
    page.get_by_role("button", name="Check").click()
    page.get_by_text("It can be launched.").wait_for()
    assert page.get_by_text("about").first.is_visible()
    page.screenshot(path=pictures / "new.png", full_page=True)
    page.get_by_role("button", name="Launch").click()

    page.wait_for_url("**/studies/demo")
    page.locator("#live .state.running").wait_for()
    page.locator("#table tbody tr").first.wait_for()
    page.screenshot(path=pictures / "running.png", full_page=True)
    page.locator("#live .state.done").wait_for(timeout=300_000)
    assert page.get_by_text("24 measured").is_visible()
    page.locator("#figure svg").first.wait_for()

    front = service.get("/v1/studies/demo/front").json()
    chosen = max((r for r in front), key=lambda r: r["posterior"]["general"]["mean"])["trial"]
    page.get_by_label(f"Pick trial {chosen}").check()
    page.get_by_label("Directory to write").fill("exports/picked")
    page.get_by_role("button", name="Export", exact=True).click()
    page.locator("#below .state.done").wait_for()
    exported = json.loads((root / "exports" / "picked" / "merge_recipe.json").read_text())
    assert exported["trial"] == chosen
    page.screenshot(path=pictures / "study.png", full_page=True)

    with page.expect_download() as download:
        page.get_by_role("link", name="Download the report").click()
    report = Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "demo.html"
    assert f"Trial {chosen}" in report or f'"{chosen}"' in report

    page.get_by_label("Directory to write").fill("/etc/picked")
    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_text("paths must lie below the service's roots").wait_for()
    assert [e for e in errors if "422" not in e] == []


@pytest.fixture
def finished(measured: Store, address: str) -> str:
    """The address of a finished study's page."""
    measured.set_planned("tiny", 8)
    return f"{address}/studies/tiny"


def test_the_keyboard_reaches_everything(pages: Any, finished: str) -> None:
    page, _ = opened(pages)
    page.goto(finished)
    page.locator("#figure svg").first.wait_for(state="attached")
    wanted = ["a.button", "#table input[type=radio]", "#export input[name=out]", "#export button", "summary"]
    reached: set[str] = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached |= {w for w in wanted if page.locator(f"{w}:focus").count()}
        if page.locator("#table input[type=radio]:focus").count():
            page.keyboard.press("Space")
    assert reached == set(wanted)
    assert page.locator("#table input[type=radio]:checked").count() == 1


@pytest.mark.parametrize(("name", "width"), [("phone", 360), ("desk", 1200)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_their_window_in_both_schemes(
    pages: Any, finished: str, pictures: Path, name: str, width: int, scheme: str
) -> None:
    page, errors = opened(pages, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in ("", "/../../", "/../../new", "/../../login"):
        page.goto(f"{finished}{path}")
        if not path:
            page.locator("#figure svg").first.wait_for(state="attached")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
        page.screenshot(path=pictures / f"{name}-{scheme}-{len(path)}.png", full_page=True)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert errors == []


def test_what_a_reader_has_marked_stays_when_the_page_renews_itself(pages: Any, finished: str, measured: Store) -> None:
    page, _ = opened(pages)
    page.goto(finished)
    radio = page.locator("#table input[type=radio]").first
    radio.check()
    value = radio.input_value()
    measured.set_planned("tiny", 9)  # another state: an event, and a fragment
    page.locator("#live .state.paused").wait_for()
    assert page.locator("#table input[type=radio]:checked").input_value() == value
    assert page.get_by_role("button", name="Resume").is_visible()
    assert not page.get_by_role("button", name="Pause").is_visible()


def test_a_page_shows_what_workers_do_as_it_changes(pages: Any, pictures: Path, measured: Store, address: str) -> None:
    page, errors = opened(pages, viewport={"width": 1200, "height": 900})
    at = "2026-01-01T00:00:00+00:00"
    measured.hold("tiny", Holder.me())
    measured.set_workers("tiny", [{"worker": "a:1", "doing": "trial 8", "since": at}])
    page.goto(f"{address}/studies/tiny")
    row = page.get_by_role("row", name="a:1")
    row.get_by_text("trial 8").wait_for()
    page.screenshot(path=pictures / "workers.png", full_page=True)
    measured.set_workers("tiny", [{"worker": "a:1", "doing": "trial 9", "since": at}])
    row.get_by_text("trial 9").wait_for()
    measured.release("tiny")
    page.locator("#live .state.paused").wait_for()
    assert row.count() == 0, "it has gone, and has measured nothing"
    assert page.locator("#below tr.gone").count() == 1
    assert errors == []
