"""Headers read in passing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.transport.engine import EngineOptions
from persona.transport.framescan import FrameScanner
from tests.transport.link import BINARY, CONT, PING, PONG, TEXT, close, fragments, frame, text


def scanner(
    *, max_bytes: int = 100, burst: int = 3, per_minute: float = 60, now: list[float] | None = None
) -> FrameScanner:
    options = EngineOptions(
        max_message_bytes=max_bytes,
        control_rate_per_minute=per_minute,
        control_rate_burst=burst,
        write_deadline_s=10.0,
    )
    times = [0.0] if now is None else now
    return FrameScanner(options, lambda: times[0])


def code(scan: FrameScanner) -> int | None:
    return None if scan.verdict is None else scan.verdict.code


GOOD = b"".join(
    [
        text("x" * 100),
        *fragments(b"x" * 50, b"y" * 50),
        text(""),
        frame(PING, bytes(125)),
        frame(BINARY, b"x" * 100),
        *fragments(b"a", b"b" * 99),
        text("end"),
    ]
)
"""As large as may be; with two fragments and a ping that bring no message."""


def test_what_is_within_the_bounds_passes() -> None:
    scan = scanner()
    assert scan.scan(GOOD) == len(GOOD)
    assert code(scan) is None


@pytest.mark.parametrize("step", range(1, 20))
def test_it_passes_however_it_is_cut(step: int) -> None:
    scan = scanner()
    for start in range(0, len(GOOD), step):
        piece = GOOD[start : start + step]
        assert scan.scan(bytearray(piece)) == len(piece)
    assert code(scan) is None


TOO_BIG = {
    "one frame": (b"", frame(TEXT, bytes(101))),
    "one binary frame": (b"", frame(BINARY, bytes(101))),
    "two fragments": (fragments(bytes(100), b"x")[0], fragments(bytes(100), b"x")[1]),
    "a fragment after a ping": (
        fragments(bytes(100), b"x")[0] + frame(PING, bytes(20)),
        frame(CONT, b"x"),
    ),
    "2^62 bytes": (text("before"), b"\x81\xff\x40" + bytes(7) + b"mask"),
}


@pytest.mark.parametrize("kind", TOO_BIG)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_what_is_too_big_is_stopped_at_its_first_byte_or_in_its_header(kind: str, step: int) -> None:
    good, bad = TOO_BIG[kind]
    data = good + bad + text("after")
    scan = scanner()
    passed = sum(scan.scan(data[start : start + step]) for start in range(0, len(data), step))
    assert code(scan) == 1009
    # A header that came in pieces has begun to pass.
    assert len(good) <= passed < len(good) + 14
    if step == 1000:
        assert passed == len(good)
    assert scan.scan(text("more")) == 0


def test_a_ping_is_no_part_of_a_message() -> None:
    first, last = fragments(bytes(60), bytes(40))
    scan = scanner()
    data = first + frame(PING, bytes(100)) + last
    assert scan.scan(data) == len(data)


@pytest.mark.parametrize(
    "one", [frame(PING), frame(PONG), frame(CONT, fin=False), frame(TEXT, b"x", fin=False)], ids=str
)
def test_one_frame_too_many_without_a_message(one: bytes) -> None:
    now = [0.0]
    scan = scanner(now=now)
    assert scan.scan(one * 3) == len(one) * 3
    now[0] = 1.0
    assert scan.scan(one) == len(one)
    assert code(scan) is None
    assert scan.scan(text("free") * 10 + one + text("x")) == len(text("free")) * 10
    assert code(scan) == 1008


def test_what_is_no_framing_is_left_to_the_engine() -> None:
    for data in (frame(3, b"x"), frame(TEXT, b"x", mask=None), frame(TEXT, b"x", reserved=7), frame(CONT)):
        scan = scanner()
        assert scan.scan(data) == len(data)
        assert code(scan) is None


def test_after_the_peers_close_nothing_is_judged() -> None:
    scan = scanner()
    late = frame(TEXT, bytes(1000)) + frame(PING) * 100
    assert scan.scan(text("x") + close(1000) + late) == len(text("x") + close(1000) + late)
    assert scan.scan(late) == len(late)
    assert code(scan) is None


frames = st.builds(
    frame,
    st.sampled_from([TEXT, CONT, BINARY, PING, PONG, 3, 11]),
    st.binary(max_size=60),
    fin=st.booleans(),
)


@given(
    data=st.lists(frames, max_size=8).map(b"".join) | st.binary(max_size=100),
    at=st.lists(st.integers(0, 300), max_size=6),
)
def test_the_verdict_is_the_same_however_it_is_cut(data: bytes, at: list[int]) -> None:
    whole, parts = scanner(), scanner()
    passed = whole.scan(data)
    bounds = [0, *sorted({min(place, len(data)) for place in at}), len(data)]
    passed_in_parts = sum(parts.scan(data[start:end]) for start, end in itertools.pairwise(bounds))
    assert code(parts) == code(whole)
    assert passed <= passed_in_parts < passed + 14
