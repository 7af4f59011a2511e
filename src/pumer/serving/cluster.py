"""A Ray cluster to work on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from pumer.utils.errors import InputError
from pumer.utils.files import first_line

OBJECTS = 512 * 2**20
"""Bytes of shared memory for what travels between the processes of a cluster on this machine."""


@contextmanager
def cluster(address: str | None = None, objects: int | None = OBJECTS) -> Iterator[None]:
    """The cluster in use, else that at an address, else one on this machine that ends with the block.

    Ray reports nothing to its makers, opens no dashboard, and logs to its own files alone.

    Args:
        address: of a running cluster; None for the one that the environment's ``RAY_ADDRESS`` names, if it names one.
        objects: bytes of shared memory of a cluster on this machine; None for Ray's own choice.

    Raises:
        InputError: where Ray is not installed or does not start, and where no cluster answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: behind everything else on this machine
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":  # or it would listen at the address that other machines know
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; install pumer[serve]") from error
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.serve", "asyncio"):  # Ray's tasks of a replica that is gone end with an error
        logging.getLogger(name).setLevel(logging.CRITICAL)
    own = {"include_dashboard": False, "object_store_memory": objects}
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # where Ray reports each process that ends
        try:
            with _without_stderr():  # where Ray reports that it reports little
                ray.init(
                    address, log_to_driver=False, logging_level=logging.CRITICAL, **(own if address == "local" else {})
                )
        except ConnectionError as error:
            raise InputError(f"no Ray cluster answers at {address}; start one with `ray start --head`") from error
        except Exception as error:  # by Ray's own words: of no other class
            raise InputError(f"Ray does not start ({first_line(error)}); try again, with less else running") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Let nothing appear on stderr, from libraries' own code neither."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
