"""`pumer app`: a page on this machine, until Ctrl-C."""

import logging
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import uvicorn

from pumer.settings.app import AppConfig
from pumer.utils.http import Announcing, address, bound
from pumer.utils.shipped import name_of

ENDS_S = 2
"""Seconds that requests have to end when the server stops: an open page keeps one for ever."""


def run(config: AppConfig) -> None:
    """Serve the page until SIGINT or SIGTERM; what was uploaded is removed at the end.

    Raises:
        InputError: for an address that cannot be taken, and models that cannot be compared.
        KeyboardInterrupt: after SIGINT.
        SystemExit: after SIGTERM, with status 0.
    """
    signal.signal(signal.SIGTERM, _end)  # uvicorn handles it while it serves, and raises it again at the end
    with closing(bound(config.host, config.port)) as listening:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it reports to its makers
        from pumer.app.comparing import ComparedModel

        models = {name_of(model): ComparedModel(model) for model in config.models}
        with TemporaryDirectory(prefix="pumer-app-", ignore_cleanup_errors=True) as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            from pumer.app.page import Page, application

            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # an open page is cut off at the end
            http = uvicorn.Config(
                application(Page(models, config, Path(folder))),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=ENDS_S,
            )
            Announcing(http, f"open {address(listening)}").run(sockets=[listening])


def _end(number: int, frame: FrameType | None) -> None:
    """Leave all blocks; a second signal does not disturb that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit()
