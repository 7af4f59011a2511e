"""Servers of HTTP: the address is taken before anything takes long, and it is said when they listen."""

import socket

import typer
import uvicorn

from pumer.utils.errors import InputError


class Announcing(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        typer.echo(self._line, err=True)


def bound(host: str, port: int) -> socket.socket:
    """A socket with an address; nobody is let in yet.

    Raises:
        InputError: for an address that cannot be taken.
    """
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found)
        return listening
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        place = f"port {port} of {host}"
        raise InputError(f"{place} cannot be taken ({reason}); give another port=... or host=...") from error


def address(listening: socket.socket) -> str:
    """The address that a browser opens."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
