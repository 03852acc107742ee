"""Whatever a client sends, and however the network cuts it: both engines say the same of it."""

import itertools
import reprlib

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from persona.transport.engine import BadMessage, PeerGone
from tests.transport.link import CLOSE, CONT, PING, PONG, TEXT, close, code_of, frame, open_link

ENGINES = ["trio-websocket", "sansio"]
MAX_BYTES = 70_000

masks = st.one_of(st.just(bytes(4)), st.binary(min_size=4, max_size=4))
controls = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
texts = st.one_of(
    st.text(max_size=40),
    st.builds(lambda char, n: char * n, st.characters(codec="utf-8"), st.integers(60, 200)),
)
sizes = st.sampled_from([125, 126, 127, 65535, 65536, MAX_BYTES])


class Said:
    """Frames, the messages in them, and the payloads of the pings in them."""

    def __init__(self, frames: list[bytes], messages: list[str], pings: list[bytes]) -> None:
        self.frames = frames
        self.messages = messages
        self.pings = pings

    def __repr__(self) -> str:
        # In full it may have many thousand characters, which Hypothesis warns of.
        return f"Said({reprlib.repr(self.frames)}, {reprlib.repr(self.messages)}, {self.pings})"


@st.composite
def exchanges(draw: st.DrawFn) -> Said:
    """What a client may send but its close."""
    frames: list[bytes] = []
    messages: list[str] = []
    pings: list[bytes] = []

    def interrupt() -> None:
        for opcode, payload in draw(st.lists(controls, max_size=2)):
            frames.append(frame(opcode, payload, mask=draw(masks)))
            if opcode == PING:
                pings.append(payload)

    for message in draw(st.lists(texts | sizes.map(lambda size: "x" * size), max_size=4)):
        data = message.encode()
        cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
        bounds = [0, *cuts, len(data)]
        for n in range(len(bounds) - 1):
            interrupt()
            part = data[bounds[n] : bounds[n + 1]]
            frames.append(
                frame(CONT if n else TEXT, part, fin=n == len(bounds) - 2, mask=draw(masks)),
            )
        messages.append(message)
    interrupt()
    return Said(frames, messages, pings)


async def said_to(
    engine: str, reads: list[bytes], *, is_early: bool
) -> tuple[list[str], PeerGone | BadMessage, list[tuple[int, bytes]]]:
    """The messages an engine makes of these reads, how it ended, and what it answered. `is_early` sends the
    first with the opening request."""
    early, late = (reads[:1], reads[1:]) if is_early else ([], reads)
    ended: list[tuple[list[str], PeerGone | BadMessage]] = []
    answers = []
    async with open_link(engine, sent=early, max_message_bytes=MAX_BYTES) as link:

        async def listen() -> None:
            ended.append(await link.ending())
            await link.aclose(1000, "")

        async def answered() -> None:
            while await link.client.more():
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(answered)
            await wait_all_tasks_blocked()
            try:
                for data in late:
                    await link.client.send(data)
                    await wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                assert ended, "only an engine that has its end may close"
            await link.client.stream.send_eof()
        while await link.client.has_frame():
            answers.append(await link.client.frame())
    ((messages, ending),) = ended
    return messages, ending, answers


def cut(data: bytes, at: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds) if start < end]


@pytest.mark.parametrize("engine", ENGINES)
@given(
    said=exchanges(),
    at=st.lists(st.integers(0, 400) | st.integers(0, 1 << 20), max_size=8),
    code=st.sampled_from([None, 1000, 1001, 3000, 4999]),
    is_early=st.booleans(),
)
@settings(deadline=None, max_examples=600)
async def test_frames_are_the_same_however_they_are_cut(
    said: Said, at: list[int], code: int | None, is_early: bool, engine: str
) -> None:
    end = b"" if code is None else close(code)
    reads = cut(b"".join(said.frames) + end, at)
    got, ending, answers = await said_to(engine, reads, is_early=is_early)
    assert got == said.messages
    assert code_of(ending) == (PeerGone, 1006 if code is None else code)
    expected = [(PONG, payload) for payload in said.pings]
    if code is not None:
        expected.append((CLOSE, code.to_bytes(2, "big")))
    assert answers == expected


@st.composite
def nonsense(draw: st.DrawFn) -> bytes:
    """Good frames with something wrong in them, or nothing but noise."""
    data = bytearray(b"".join(draw(exchanges()).frames)[:2000])
    for place, piece in draw(st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6)), max_size=4)):
        if draw(st.booleans()):
            data[place : place + len(piece)] = piece
        else:
            data[place:place] = piece
    return bytes(data) + draw(st.binary(max_size=30))


heads = st.builds(
    lambda first, second, rest: bytes([first, second]) + rest,
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=200),
)


@given(
    data=st.one_of(nonsense(), st.lists(heads, max_size=4).map(b"".join)),
    at=st.lists(st.integers(0, 400), max_size=6),
    is_early=st.booleans(),
)
@example(data=close(1000) + frame(3), at=[], is_early=False)
@example(data=frame(3) + close(1000), at=[], is_early=False)
@settings(deadline=None, max_examples=150)
async def test_any_bytes_give_messages_and_an_end(data: bytes, at: list[int], is_early: bool) -> None:
    """Whatever is raised but these two would leave the test, also from an engine's own task."""
    got = []
    for engine in ENGINES:
        messages, ending, _ = await said_to(engine, cut(data, at), is_early=is_early)
        assert isinstance(ending, PeerGone | BadMessage)
        got.append(messages)
    # One may end sooner than the other: they differ in what is a fault, and in when they see it.
    shorter, longer = sorted(got, key=len)
    assert longer[: len(shorter)] == shorter
