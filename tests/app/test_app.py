"""The real command: its page in a browser and over HTTP, what it refuses, how it ends. Nothing leaves the machine."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="pumer[app] is not installed")
import httpx

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 300  # seconds of a busy machine; nothing waits so long on an idle one
HOOKED = """
import sys
def hook(event, values):
    if event == "socket.connect" and isinstance(values[1], tuple) and values[1][0] not in ("127.0.0.1", "::1"):
        print("CONNECTS", values[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and values[0] not in (None, "127.0.0.1", "localhost"):
        print("LOOKS UP", values[0], file=sys.stderr, flush=True)
sys.addaudithook(hook)
from pumer.__main__ import main
main()
"""


def encoded(image, kind="PNG"):
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


LARGE = encoded(Image.new("1", (8000, 5000)))
SCENE = (Path(__file__).parents[2] / "docs/images/scene.png").read_bytes()


class Running:
    def __init__(self, folder):
        command = [sys.executable, "-c", HOOKED, "app", "port=0", "max_bytes=1000000"]
        self.temporary = folder
        environment = {**os.environ, "TMPDIR": str(folder)}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        line = self.process.stderr.readline()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+)\n", line)
        if found is None:
            self.process.kill()
        assert found, line + self.process.stderr.read()
        self.url = found[1]
        self.client = httpx.Client(base_url=f"{self.url}/gradio_api", timeout=PATIENCE)

    def upload(self, content, name="scene.png"):
        (path,) = self.client.post("/upload", files={"files": (name, content)}).raise_for_status().json()
        return path

    def ask(self, path, question="what color is the small triangle?", model="small:vilt", method="pumer", prune=20):
        image = path if isinstance(path, dict) else {"path": path, "meta": {"_type": "gradio.FileData"}}
        sent = self.client.post("/call/ask", json={"data": [model, image, question, method, prune, 60]})
        event = sent.raise_for_status().json()["event_id"]
        said = self.client.get(f"/call/ask/{event}").text
        found = re.search(r"^event: complete\ndata: (.*)$", said, re.MULTILINE)
        return json.loads(found[1])[0] if found else said


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = Running(tmp_path_factory.mktemp("temporary"))
    yield server
    if server.process.poll() is None:
        server.process.kill()


def answers(html):
    return re.findall(r'<p class="answer[^"]*">([^<]*)</p>', html)


@pytest.mark.slow
def test_twenty_at_once_are_served(running):
    path = running.upload(SCENE)
    asked = [{"prune": n // 2 % 2, "model": ("small:vilt", "small:meter")[n % 2]} for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda each: running.ask(path, **each), asked))
    for html in found:
        assert len(answers(html)) == 2 and answers(html)[0] == "orange", html[:300]
        assert html.count("<img") >= 2 and "pumer.patch(model" in html


REFUSED = [
    ({"path": ("photo.png", LARGE)}, "8000 x 5000"),
    ({"path": ("photo.png", b"these are words")}, "known format"),
    ({"path": ("photo.png", b"")}, "empty"),
    ({"path": ("photo.png", SCENE[:9000])}, "decoded"),
    ({"question": "a" * 10_000}, "10,000"),
    ({"question": "  "}, "question"),
    ({"question": ["a"]}, "question"),
    ({"method": "fastv"}, "fastv"),
    ({"method": ["pumer"]}, "pumer"),
    ({"model": "small:llama"}, "small:llama"),
    ({"model": {}}, "{}"),
    ({"prune": 91}, "91%"),
    ({"prune": 40}, "100%"),
    ({"prune": "much"}, "much"),
]


def test_what_cannot_be_answered_is_named_and_the_page_goes_on(running):
    for sent, said in REFUSED:
        name, content = sent.get("path", ("scene.png", SCENE))
        html = running.ask(**{**sent, "path": running.upload(content, name)})
        (line,) = re.findall(r'<p class="note refused" role=alert>([^<]*)</p>', html)
        assert said in line and not answers(html), (sent, html)
    html = running.ask(running.upload(SCENE))
    assert answers(html)[0] == "orange" and len(answers(html)) == 2 and html.count("<img") == 6


def test_files_are_bounded_and_no_other_file_or_address_is_read(running):
    assert running.client.post("/upload", files={"files": ("a.png", bytes(1_000_001))}).is_error
    many = [("files", (f"{n}.png", bytes(900_000))) for n in range(4)]
    assert running.client.post("/upload", files=many).is_error
    secret = running.temporary / "secret.png"
    secret.write_bytes(SCENE)
    for path in (secret, Path(__file__), "/etc/passwd", "http://127.0.0.1:1/a.png", "https://example.com/a.png"):
        assert not answers(running.ask(str(path))), path
        assert not answers(
            running.ask(running.upload(SCENE), question={"path": str(path), "meta": {"_type": "gradio.FileData"}})
        )
        assert running.client.get(f"/file={path}").is_error
    assert len(answers(running.ask(running.upload(SCENE)))) == 2


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there")
    with playwright.sync_playwright() as found:
        started = found.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


def test_a_person_uploads_asks_and_slides(running, browser):
    page = browser.new_page(viewport={"width": 420, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    asked, errors = set(), []
    page.on("request", lambda request: asked.add(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(running.url)
    result, code = page.locator("#result"), page.locator("#result code")
    code.wait_for()
    assert result.locator(".answer").count() == 2

    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    upload = page.locator("input[type=file]").first
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    upload.set_input_files({"name": "photo.png", "mimeType": "image/png", "buffer": encoded(Image.fromarray(noise))})
    result.get_by_text("200 x 150").wait_for()
    page.get_by_label("Question").fill("is there a zebra?")
    page.get_by_role("button", name="Ask", exact=True).click()
    code.wait_for()
    assert result.locator(".answer").count() == 2 and all(result.locator(".answer").all_inner_texts())
    assert "small:vilt" in result.locator(".note").inner_text()
    images = result.locator("img")
    assert images.count() == 6
    assert all(images.nth(number).evaluate("image => image.naturalWidth") > 0 for number in range(6))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"

    before = code.inner_text()
    page.get_by_role("slider").first.press("ArrowRight")
    page.wait_for_function("before => (document.querySelector('#result code') || {}).innerText != before", arg=before)
    code.wait_for()
    assert "merge_ratio" in code.inner_text() and code.inner_text() != before

    for name, content, said in (("large.png", LARGE, "8000 x 5000"), ("text.png", b"these are words", "known format")):
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        upload.set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        result.locator(".refused").get_by_text(said).wait_for()
    page.locator("#examples img").nth(1).click()
    code.wait_for()
    page.get_by_label("Question").fill("a" * 10_000)
    page.get_by_role("button", name="Ask", exact=True).click()
    result.locator(".refused").get_by_text("10,000").wait_for()
    page.get_by_label("Question").fill("how many circles are there?")
    page.get_by_role("button", name="Ask", exact=True).click()
    code.wait_for()
    page.get_by_role("tab", name="Results").click()
    page.locator(".points, :text('pumer app results=FOLDER')").first.wait_for()
    assert not errors
    assert {url for url in asked if not url.startswith((running.url, "data:", "blob:"))} == set()
    page.close()


def test_ctrl_c_ends_it_and_nothing_is_left(running):
    """The last test. Nothing was connected to, nor looked up."""
    (own,) = running.temporary.glob("pumer-app-*")
    assert any(own.rglob("*.png"))
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(PATIENCE) == 130
    said = running.process.stderr.read().splitlines()  # with Gradio's own words about requests that were forged
    assert said[-1] == "interrupted" and not [line for line in said if line.startswith(("CONNECTS", "LOOKS UP"))]
    assert {path.name for path in running.temporary.rglob("*.png")} <= {"secret.png"}
    assert not [*running.temporary.glob("pumer-app-*")]
