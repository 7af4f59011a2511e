"""The HTTP application: it bounds what it reads, asks the model, and gives one line where there is no answer."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from time import perf_counter, time
from typing import Any
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pumer.serving.protocols import Asked, Chat, Infer, RefusedRequest, parsed, question
from pumer.settings.serve import ServeConfig

logger = logging.getLogger(__name__)

HELD = 256 * 2**20
"""Bytes of bodies that the server holds at once; further requests get status 429."""
READ_ON = 64 * 2**20
"""Bytes of a refused body that are read and forgotten: a client that cannot send on may not read why."""
_GONE = 499  # as web servers log a client that left; nobody receives it


@dataclass(frozen=True)
class About:
    """What a model is, as its replicas report it.

    Attributes:
        name: in addresses.
        platform: what runs it.
        images: that a question is about; None for any number.
        max_new_tokens: most that an answer may have, of a model that generates; else None.
    """

    name: str
    platform: str
    images: int | None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer.

    Attributes:
        text: of the answer; or, if `refused`, why there is none.
        refused: whether the fault is the request's.
        score: the logit of the answer, of a model that chooses among labels.
        prompt_tokens: tokens of the prompt, of a model that generates.
        new_tokens: tokens of its answer.
        ended: whether the answer ends by itself, not by its greatest length.
        batch: questions answered with it, counted at the first of them; else 0.
    """

    text: str
    refused: bool = False
    score: float | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    ended: bool = True
    batch: int = 0


