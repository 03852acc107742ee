"""Tokens that change while the server runs."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.client import ConnectFailed
from persona.config import AuthToken, fingerprint, load_settings
from persona.transport.admission import token_hash
from persona.transport.tokens import TokenSource, TokenWatch
from tests.transport.house import House, open_house

ANN, BOB, ROOT = (
    AuthToken(name, role, token_hash(f"{name}'s"))
    for name, role in (("ann", "user"), ("bob", "user"), ("root", "admin"))
)


def line(*tokens: AuthToken) -> str:
    tables = (f'{{ name = "{t.name}", role = "{t.role}", hash = "{t.hash}" }}' for t in tokens)
    return f"[auth]\ntokens = [{', '.join(tables)}]\n"


class Watched:
    """A settings file, and the names that came out of it, one list for each time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.heard: list[list[str]] = []
        self._times = 0
        source = TokenSource(
            fingerprint=lambda: fingerprint(file),
            load=lambda: load_settings(file=file, environ={}, flags={}).settings.auth.tokens,
        )
        self.watch = TokenWatch(source, lambda tokens: self.heard.append([token.name for token in tokens]))

    def write(self, text: str) -> None:
        self.file.write_text(text)
        # The clock of a file system may be coarser than this test is fast.
        self._times += 1
        os.utime(self.file, ns=(self._times, self._times))

    async def look(self, times: int = 2) -> list[list[str]]:
        """What was heard of in so many looks."""
        self.heard.clear()
        for _ in range(times):
            await self.watch.look()
        return self.heard


@pytest.fixture
async def watched(tmp_path: Path) -> Watched:
    """A watch that was started over a file with Ann's token, and looks when it is told to."""
    watched = Watched(tmp_path / "persona.toml")
    watched.write(line(ANN))
    async with trio.open_nursery() as nursery:
        await nursery.start(watched.watch.run)
        nursery.cancel_scope.cancel()
    assert watched.heard == [["ann"]]
    return watched


async def test_a_changed_file_is_read_once_it_is_at_rest(watched: Watched) -> None:
    assert await watched.look() == []
    watched.write(line(ANN, BOB))
    assert await watched.look(1) == []
    assert await watched.look(1) == [["ann", "bob"]]
    assert await watched.look(3) == []


async def test_a_file_that_is_being_written_is_left_alone(watched: Watched) -> None:
    watched.write("")
    assert await watched.look(1) == []
    watched.write(line(BOB))
    assert await watched.look(1) == []
    assert await watched.look(1) == [["bob"]]


async def test_another_file_in_its_place_is_another_file(watched: Watched) -> None:
    """With the same size and the same time, as an orchestrator may make it."""
    other = watched.file.with_name("other.toml")
    other.write_text(line(BOB))
    os.utime(other, ns=(1, 1))
    other.replace(watched.file)
    assert await watched.look() == [["bob"]]


@pytest.mark.parametrize("nonsense", ["[auth", "[auth]\ntokens = [{ name = 's3cret' }]\n", None])
async def test_a_mistake_changes_nothing_and_is_told_once(watched: Watched, nonsense: str | None) -> None:
    if nonsense is None:
        watched.file.unlink()
    else:
        watched.write(nonsense)
    with capture_logs() as logs:
        assert await watched.look(4) == []
    assert [entry["event"] for entry in logs] == ["tokens_not_read"]
    assert "s3cret" not in str(logs)
    watched.write(line(BOB))
    assert await watched.look() == [["bob"]]


@pytest.fixture
def pipe() -> Iterator[Path]:
    """What `--config <(...)` names, once its text was read."""
    read_end, write_end = os.pipe()
    os.close(write_end)
    yield Path(f"/dev/fd/{read_end}")
    os.close(read_end)


@pytest.mark.parametrize("is_there_at_first", [True, False])
async def test_a_pipe_is_not_read_again(tmp_path: Path, pipe: Path, is_there_at_first: bool) -> None:
    """It is empty by then; or whoever reads it waits for ever."""
    watched = Watched(tmp_path / "persona.toml")
    if is_there_at_first:
        watched.file.symlink_to(pipe)
    else:
        watched.write(line(ANN))
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(watched.watch.run)
            nursery.cancel_scope.cancel()
        if not is_there_at_first:
            watched.file.unlink()
            watched.file.symlink_to(pipe)
        assert await watched.look(4) == []
    assert [entry["event"] for entry in logs] == ["tokens_not_watched"]
    watched.file.unlink()
    watched.write(line(BOB))
    assert await watched.look() == [["bob"]]


