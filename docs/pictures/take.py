"""A picture of a page: ``python docs/pictures/take.py PAGE PNG [--height PIXELS] [--phone] [--dark]``.

PAGE is a file or an address. Needs Playwright's Python package and the system's Chromium (``make chromium``).
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Take one picture, of the page's top."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page")
    parser.add_argument("png", type=Path)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there must be a chromium on this machine, but there is none: `make chromium` installs Debian's.")
    address = options.page if "://" in options.page else Path(options.page).resolve().as_uri()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 390 if options.phone else 1000, "height": options.height},
            color_scheme="dark" if options.dark else "light",
        )
        page.goto(address)
        page.screenshot(path=options.png)
        browser.close()


if __name__ == "__main__":
    main()
