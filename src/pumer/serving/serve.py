"""`pumer serve`: replicas on a Ray cluster, and a server of HTTP before them."""

import logging
import math
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn

from pumer.serving.app import About, Reply, Server
from pumer.serving.cluster import cluster
from pumer.serving.protocols import Asked, RefusedRequest
from pumer.serving.replica import Replica
from pumer.settings.serve import ServeConfig
from pumer.utils.errors import InputError
from pumer.utils.files import first_line
from pumer.utils.http import Announcing, address, bound

ATTEMPTS = 4
"""Replicas that are asked one question, as long as each dies over it. An answer changes nothing, so asking is safe."""
_DEPLOYMENT = "model"
_SAID = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception): .*)$", re.MULTILINE)
"""What an error in a replica says, at the end of a traceback."""


def run(config: ServeConfig) -> None:
    """Serve a model until SIGINT or SIGTERM, then answer what is asked already.

    The server of HTTP runs in this process, not in Ray Serve's proxy, which buffers a body of any size before anything
    can refuse it.

    Raises:
        InputError: for a model that cannot be served, and an address that cannot be taken.
        KeyboardInterrupt: after SIGINT.
    """
    with bound(config.host, config.port) as listening, cluster(), _replicas(config) as (app, handle, about):
        from ray import serve  # with the settings of `cluster`
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import ReplicaUnavailableError

        async def ask(asked: Asked) -> Reply:
            for _ in range(ATTEMPTS):
                try:
                    reply: Reply = await handle.remote(asked)
                    return reply
                except (RayActorError, ReplicaUnavailableError):
                    continue
            raise RefusedRequest(503, f"{ATTEMPTS} replicas in a row died over this question; ask another one")

        def ready() -> bool:
            deployments = serve.status().applications[app].deployments
            return bool(deployments[_DEPLOYMENT].replica_states.get("RUNNING", 0))

        http = uvicorn.Config(
            Server(config, about, ask, ready).app,
            http="h11",  # bounds the head of a request
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=4 * config.max_waiting + 64,
            timeout_graceful_shutdown=max(1, round(config.timeout_s)),
        )
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which uvicorn handles, and raises again when all is answered
        Announcing(http, f"serving {about.name} at {address(listening)}").run(sockets=[listening])


@contextmanager
def _replicas(config: ServeConfig) -> Iterator[tuple[str, Any, About]]:
    """The application's name, a handle of its replicas, once all of them are there, and what the model is."""
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # which its import sets to report all it does
    if Path(config.model).exists():  # from another working directory too, on a cluster that runs already
        config = replace(config, model=os.path.abspath(config.model))
    share = _share(config.replicas, ray.cluster_resources(), len(ray.nodes()))
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment = serve.deployment(
        Replica,
        name=_DEPLOYMENT,
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_waiting,  # all: Ray asks replicas that may be full how full they are, for long
        ray_actor_options=share,
        logging_config=quiet,
    )
    app = f"pumer-{uuid4().hex[:8]}"
    try:
        try:
            handle = serve.run(deployment.bind(config), name=app, route_prefix=None)
            about = handle.about.remote().result()
        except (RuntimeError, ray.exceptions.RayError) as error:
            with suppress(Exception):  # Ray's error itself does not say why
                deployment_status = serve.status().applications[app].deployments[_DEPLOYMENT]
                error.add_note(deployment_status.message)
            raise InputError(_reason(error, config.model)) from error
        if isinstance(about, str):
            raise InputError(about)
        yield app, handle, about
    finally:
        if os.environ.get("RAY_ADDRESS"):  # else it ends with the cluster
            serve.delete(app)


def _share(replicas: int, resources: Mapping[str, float], machines: int) -> dict[str, float]:
    """The cores and GPUs of each replica; as many replicas share a GPU as must, and their shares fit into it."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if replicas > cores:
        raise InputError(f"replicas={replicas} need a core each, and there are {cores}; give fewer")
    of_gpu = math.floor(1e4 / math.ceil(replicas / gpus)) / 1e4 if gpus else 0  # as finely as Ray counts
    return {"num_cpus": cores // replicas if machines == 1 else 1, "num_gpus": of_gpu}


def _reason(error: Exception, model: str) -> str:
    """The line about replicas that do not start, of which Ray reports the whole traceback."""
    said = _SAID.findall("\n".join([str(error), *getattr(error, "__notes__", ())]))
    return f"no replica of {model} starts ({said[-1] if said else first_line(error)}); see whether memory is free"
