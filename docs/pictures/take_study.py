"""A picture of the service's page of a study: ``python docs/pictures/take_study.py DIRECTORY PNG``.

DIRECTORY is a demo's, with its database. The service is started for it on loopback, and stopped.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

MERGEFRONT = Path(sys.executable).parent / "mergefront"


def main() -> None:
    """Take one picture, of the page's top."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("png", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there must be a chromium on this machine, but there is none: `make chromium` installs Debian's.")
    storage = f"sqlite:///{options.directory / 'mergefront.db'}"
    command = [
        MERGEFRONT,
        "serve",
        "--port",
        "0",
        "--root",
        options.directory,
        "--storage",
        storage,
        "--logs",
        options.directory,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stderr is not None
            found = re.search(r" on (http://\S+) ", service.stderr.readline())
            if found is None:
                sys.exit(f"the service must start, but it said: {service.stderr.read()}")
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1100, "height": 1000}, color_scheme="light")
                page.goto(f"{found[1]}/studies/demo")
                page.locator("#figure svg").first.wait_for(state="attached", timeout=300_000)
                page.screenshot(path=options.png)
                browser.close()
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
