"""What a test is run over, for each."""

import pytest


@pytest.fixture(params=["trio-websocket", "sansio"])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine, as the settings have it."""
    return request.param
