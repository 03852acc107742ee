"""Frames as bytes, against `websockets`, which makes them another way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from persona.transport.frames import is_whole_text, payload_span, text_header, unmasked

SIZES = [0, 1, 2, 124, 125, 126, 127, 128, 65534, 65535, 65536, 70000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.CONT, Opcode.BINARY])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_frame_is_found_wherever_it_stands(kind: type, opcode: Opcode, is_masked: bool, size: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    whole = Frame(opcode, payload).serialize(mask=is_masked)
    header = len(whole) - size
    for before in (b"", b"\x81\x85other"):
        data = kind(before + whole + b"\x81")
        start = len(before)
        assert payload_span(data, start) == (start + header, start + len(whole))
        if is_masked:
            assert unmasked(data, start + header, start + len(whole)) == payload


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_header_is_judged_when_it_is_all_there(is_masked: bool, size: int) -> None:
    whole = Frame(Opcode.TEXT, bytes(size)).serialize(mask=is_masked)
    header = len(whole) - size
    for there in range(header):
        assert payload_span(b"ab" + whole[:there], 2) is None
    assert payload_span(b"ab" + whole[:header], 2) == (2 + header, 2 + len(whole))


def test_the_greatest_length_there_is() -> None:
    assert payload_span(b"\x81\xff" + b"\xff" * 8 + b"mask", 0) == (14, 14 + (1 << 64) - 1)


@given(
    payload=st.binary(max_size=300),
    fin=st.booleans(),
    opcode=st.sampled_from(list(Opcode)),
    is_masked=st.booleans(),
    before=st.binary(max_size=5),
)
def test_only_a_clients_text_in_one_piece_is_whole_text(
    payload: bytes, fin: bool, opcode: Opcode, is_masked: bool, before: bytes
) -> None:
    if opcode >= 8:
        payload, fin = payload[:125], True
    data = before + Frame(opcode, payload, fin=fin).serialize(mask=is_masked)
    assert is_whole_text(data, len(before)) == (opcode is Opcode.TEXT and fin and is_masked)


@pytest.mark.parametrize("reserved", [0x40, 0x20, 0x10, 0x70])
def test_a_reserved_bit_makes_it_no_whole_text(reserved: int) -> None:
    assert not is_whole_text(bytes([0x81 | reserved, 0x80, 0, 0, 0, 0]), 0)


@pytest.mark.parametrize("size", SIZES)
def test_the_header_of_a_text(size: int) -> None:
    assert text_header(size) + bytes(size) == Frame(Opcode.TEXT, bytes(size)).serialize(mask=False)
