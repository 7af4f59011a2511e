"""One copy of a model in a process of its own, which answers as much at once as there is."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from pumer.serving.app import About, Reply
from pumer.serving.protocols import Asked
from pumer.settings.serve import ServeConfig
from pumer.utils.errors import InputError

_Waiting = asyncio.Queue[tuple[Any, asyncio.Future[Reply]]]


class Replica:
    """Answers questions in batches.

    Images are read one after the other, while the model answers what was read before. Whatever waits when the model
    is free makes the next batch: nothing waits for a batch to fill. (Ray Serve's own batches are closed before the
    model is free, so that they stay small under load.)
    """

    def __init__(self, config: ServeConfig) -> None:
        """Load the model; what is wrong with it is kept for `about`, as Ray would only try again."""
        self.config, self._refusal = config, ""
        self._reader, self._answerer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._room = asyncio.Semaphore(2 * config.max_batch_size)  # a batch that is answered, and one that is read
        self._waiting: _Waiting = asyncio.Queue()
        self._working: asyncio.Task[None] | None = None
        try:  # with torch, which the process that deploys does not need
            self._model: Any = import_module("pumer.serving.model").ServedModel(config)
        except InputError as error:
            self._refusal = str(error)

    def about(self) -> About | str:
        """What the model is; text where it cannot be served, with the reason."""
        found: About | str = self._refusal or self._model.about()
        return found

    async def __call__(self, asked: Asked) -> Reply:
        """The answer to a question, or why there is none."""
        loop = asyncio.get_running_loop()
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        async with self._room:
            try:
                read = await loop.run_in_executor(self._reader, self._model.read, asked)
            except InputError as error:
                return Reply(str(error), refused=True)
            answer: asyncio.Future[Reply] = loop.create_future()
            self._waiting.put_nowait((read, answer))
            return await answer

    async def _work(self) -> None:
        """Answer what waits, for ever."""
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while True:
            batch = [await waiting.get()]
            while not waiting.empty() and len(batch) < self.config.max_batch_size:
                batch.append(waiting.get_nowait())
            batch = [(read, answer) for read, answer in batch if not answer.done()]  # cancelled: too late
            if not batch:
                continue
            replies: list[Reply | Exception]
            try:
                replies = await loop.run_in_executor(self._answerer, self._model.replies, [read for read, _ in batch])
            except Exception as error:
                replies = [error] * len(batch)
            for (_, answer), reply in zip(batch, replies, strict=True):
                if answer.done():
                    continue
                if isinstance(reply, Reply):
                    answer.set_result(reply)
                else:
                    answer.set_exception(reply)
