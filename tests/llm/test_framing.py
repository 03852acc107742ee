import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import LLMUnavailable
from persona.llm.framing import EventDecoder, LineSplitter


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(
    lines=st.lists(st.text().filter(lambda text: "\n" not in text and "\r" not in text)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    sizes=st.lists(st.integers(0, 5)),
)
def test_lines_do_not_depend_on_how_they_are_cut(lines: list[str], end: str, sizes: list[int]) -> None:
    splitter = LineSplitter()
    data = "".join(line + end for line in lines).encode("utf-8", "replace")
    got = [line for piece in cut(data, sizes) for line in splitter.feed(piece)]
    assert got == [line.encode("utf-8", "replace").decode() for line in lines]
    assert splitter.finish() is None


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(0, 7)))
def test_any_bytes_give_lines_or_unavailable(data: bytes, sizes: list[int]) -> None:
    splitter = LineSplitter(max_line_bytes=20)
    events = EventDecoder(max_event_bytes=30)
    try:
        for piece in cut(data, sizes):
            for line in splitter.feed(piece):
                assert len(line.encode()) <= 20
                events.feed(line)
        splitter.finish()
    except LLMUnavailable:
        # Only what breaks a rule is refused.
        too_long = any(len(line) > 20 for line in data.splitlines())
        try:
            data.decode()
        except UnicodeDecodeError:
            return
        assert too_long or data.count(b"data") > 1


def test_the_rest_is_the_last_line() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == ["one"]
    assert splitter.feed(b"o") == []
    assert splitter.finish() == "two"
    assert splitter.finish() is None


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_line_may_be_as_long_as_the_limit_and_no_longer(piece: int) -> None:
    def feed(data: bytes) -> list[str]:
        splitter = LineSplitter(max_line_bytes=10)
        return [line for i in range(0, len(data), piece) for line in splitter.feed(data[i : i + piece])]

    assert feed(b"x" * 10 + b"\n") == ["x" * 10]
    for data in (b"x" * 11 + b"\n", b"x" * 11):
        with pytest.raises(LLMUnavailable, match="longer than 10 bytes"):
            feed(data)


@pytest.mark.parametrize(
    ("lines", "data"),
    [
        (["data: a", ""], ["a"]),
        (["data:a", "data:  b", ""], ["a\n b"]),
        ([": comment", "", "event: e", "", "data", ""], [""]),
        (["data: a"], []),
    ],
)
def test_events(lines: list[str], data: list[str]) -> None:
    events = EventDecoder()
    assert [got for line in lines if (got := events.feed(line)) is not None] == data


def test_an_event_is_bounded_however_short_its_lines() -> None:
    events = EventDecoder(max_event_bytes=10)
    for _ in range(5):
        events.feed("data: x")
    with pytest.raises(LLMUnavailable, match="event longer than 10 bytes"):
        events.feed("data: x")
    events = EventDecoder(max_event_bytes=10)
    for _ in range(10):
        events.feed("data")
    with pytest.raises(LLMUnavailable, match="event longer than 10 bytes"):
        events.feed("data")
