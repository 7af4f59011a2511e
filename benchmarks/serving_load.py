"""Does `pumer serve` lose or change an answer under load or while replicas die, and how much memory does it take?

Starts the real command on this machine and asks it over the loopback, from many clients at once: scenes of the
built-in world in random sizes and file formats, questions of 1 to 30 words, half of them as uploads, half by KServe's
protocol. Every answer must be the one that `pumer.Predictor` gives to the question alone. Then:

- `load`: all requests.
- `kills`: the same, while a replica is killed (SIGKILL) after a third and after two thirds of them.
- `bad`: bad requests (see `bad_requests.py`); each must get a status from 400 to 499 and one line.
- `single`: a part of the requests, by a server whose replicas answer one question at a time.

Prints a line per part, and PASS or FAIL; writes `benchmarks/results/serving-load-<device>.json` with latencies in
milliseconds and the peak resident memory of every kind of process in MiB.
"""

import itertools
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.bad_requests import Bad, bad_requests, encoded, infer
from benchmarks.common import RESULTS, parser
from pumer.evaluation.predict import Predictor
from pumer.settings.serve import ServeConfig
from pumer.tasks import VQAv2
from pumer.utils.files import write_json
from pumer.utils.provenance import collect
from pumer.utils.tensors import best_device
from pumer.world import WorldConfig, write_world

DEFAULTS = ServeConfig(model="small:vilt")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_ROLES = ("ServeReplica", "ServeController", "DashboardAgent", "RuntimeEnvAgent", "raylet", "gcs_server", "pumer serve")


@dataclass(frozen=True)
class Question:
    """A question, and the answer that it gets alone."""

    image: bytes
    text: str
    answer: str


class Running:
    """A server in a process of its own, with the peak memory of each kind of process so far, in MiB."""

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "pumer", "serve", *arguments, "port=0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.model, self.url = _announced(self.process)
        self.peaks, self._stopped = Counter[str](), threading.Event()
        self._watch = threading.Thread(target=self._measure)
        self._watch.start()

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """All processes of the server, each with its kind."""
        parent, found = psutil.Process(self.process.pid), []
        for each in [parent, *parent.children(recursive=True)]:
            try:
                line = " ".join(each.cmdline())
            except psutil.Error:
                continue
            found.append((next((role for role in _ROLES if role in line), "others"), each))
        return found

    def _measure(self) -> None:
        while not self._stopped.wait(0.5):
            now = Counter[str]()
            try:
                for role, process in self.processes():
                    now[role] = max(now[role], process.memory_info().rss)
            except psutil.Error:
                continue
            self.peaks |= Counter({role: round(size / 2**20) for role, size in now.items()})

    def kill_replica(self) -> None:
        """End one replica, as a lack of memory would."""
        replicas = [process for role, process in self.processes() if role == "ServeReplica"]
        replicas[0].kill()

    def batches(self) -> tuple[float, float]:
        """Batches that were answered so far, and the questions in them."""
        shown = httpx.get(f"{self.url}/metrics").text
        found = (re.search(rf"^pumer_batch_size_{each} (\S+)$", shown, re.MULTILINE) for each in ("count", "sum"))
        count, total = (float(each[1]) if each else 0.0 for each in found)
        return count, total

    def stop(self) -> dict[str, Any]:
        """SIGTERM; how it ended."""
        children = [process for _, process in self.processes()]
        began = time.monotonic()
        self._stopped.set()
        self._watch.join()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        _, left = psutil.wait_procs(children, timeout=10)
        return {"exit_code": code, "seconds": round(time.monotonic() - began, 1), "left_behind": len(left)}