Ask = Callable[[Asked], Coroutine[Any, Any, Reply]]
Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The HTTP application of one model.

    Attributes:
        app: for an ASGI server.
        metrics: what `/metrics` shows.
    """

    def __init__(self, config: ServeConfig, about: About, ask: Ask, ready: Callable[[], bool]) -> None:
        """Set up the routes.

        Args:
            config: with the bounds of requests.
            about: the model.
            ask: gets an answer; `RefusedRequest` where no replica is there.
            ready: whether a replica is there; may take a moment.
        """
        self.config, self.about, self._ask, self._ready = config, about, ask, ready
        self._held = self._waiting = 0
        self.metrics = CollectorRegistry()
        self._requests = Counter("pumer_requests", "Requests.", ["to", "status"], registry=self.metrics)
        self._seconds = Histogram("pumer_request_seconds", "Time of a request.", ["to"], registry=self.metrics)
        sizes = [2**power for power in range(11)]
        self._batches = Histogram("pumer_batch_size", "Questions per batch.", buckets=sizes, registry=self.metrics)
        for name, what, value in (
            ("pumer_waiting", "Questions in the server.", lambda: self._waiting),
            ("pumer_held_bytes", "Bytes of the bodies of requests in the server.", lambda: self._held),
        ):
            Gauge(name, what, registry=self.metrics).set_function(value)
        model = f"/v2/models/{about.name}"
        routes: dict[str, Handler] = {
            "/v2": self._describe,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._is_ready,
            model: self._describe_model,
            f"{model}/ready": self._is_ready,
            "/v1/models": self._list,
            "/metrics": self._show_metrics,
        }
        asking: dict[str, Handler] = {f"{model}/infer": self._infer, "/answer": self._answer}
        if about.max_new_tokens is not None:
            asking["/v1/chat/completions"] = self._chat
        self.app = Starlette(
            routes=[
                *(Route(path, handler, methods=["GET"]) for path, handler in routes.items()),
                *(Route(path, partial(self._counted, handler), methods=["POST"]) for path, handler in asking.items()),
            ],
            exception_handlers={HTTPException: self._elsewhere},
        )

    async def _counted(self, handler: Handler, request: Request) -> Response:
        """A handler's answer, in time, or the one line why there is none."""
        began, to = perf_counter(), handler.__name__.removeprefix("_")
        request.state.held = 0
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await handler(request)
        except RefusedRequest as refusal:
            response = _refusal(request, refusal.status, refusal.line)
        except TimeoutError:
            response = _refusal(request, 504, f"no answer within {self.config.timeout_s:g} s; ask again later")
        except ClientDisconnect:
            response = Response(status_code=_GONE)
        except Exception:
            logger.exception("a request failed")
            response = _refusal(request, 500, "the model failed; the server's log says how")
        finally:
            self._held -= request.state.held
        self._requests.labels(to, response.status_code).inc()
        self._seconds.labels(to).observe(perf_counter() - began)
        return response

    async def _elsewhere(self, request: Request, error: Exception) -> Response:
        """The one line about an address or a method that does not exist."""
        status = error.status_code if isinstance(error, HTTPException) else 404
        path, name = " ".join(request.scope["path"].split())[:80], self.about.name
        if (asked := re.match(r"/v2/models/([^/]+)", path)) and asked[1] != name:
            return _refusal(request, status, f"model '{asked[1]}' is not here; give {name}")
        line = f"{path} takes no {request.method}" if status == 405 else f"{path} is not there"
        line += f"; there are: POST /answer, /v2/models/{name}/infer"
        line += ", /v1/chat/completions" * (self.about.max_new_tokens is not None)
        return _refusal(request, status, f"{line}; GET /v2, /v2/models/{name}, /v2/health/ready, /v1/models, /metrics")

    async def _body(self, request: Request) -> bytes:
        """The body of a request, within the bounds of one and of all that are held; it is held until the answer."""
        most, chunks, stream = self.config.max_request_bytes, list[bytes](), request.stream()
        try:
            declared = int(request.headers.get("content-length", 0))  # which the protocol below has checked
            if declared > most:
                raise RefusedRequest(413, f"the body has {declared} bytes; at most {most} are taken")
            async for chunk in stream:
                request.state.held += len(chunk)
                self._held += len(chunk)
                if request.state.held > most:
                    raise RefusedRequest(413, f"the body has more than {most} bytes, which is the most that is taken")
                if self._held > HELD:
                    raise RefusedRequest(429, "the server holds too many large requests; ask again later")
                chunks.append(chunk)
        except RefusedRequest:
            chunks.clear()
            if "expect" not in request.headers:  # else the client waits for leave to send
                await _forget(stream)
            raise
        return b"".join(chunks)

    async def _replies(self, asked: Sequence[Asked]) -> list[Reply]:
        """The model's answers; a request whose fault it is that one cannot be given is refused.

        Where one question fails, the others of the request are given up.
        """
        if self._waiting + len(asked) > self.config.max_waiting:
            raise RefusedRequest(429, f"{self._waiting} questions are waiting already; ask again later")
        self._waiting += len(asked)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(each)) for each in asked]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._waiting -= len(asked)
        replies = [task.result() for task in tasks]
        for reply in replies:
            if reply.refused:
                raise RefusedRequest(400, reply.text)
            if reply.batch:
                self._batches.observe(reply.batch)
        return replies

    async def _infer(self, request: Request) -> Response:
        infer = parsed(await self._body(request), Infer, self.config)
        wanted = [each.name for each in infer.outputs or ()] or ["answer"]
        named = {} if infer.id is None else {"id": infer.id}
        asked = infer.asked(self.config)
        del infer  # with the images in base64, while the model answers
        replies = await self._replies(asked)
        if "score" in wanted and replies[0].score is None:
            raise RefusedRequest(400, "a model that generates gives no score; ask for answer alone")
        found = {"answer": [each.text for each in replies], "score": [each.score for each in replies]}
        kinds = {"answer": "BYTES", "score": "FP32"}
        outputs = [{"name": n, "shape": [len(replies)], "datatype": kinds[n], "data": found[n]} for n in wanted]
        return JSONResponse({"model_name": self.about.name, **named, "outputs": outputs})

    async def _answer(self, request: Request) -> Response:
        """A question in the address about the image that is the body: what a person does by hand."""
        text = request.query_params.get("question", "")
        (reply,) = await self._replies([question((await self._body(request),), text, self.config)])
        return JSONResponse({"answer": reply.text})

    async def _chat(self, request: Request) -> Response:
        chat = parsed(await self._body(request), Chat, self.config)
        if chat.model not in (None, self.about.name):
            raise RefusedRequest(404, f"model {chat.model!r} is not here; give {self.about.name}")
        asked = chat.asked(self.config, self.about.max_new_tokens or 0)
        del chat  # with the images in base64, while the model answers
        (reply,) = await self._replies([asked])
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.new_tokens}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text},
            "finish_reason": "stop" if reply.ended else "length",
        }
        return JSONResponse(
            {
                "id": f"chatcmpl-{uuid4().hex}",
                "object": "chat.completion",
                "created": int(time()),
                "model": self.about.name,
                "choices": [choice],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            }
        )

    async def _describe(self, request: Request) -> Response:
        return JSONResponse({"name": "pumer", "version": version("pumer"), "extensions": []})

    async def _describe_model(self, request: Request) -> Response:
        shape = [-1] if self.about.images == 1 else [-1, self.about.images or -1]
        inputs = [("image", "BYTES", shape), ("question", "BYTES", [-1])]
        outputs = [("answer", "BYTES", [-1])]
        if self.about.max_new_tokens is None:
            outputs.append(("score", "FP32", [-1]))
        described = {
            key: [{"name": name, "datatype": kind, "shape": size} for name, kind, size in tensors]
            for key, tensors in (("inputs", inputs), ("outputs", outputs))
        }
        return JSONResponse({"name": self.about.name, "versions": [], "platform": self.about.platform, **described})

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.about.name, "object": "model"}]})

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _is_ready(self, request: Request) -> Response:
        with suppress(Exception):  # of a cluster that is gone, whatever Ray raises
            if await asyncio.to_thread(self._ready):
                return JSONResponse({"ready": True})
        return _refusal(request, 503, "no replica is ready; ask again later")

    async def _show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics), headers={"content-type": CONTENT_TYPE_LATEST})


async def _forget(stream: AsyncIterator[bytes]) -> None:
    """Read what a client still sends, up to a bound."""
    left = READ_ON
    with suppress(ClientDisconnect):
        async for chunk in stream:
            left -= len(chunk)
            if left < 0:
                return


def _refusal(request: Request, status: int, line: str) -> Response:
    """One line, in the form that the address has for it."""
    error: Any = line
    if request.url.path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": line, "type": kind, "param": None, "code": status}
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    return JSONResponse({"error": error}, status, headers)
