"""Addresses to listen at."""

import pytest

from pumer.utils.errors import InputError
from pumer.utils.http import address, bound


def test_an_address_that_is_taken_is_named():
    with bound("127.0.0.1", 0) as listening:
        listening.listen()
        port = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"port {port}"):
            bound("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "192.0.2.1"])
def test_an_address_of_another_machine_is_named(host):
    with pytest.raises(InputError, match=host[:20]):
        bound(host, 0)