def _announced(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Model and address that a server reports; what it writes afterwards is read by a thread, or it would block."""
    assert process.stderr is not None  # for the type checker: it is a pipe
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"serving (\S+) at (http://\S+)", line):
            threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
            return found[1], found[2]
    raise SystemExit("".join(said))


@contextmanager
def serving(*arguments: str) -> Iterator[Running]:
    """A server, while the block runs."""
    running = Running(arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def main() -> None:
    """Ask, kill, ask badly, write."""
    options = parser(__doc__)
    options.add_argument("--model", default="small:vilt", help="with its task; fusion models alone")
    options.add_argument("--requests", type=int, default=2000)
    options.add_argument("--distinct", type=int, default=200, help="questions, each asked several times")
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--bad", type=int, default=300)
    options.add_argument("--replicas", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=RESULTS / f"serving-load-{best_device().type}.json")
    arguments = options.parse_args()
    draw = random.Random(arguments.seed)
    questions = questions_of(arguments.model, arguments.distinct, draw)
    asked = [questions[number % len(questions)] for number in range(arguments.requests)]
    draw.shuffle(asked)
    result: dict[str, Any] = {"questions": about(questions)}
    command = [arguments.model, f"replicas={arguments.replicas}", "timeout_s=300"]  # new replicas take long to start
    with serving(*command) as running:
        result["load"] = load(running, asked, arguments.clients)
        result["kills"] = load(running, asked, arguments.clients, kills=2)
        result["bad"] = refused(running, arguments.bad, arguments.seed)
        after = load(running, asked[:64], arguments.clients)
        result["bad"]["equal_after"] = after["equal"] == after["requests"]
        result["peak_mib"] = dict(running.peaks)
        result["end"] = running.stop()
    with serving(*command, "max_batch_size=1") as running:
        result["single"] = load(running, asked[: arguments.requests // 4], arguments.clients)
    passed = verdict(result)
    given = {key: str(value) for key, value in vars(arguments).items() if key != "out"}
    write_json(arguments.out, result | {"pass": passed, "provenance": collect(given)})
    sys.stdout.write("PASS\n" if passed else "FAIL\n")
    sys.exit(not passed)


def questions_of(model: str, count: int, draw: random.Random) -> list[Question]:
    """Questions of the built-in world, their images in random sizes and formats, and their answers alone."""
    predictor = Predictor(model)
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), WorldConfig(train=8, val=count, heldout=0, test=0, tasks=("vqav2",)))
        examples = VQAv2.read(Path(folder) / "vqav2", "val")
        words = sorted({word for example in examples for word in example.text.split()})
        found = []
        for number in range(count):
            example = examples[number % len(examples)]
            with Image.open(example.files[0]) as opened:
                size = (draw.randrange(24, 1200), draw.randrange(24, 1200))
                image = encoded(opened.convert("RGB").resize(size), FORMATS[number % len(FORMATS)])
            text = " ".join([*draw.choices(words, k=draw.choice((0, 0, 0, 5, 15))), *example.text.split()][:30])
            with tempfile.NamedTemporaryFile() as file:
                Path(file.name).write_bytes(image)
                found.append(Question(image, text, predictor(file.name, text)))
    return found


def about(questions: Sequence[Question]) -> dict[str, Any]:
    """What was asked."""
    lengths = sorted(len(question.text.split()) for question in questions)
    sizes = sorted(len(question.image) for question in questions)
    return {
        "distinct": len(questions),
        "answers": len({question.answer for question in questions}),
        "words": [lengths[0], lengths[-1]],
        "bytes": [sizes[0], sizes[-1]],
    }


def load(running: Running, asked: Sequence[Question], clients: int, kills: int = 0) -> dict[str, Any]:
    """All requests, from clients that each wait for their answer; statuses, equal answers, latencies."""
    seconds, statuses, equal = [], Counter[str](), 0
    marks = [len(asked) * (kill + 1) // (kills + 1) for kill in range(kills)]
    before, began = running.batches(), time.monotonic()
    with (
        httpx.Client(timeout=300, limits=httpx.Limits(max_connections=clients)) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        answered = pool.map(partial(_ask, client, running), asked, itertools.cycle((False, True)))
        for done, (status, same, took) in enumerate(answered):
            statuses[status] += 1
            equal += same
            seconds.append(took)
            if done in marks:
                running.kill_replica()
    took = time.monotonic() - began
    batches, answers = (now - then for now, then in zip(running.batches(), before, strict=True))
    row = {
        "requests": len(asked),
        "clients": clients,
        "kills": kills,
        "statuses": dict(statuses),
        "equal": equal,
        "lost": len(asked) - statuses["200"],
        "seconds": round(took, 1),
        "requests_per_second": round(len(asked) / took, 1),
        "mean_batch": round(answers / batches, 2) if batches else None,
        "milliseconds": {
            f"p{percent}": round(1000 * float(np.percentile(seconds, percent))) for percent in (50, 90, 99, 100)
        },
    }
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()
    return row


def _ask(client: httpx.Client, running: Running, question: Question, upload: bool) -> tuple[str, bool, float]:
    """The status of one request, by upload or by KServe's protocol, whether its answer is right, and seconds."""
    start = time.monotonic()
    try:
        if upload:
            response = client.post(f"{running.url}/answer", params={"question": question.text}, content=question.image)
            answer = response.json().get("answer")
        else:
            body = infer([b64encode(question.image).decode()], [question.text])
            response = client.post(f"{running.url}/v2/models/{running.model}/infer", json=body)
            answer = response.json().get("outputs", [{"data": [None]}])[0]["data"][0]
    except httpx.HTTPError as error:
        return type(error).__name__, False, time.monotonic() - start
    return str(response.status_code), answer == question.answer, time.monotonic() - start


def refused(running: Running, count: int, seed: int) -> dict[str, Any]:
    """Bad requests from eight clients: statuses, those that got none or more than one line, and growth of memory."""
    bad = bad_requests(running.model, count, DEFAULTS.max_request_bytes, DEFAULTS.max_image_pixels, seed)
    before, statuses, wrong = dict(running.peaks), Counter[str](), []
    with httpx.Client(timeout=300) as client, ThreadPoolExecutor(8) as pool:

        def send(each: Bad) -> tuple[str, str]:
            content: Any = iter(each.content) if isinstance(each.content, list) else each.content
            try:
                response = client.request(each.method, running.url + each.path, content=content, headers=each.headers)
            except httpx.HTTPError as error:
                return type(error).__name__, ""
            return str(response.status_code), response.text

        for each, (status, text) in zip(bad, pool.map(send, bad), strict=True):
            statuses[status] += 1
            if not status.startswith("4") or not text or "\n" in text.strip() or len(text) > 500:
                wrong.append(f"{each.kind}: {status} {text[:80]}")
    growth = {role: running.peaks[role] - before.get(role, 0) for role in ("pumer serve", "ServeReplica")}
    row = {"requests": count, "kinds": len({each.kind for each in bad}), "statuses": dict(statuses), "wrong": wrong}
    sys.stdout.write(f"{row}\n")
    return row | {"growth_of_peak_mib": growth}


def verdict(result: dict[str, Any]) -> bool:
    """Whether nothing was lost, changed, answered wrongly or left behind."""
    loads = [result[name] for name in ("load", "kills", "single")]
    whole = all(row["lost"] == 0 and row["equal"] == row["requests"] for row in loads)
    ended = result["end"]["exit_code"] == 0 and not result["end"]["left_behind"]
    return whole and ended and not result["bad"]["wrong"] and result["bad"]["equal_after"]


if __name__ == "__main__":
    main()
