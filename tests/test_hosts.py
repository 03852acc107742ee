"""Which names are ours."""

import pytest

from persona.hosts import OwnNames, in_url, is_loopback_name, parse_address, split_url


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "127.0.0.1:1",
        "[::1]:8080",
        "192.0.2.7",
        "Persona.LAN",
        "persona.lan:80",
    ],
)
def test_addresses_localhost_and_the_bound_name_are_ours(host: str) -> None:
    assert host in OwnNames((), "persona.lan")


@pytest.mark.parametrize(
    "host",
    ["", None, "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "a b", "x\x00", 7],
)
def test_other_names_and_what_is_none_are_not(host: object) -> None:
    assert host not in OwnNames((), "persona.lan")


def test_where_names_are_listed_only_those_count() -> None:
    names = OwnNames(("persona.example", "[::1]"), "127.0.0.1")
    assert [host in names for host in ("persona.example:443", "[::1]:80", "localhost", "127.0.0.1")] == [
        True,
        True,
        False,
        False,
    ]


def test_urls_are_split_and_what_is_none_gives_nothing() -> None:
    assert split_url("HTTPS://Example.ORG:8443/x") == ("https", "example.org")
    assert split_url("http://[::1") == ("", "")
    assert split_url("http://a\nb") == ("", "")


def test_addresses_are_brought_to_one_form() -> None:
    assert str(parse_address("::ffff:127.0.0.1")) == "127.0.0.1"
    assert str(parse_address("fe80::1%eth0")) == "fe80::1"
    assert parse_address("localhost") is None


def test_loopback_by_name_and_by_address() -> None:
    assert [is_loopback_name(name) for name in ("localhost", "127.8.8.8", "::1", "192.0.2.1", "x")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_addresses_in_urls() -> None:
    assert (in_url("::1"), in_url("127.0.0.1")) == ("[::1]", "127.0.0.1")
