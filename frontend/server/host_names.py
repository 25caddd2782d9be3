"""Names and addresses of hosts, as they stand in Host headers and on command lines."""

import ipaddress
import re

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:/@\s]+?)\.?(?::(?P<port>\d{0,5}))?")

Host = tuple[str, str]  # name and port, as text; no port: empty


def parse_host(text: str) -> Host | None:
    """Name and port of a Host header, or of an address; None when it is neither."""
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"  # an IPv6 address by itself
    match = _HOST.fullmatch(text.strip().lower())
    if match is None:
        return None
    name = match["name"]
    if name.startswith("["):
        try:
            name = str(ipaddress.IPv6Address(name[1:-1]))
        except ValueError:
            return None
    return name, match["port"] or ""


def is_local(name: str) -> bool:
    """Whether a name, or address, is this machine's for itself."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
