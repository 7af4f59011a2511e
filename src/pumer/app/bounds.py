"""Bounds on what clients of the page send, and on what is kept for them."""

import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from gradio.server_messages import ProcessCompletedMessage
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pumer.settings.app import AppConfig

KEPT_S = 3600
"""Seconds after which an uploaded file is removed while the page is served."""
KEPT_BYTES = 2**30
"""Of all files that are uploaded; further ones are refused until older ones are removed."""
KEPT_ANSWERS = 32
"""Answers that are kept for clients that do not fetch them: the newest."""
_AROUND = 2**20
"""Bytes of a request beside those of a file, or of the question."""
_LEAST = 2**16
"""Bytes that the smallest file counts for, so that there are not too many."""
_UNUSED = ("/deep_link", "/process_recording", "/component_server")
"""Paths of Gradio's at which anybody could write files."""


class Bounded:
    """An application of HTTP that bounds the bytes of a request, in whatever form it arrives, and of all uploads.

    It answers nothing that would write files and that the page does not ask.

    Attributes:
        app: what answers.
        config: the bounds of a request.
        uploads: folder of the files that are uploaded.
        uploading: requests that bring files now.
    """

    def __init__(self, app: ASGIApp, config: AppConfig, uploads: Path) -> None:
        self.app, self.config, self.uploads, self.uploading = app, config, uploads, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path = scope.get("path", "").rstrip("/")
        if path.endswith(_UNUSED):
            await PlainTextResponse("there is no such page", 404)(scope, receive, send)
        elif path.endswith("/upload"):
            await self._upload(scope, receive, send)
        else:
            await self.app(scope, _counted(receive, _AROUND + 12 * self.config.max_characters), send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = self.config.max_bytes + _AROUND
        counted = _counted(receive, most)
        self.uploading += 1
        try:
            if await run_in_threadpool(_held, self.uploads) + self.uploading * most <= KEPT_BYTES:
                await self.app(scope, counted, send)
                return
        finally:
            self.uploading -= 1
        with suppress(HTTPException):  # a browser reads no answer before it has sent all
            while (await counted()).get("more_body"):
                pass
        remedy = f"upload it again when older ones are gone: they are removed after {KEPT_S // 60} minutes"
        full = f"all uploads together have at most {KEPT_BYTES:,} bytes; {remedy}"
        await PlainTextResponse(full, 507)(scope, receive, send)


def _counted(receive: Receive, most: int) -> Receive:
    """What receives a request, and refuses one of more bytes than `most`."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise HTTPException(413, f"the request has more than {most} bytes")
        return message

    return counted


def _held(folder: Path) -> int:
    """Bytes of all files in a folder; those that interrupted uploads left are removed once they are old."""
    total = 0
    for place, _, names in os.walk(folder):
        for path in map(Path(place).joinpath, names):
            with suppress(FileNotFoundError):
                about = path.lstat()
                if place == str(folder) and path.name.startswith("tmp") and time.time() - about.st_mtime > KEPT_S:
                    path.unlink()
                else:
                    total += max(about.st_size, _LEAST)
    return total


def keep_the_newest(queue: Any) -> None:
    """Empty an answer that waits to be fetched once there are enough newer ones; Gradio would keep thousands.

    Args:
        queue: That of a `gradio.Blocks`.
    """
    send, newest = queue.send_message, deque[ProcessCompletedMessage]()

    def sent(event: Any, message: Any) -> None:
        send(event, message)
        if isinstance(message, ProcessCompletedMessage):
            newest.append(message)
        if len(newest) > KEPT_ANSWERS:
            old = newest.popleft()  # one that was fetched is read no more
            old.success, old.output = False, {"error": "the answer was not fetched in time; ask again"}

    queue.send_message = sent
