"""What is kept for clients that send much and fetch nothing."""

import json
import os
import re
import tempfile
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="pumer[app] is not installed")
from starlette.testclient import TestClient

from pumer.app import bounds
from pumer.app.page import EXAMPLES, Page, application
from pumer.settings.app import AppConfig

CONFIG = AppConfig(max_bytes=2**20, results=None)
ANSWER = "a" * 1000


class Asked(Page):
    def ask(self, model, upload, question, method, prune, merge):
        return question + ANSWER


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("pumer.app.page.WAITING", 5)
    strength = SimpleNamespace(methods=["pumer"], amounts=lambda method: (True, True))
    page = Asked({"small": SimpleNamespace(strength=strength, small=False)}, CONFIG, tmp_path)
    with TestClient(application(page), base_url="http://127.0.0.1/gradio_api") as client:
        yield client


def upload(client, size, name="a.png"):
    return client.post("/upload", files={"files": (name, os.urandom(size))})


def ask(client, question, **session):
    sent = client.post("/call/ask", json={"data": ["small", None, question, "pumer", 20, 60], **session})
    return sent.raise_for_status().json()["event_id"]


def fetch(client, event):
    said = client.get(f"/call/ask/{event}").text
    return re.search(r"^event: (\w+)\ndata: (.*)$", said, re.MULTILINE).groups()


def test_of_answers_that_nobody_fetches_the_newest_are_kept(client, monkeypatch):
    monkeypatch.setattr(bounds, "KEPT_ANSWERS", 3)
    events = [ask(client, str(number)) for number in range(8)]
    kind, last = fetch(client, events[-1])
    assert kind == "complete" and json.loads(last) == [f"7{ANSWER}"]
    for event in events[:5]:
        kind, said = fetch(client, event)
        assert kind == "error" and "not fetched in time" in said and ANSWER not in said
    for number in (5, 6):
        assert json.loads(fetch(client, events[number])[1]) == [f"{number}{ANSWER}"]
    assert json.loads(fetch(client, ask(client, "again"))[1]) == [f"again{ANSWER}"]


def test_of_pages_the_newest_are_remembered(client):
    for number in range(8):
        ask(client, "x", session_hash=f"page {number}")
        assert ANSWER in client.get("/queue/data", params={"session_hash": f"page {number}"}).text
    remembered = client.app.routes[-1].app.state_holder.session_data
    assert list(remembered) == [f"page {number}" for number in range(3, 8)]


def test_all_uploads_together_are_bounded(client, tmp_path, monkeypatch):
    examples = EXAMPLES * 2**16
    monkeypatch.setattr(bounds, "KEPT_BYTES", CONFIG.max_bytes + 2 * 2**20 + examples)
    answers = [upload(client, 400_000) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 507, 507]
    assert f"{bounds.KEPT_BYTES:,}" in answers[-1].text and len(answers[-1].text.splitlines()) == 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < bounds.KEPT_BYTES
    os.remove(*answers[0].json())
    assert upload(client, 1000).status_code == 200


def test_many_small_files_are_bounded_too(client, monkeypatch):
    monkeypatch.setattr(bounds, "KEPT_BYTES", CONFIG.max_bytes + 2 * 2**20 + EXAMPLES * 2**16)
    many = [("files", (f"{number}.png", str(number).encode())) for number in range(20)]
    assert client.post("/upload", files=many).status_code == 200
    assert upload(client, 1).status_code == 507


def test_what_an_interrupted_upload_left_is_removed_once_it_is_old(client, tmp_path):
    for name, age in (("tmpold", bounds.KEPT_S + 9), ("tmpnew", 9), ("example-0.png", bounds.KEPT_S + 9)):
        (tmp_path / name).write_bytes(b"part")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert upload(client, 1).status_code == 200
    assert not (tmp_path / "tmpold").exists()
    assert (tmp_path / "tmpnew").exists() and (tmp_path / "example-0.png").exists()


def test_a_request_with_a_question_is_bounded_as_the_question_is(client):
    assert fetch(client, ask(client, "a" * 2**19))[0] == "complete"
    assert client.post("/call/ask", json={"data": ["a" * (2**20 + 12 * CONFIG.max_characters)]}).status_code == 413


def test_files_are_written_by_uploads_alone(client, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ask(client, "x", session_hash="page")
    client.get("/queue/data", params={"session_hash": "page"})
    before = sorted(tmp_path.rglob("*"))
    assert client.get("/deep_link", params={"session_hash": "page"}).status_code == 404
    for place in ("process_recording", "component_server", "component_server/"):
        assert client.post(f"/{place}", files={"video": ("a.mp4", b"video")}).status_code == 404
    assert sorted(tmp_path.rglob("*")) == before
