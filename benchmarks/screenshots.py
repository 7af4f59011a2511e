"""Screenshots of `pumer app` for docs/app.md, by a Chromium without a window; they show latencies: let all else rest.

    python -m benchmarks.screenshots

Needs playwright and a Chromium.
"""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import RESULTS, parser

IMAGES = Path("docs/images")
WIDE, NARROW = 1400, 420
QUESTION = "what color is the small triangle?"


def main() -> None:
    """Start the page, look at it, write the images."""
    options = parser(__doc__)
    options.add_argument("--chromium", default="/usr/bin/chromium")
    options.add_argument("--out", type=Path, default=IMAGES)
    arguments = options.parse_args()
    from playwright.sync_api import sync_playwright

    with serving() as url, sync_playwright() as found:
        browser = found.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        shots = {
            theme: {width: shot(browser, url, width, theme) for width in (WIDE, NARROW)} for theme in ("light", "dark")
        }
        for theme, images in shots.items():
            save(images[WIDE], arguments.out / f"app-wide-{theme}.png")
        save(beside([images[NARROW] for images in shots.values()]), arguments.out / "app-narrow.png")
        save(shot(browser, url, WIDE, "light", "Results"), arguments.out / "app-results.png")
        browser.close()


@contextmanager
def serving() -> Iterator[str]:
    """The address of a page of its own."""
    command = [sys.executable, "-m", "pumer", "app", "port=0", f"results={RESULTS}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = (re.fullmatch(r"open (http://\S+)\n", line) for line in process.stderr)
        yield next(found[1] for found in lines if found)
    finally:
        process.terminate()
        process.wait()


def shot(browser: Any, url: str, width: int, theme: str, tab: str | None = None) -> Image.Image:
    """The whole page after a question, or a tab of it."""
    page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=theme)
    page.set_default_timeout(300_000)
    page.goto(f"{url}/?__theme={theme}")
    page.locator("#result code").wait_for()
    if tab is None:
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_timeout(5000)
        page.locator("#result code").wait_for()
    else:
        page.get_by_role("tab", name=tab).click()
        page.locator(".points").first.wait_for()
    content = page.screenshot(full_page=tab is None)
    page.close()
    return Image.open(io.BytesIO(content)).convert("RGB")


def beside(images: list[Image.Image]) -> Image.Image:
    """Images in a row."""
    row = Image.new("RGB", (sum(image.width for image in images) + 20, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + 20
    return row


def save(image: Image.Image, file: Path) -> None:
    """Write an image of few colours, and so of few bytes."""
    image.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
