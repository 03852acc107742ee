"""A server that a test plays."""

import pytest

from tests.client.fake_server import FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()
