"""The same tests over each engine, and where it matters over each kind of stream."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest

from persona.transport.sockets import HAS_EPOLL
from tests.transport import house
from tests.transport.house import House
from tests.transport.link import Link, open_link, over_memory, over_sockets

OpenHouse = Callable[..., AbstractAsyncContextManager[House]]
OpenLink = Callable[..., AbstractAsyncContextManager[Link]]

NEEDS_EPOLL = pytest.mark.skipif(not HAS_EPOLL, reason="this system has no epoll")


@pytest.fixture
def memory_link(engine: str) -> OpenLink:
    """`open_link` over a stream in memory: for tests that own the clock."""
    return partial(open_link, engine, over_memory)


@pytest.fixture
def socket_link(engine: str) -> OpenLink:
    """`open_link` over loopback: for what only a wire does. The clock is the real one."""
    if not HAS_EPOLL:
        pytest.skip("this system has no epoll, and no stream of ours")
    return partial(open_link, engine, over_sockets)


@pytest.fixture(params=["memory", pytest.param("sockets", marks=NEEDS_EPOLL)])
def any_link(request: pytest.FixtureRequest, engine: str) -> OpenLink:
    """`open_link` over the one, then over the other."""
    return partial(open_link, engine, over_memory if request.param == "memory" else over_sockets)


@pytest.fixture
def open_house(engine: str) -> OpenHouse:
    """A house whose listener has that engine."""

    def opened(**sections: dict[str, Any]) -> AbstractAsyncContextManager[House]:
        return house.open_house(**{**sections, "server": {"engine": engine, **sections.get("server", {})}})

    return opened
