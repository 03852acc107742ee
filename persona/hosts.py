"""Host names and addresses: which are this server's own, and which are this machine's. No look-ups.

A page on any site can make a browser come here under a name of its own that resolves to loopback (DNS
rebinding); an address, or a name that is ours, cannot be rebound. So whoever listens asks `OwnNames`.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class OwnNames:
    """The names under which a server bound to `bound_host` may be addressed: `allowed`, or, where that is
    empty, `localhost`, the bound host and every IP address."""

    def __init__(self, allowed: Iterable[str], bound_host: str) -> None:
        self._bound_host = bound_host.casefold()
        self._allowed = {host.strip("[]").casefold() for host in allowed}

    def __contains__(self, host: object) -> bool:
        """Whether a `Host` header, with or without a port, names this server."""
        if not isinstance(host, str):
            return False
        _, name = split_url(f"//{host}")
        if self._allowed:
            return name in self._allowed
        return name in {"localhost", self._bound_host} or parse_address(name) is not None


def split_url(url: str) -> tuple[str, str]:
    """Scheme and host name, lower case; both empty when it is no URL."""
    try:
        parts = urlsplit(url) if url.isprintable() else urlsplit("")
    except ValueError:
        return "", ""
    return parts.scheme, parts.hostname or ""


def parse_address(text: str) -> IPAddress | None:
    """The IP address that `text` is, its zone left away; an IPv4 one that is written as IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else address


def is_loopback_name(name: str) -> bool:
    """Whether only this machine is reached by that name."""
    address = parse_address(name)
    return name.casefold() == "localhost" or (address is not None and address.is_loopback)


def in_url(host: str) -> str:
    """`host` as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