async def test_a_file_system_that_hangs_does_not_hold_up_a_stop() -> None:
    is_reading, is_over = threading.Event(), threading.Event()

    def hang() -> list[AuthToken]:
        is_reading.set()
        is_over.wait(10)
        return []

    watch = TokenWatch(TokenSource(fingerprint=lambda: 1, load=hang), lambda _: None)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.run)
                await trio.to_thread.run_sync(is_reading.wait, 5)
                nursery.cancel_scope.cancel()
    finally:
        is_over.set()


# What the listener makes of it


async def join(house: House, token: str) -> list[int | None]:
    """A client with that token; the code it is sent away with will be in the list."""
    codes: list[int | None] = []

    async def stay(*, task_status: trio.TaskStatus[None]) -> None:
        async with house.connect(token) as client:
            task_status.started()
            codes.append((await client.wait_closed()).code)

    await house.nursery.start(stay)
    return codes


@pytest.mark.parametrize(
    "changed",
    [
        None,
        attrs.evolve(ANN, role="admin"),
        attrs.evolve(ANN, name="anne"),
        attrs.evolve(ANN, hash=token_hash("new")),
    ],
    ids=["gone", "other role", "other name", "other secret"],
)
async def test_whose_token_is_no_more_is_sent_away_and_the_others_stay(
    autojump_clock: MockClock, changed: AuthToken | None
) -> None:
    async with open_house(auth={"tokens": (ANN, ROOT)}) as house:
        ann, root = await join(house, "ann's"), await join(house, "root's")
        house.listener.set_tokens((ROOT,) if changed is None else (ROOT, changed))
        await wait_all_tasks_blocked()
        assert (ann, root) == ([1008], [])
        assert house.value("connections_closed_total", cause="revoked") == 1
        assert house.value("connections") == 1
        if changed is None:
            with pytest.raises(ConnectFailed) as caught:
                await join(house, "ann's")
            assert caught.value.status == 401


async def test_the_same_tokens_again_disturb_nobody(autojump_clock: MockClock) -> None:
    async with open_house(auth={"tokens": (ANN, ROOT)}) as house:
        ann = await join(house, "ann's")
        house.listener.set_tokens((ROOT, BOB, ANN))
        await wait_all_tasks_blocked()
        assert ann == []
        await join(house, "bob's")


async def test_with_the_first_token_who_has_none_is_sent_away(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        anonymous = await join(house, "")
        house.listener.set_tokens(())
        await wait_all_tasks_blocked()
        assert anonymous == []
        house.listener.set_tokens((ANN,))
        await wait_all_tasks_blocked()
        assert anonymous == [1008]


async def test_an_empty_list_lets_nobody_in_where_there_was_a_token(autojump_clock: MockClock) -> None:
    async with open_house(auth={"tokens": (ANN,)}) as house:
        ann = await join(house, "ann's")
        house.listener.set_tokens(())
        await wait_all_tasks_blocked()
        assert ann == [1008]
        for token in ("ann's", ""):
            with pytest.raises(ConnectFailed) as caught:
                await join(house, token)
            assert caught.value.status == 401


async def test_a_token_that_goes_during_the_handshake_is_of_no_use(autojump_clock: MockClock) -> None:
    async with open_house(auth={"tokens": (ANN, ROOT)}) as house:
        ours, theirs = house.knock()

        async def revoke_meanwhile() -> None:
            theirs.send_stream.send_all_hook = None
            house.listener.set_tokens((ROOT,))

        theirs.send_stream.send_all_hook = revoke_meanwhile
        codes: list[int | None] = []

        async def stay() -> None:
            async with house.over(ours, "ann's") as client:
                codes.append((await client.wait_closed()).code)

        house.nursery.start_soon(stay)
        await trio.sleep(house.settings.limits.close_timeout_s + 1)
        assert codes == [1008]
