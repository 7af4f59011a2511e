"""The real command: answers, a replica that dies, bad requests on real sockets, and the end."""

import io
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from PIL import Image

from benchmarks.bad_requests import bad_requests, encoded
from pumer.evaluation.predict import Predictor
from pumer.settings.serve import ServeConfig
from pumer.utils.errors import InputError

BYTES = 2**20


class Running:
    def __init__(self, *arguments):
        command = [sys.executable, "-m", "pumer", "serve", *map(str, arguments), "port=0"]
        for _ in range(3):  # Ray waits 30 seconds for itself, which a busy machine may not keep
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            line = self.process.stderr.readline()
            if "Ray does not start" not in line:
                break
        found = re.fullmatch(r"serving (\S+) at (http://127\.0\.0\.1:\d+)\n", line)
        if found is None:
            self.process.kill()
        assert found, line + self.process.stderr.read()
        self.name, self.url = found.groups()

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicas(self):
        return [each for each in self.children() if "ServeReplica" in " ".join(each.cmdline())]


@pytest.fixture(scope="module")
def running(tiny_vilt):
    server = Running(
        tiny_vilt, "max_batch_size=4", f"max_request_bytes={BYTES}", "max_image_pixels=1000000", "timeout_s=500"
    )
    yield server
    if server.process.poll() is None:
        server.process.kill()


def test_every_answer_is_the_single_one_though_the_replica_dies(running, tiny_vilt):
    questions = ["what colour is this", "is it blue", "is this", "what", "is it red or green or blue"]
    pictures = [encoded(Image.effect_noise((20 + 31 * n, 250 - 19 * n), 90).convert("RGB"), "PNG") for n in range(8)]
    asked = [(picture, text) for picture in pictures for text in questions]

    def ask(pair):
        response = httpx.post(f"{running.url}/answer", params={"question": pair[1]}, content=pair[0], timeout=600)
        assert response.status_code == 200, response.text
        return response.json()["answer"]

    (before,) = running.replicas()
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(ask, asked)
        first = next(answers)
        before.kill()
        found = [first, *answers]
    predictor = Predictor(tiny_vilt)
    assert found == [predictor(Image.open(io.BytesIO(picture)), text) for picture, text in asked]
    (after,) = running.replicas()
    assert after.pid != before.pid


def test_bad_requests_on_real_sockets(running):
    with httpx.Client(base_url=running.url, timeout=60) as client:
        for bad in bad_requests(running.name, 58, BYTES, 10**6):
            content = iter(bad.content) if isinstance(bad.content, list) else bad.content
            response = client.request(bad.method, bad.path, content=content)
            assert 400 <= response.status_code < 500, (bad.kind, response.text)
            assert len(response.text.splitlines()) == 1
        assert client.get("/v2/health/ready").status_code == 200
        assert "pumer_batch_size_count" in client.get("/metrics").text


def test_a_port_in_use_is_named(running, tiny_vilt):
    port = running.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pumer", "serve", str(tiny_vilt), f"port={port}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and f"port {port}" in done.stderr


def test_it_ends_when_asked_and_leaves_nothing_behind(running):
    """The last test: what is asked already is answered, though the client is slow."""
    host, port = running.url.removeprefix("http://").split(":")
    image = encoded(Image.new("RGB", (40, 40)), "PNG")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /answer?question=what HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
        connection.sendall(head.encode() + image[:20])
        httpx.get(f"{running.url}/v2/health/live")  # so that the server has taken the other connection
        children = running.children()
        running.process.send_signal(signal.SIGTERM)
        connection.sendall(image[20:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert running.process.wait(60) == 0
    assert running.process.stderr.read() == ""
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left


@pytest.mark.parametrize("extra", [["max_images=200"], ["port=70000"], ["timeout_s=0"], ["replicas=0"]])
def test_wrong_settings_are_named(extra):
    key, _, value = extra[0].partition("=")
    with pytest.raises(InputError, match=f"{key}.*{value}"):
        ServeConfig(model="small:vilt", **{key: int(value)})
