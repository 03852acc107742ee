"""What a setting's value must look like. Each gives the value as it is kept, or raises `ValueError` saying
what was expected."""

import ipaddress
import re
from urllib.parse import urlsplit


def host(entry: object) -> str:
    """A host name or address as a Host header has it."""
    if isinstance(entry, str) and re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", entry):
        return entry.lower()
    raise ValueError("a host name or address without a port; IPv6 in brackets")


def bind_host(text: str) -> str:
    """What a socket can be bound to."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", text):
        return text
    # Brackets belong to URLs; sockets want the bare address, which may carry a zone (fe80::1%eth0).
    return str(ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]")))


def origin(entry: object) -> str:
    """What an Origin header has."""
    if isinstance(entry, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@,]+", entry):
        return entry
    raise ValueError("scheme://host[:port], without a path")


def network(entry: object) -> str:
    """An IP address or network."""
    # ip_network also takes integers and bytes, which nobody means.
    if not isinstance(entry, str):
        raise ValueError("an IP address or network")
    return str(ipaddress.ip_network(entry))


def http_url(text: str) -> str:
    """Where a model server is."""
    return _url(text, "http", "https").rstrip("/")


def websocket_url(text: str) -> str:
    """Where browsers find the WebSocket."""
    # It goes into a header of every page, where these would end what it stands in.
    if re.search(r"[^!-~]|[;,'\"]", text):
        raise ValueError("not fit for an HTTP header")
    return _url(text, "ws", "wss")


def _url(text: str, *schemes: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in schemes or not parts.hostname or re.search(r"[@?#\s]", text):
        raise ValueError(f"no {schemes[0]} URL")
    _ = parts.port  # raises ValueError when it is no port number
    return text


def file_name(text: str) -> str:
    """A database file."""
    if text == ":memory:" or not text.isprintable():
        raise ValueError("no file; a server that forgets everything is only for tests")
    return text


def header_value(text: str) -> str:
    """What an HTTP header can hold."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("not fit for an HTTP header")
    return text
