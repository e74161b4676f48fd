"""Where a target's name leads, and whether requests may go there.

The name is resolved here, every address that it has is checked, and the connection is made to one of
the checked addresses: whoever answers for the name cannot lead the requests elsewhere afterwards.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from udc_ray.errors import SpecError
from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import NotSent, TargetError

Resolver = Callable[[str, int], list[str]]
"""Host name and port to literal addresses, in the order of preference."""
Address = IPv4Address | IPv6Address

_METADATA = frozenset(ip_address(a) for a in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"))
"""Services that hand out a cloud machine's credentials, outside the link-local range."""
_WITH_IPV4 = tuple(IPv6Network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))
"""Ranges whose last 32 bits are an IPv4 address (RFC 6052, RFC 8215, RFC 4291); ::1 is none of it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A target's checked addresses.

    Attributes:
        host: the name, as in the URL; TLS is verified against it.
        port: TCP port.
        addresses: literal addresses, in the order in which they are tried.
        loopback: whether all of them are on this machine.
    """

    host: str
    port: int
    addresses: tuple[str, ...]
    loopback: bool


def resolve(host: str, port: int) -> list[str]:
    """Literal addresses of a host name, as the system gives them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def locate(endpoint: Endpoint, resolver: Resolver = resolve) -> Place:
    """Resolve a target's name and check every address; nothing is sent to the target.

    Args:
        endpoint: the target, with what its owner allows.
        resolver: turns a name into addresses.

    Raises:
        SpecError: an address that is never right, or one for which the spec lacks permission or budget.
        NotSent: the name has no address at the moment.
    """
    try:
        given = resolver(endpoint.host, endpoint.port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotSent(f"the name {endpoint.host} cannot be resolved: {reason}") from error
    if not given:
        raise NotSent(f"the name {endpoint.host} has no address")
    parsed = [ip_address(text) for text in given]
    for address in parsed:
        _refuse_never(address, endpoint)
        if _is_metadata(address) and not _is_named(address, endpoint.authorized or ""):
            raise _metadata_error(address, endpoint)
    loopback = all(_is_loopback(address) for address in parsed)
    if not loopback:
        _require_permission(endpoint, [a for a in parsed if not _is_loopback(a)])
    return Place(host=endpoint.host, port=endpoint.port, addresses=tuple(map(str, parsed)), loopback=loopback)


def first_place(endpoint: Endpoint, resolver: Resolver = resolve) -> Place:
    """`locate` before a run, where a name without address is the user's to mend.

    Raises:
        SpecError, TargetError: see `locate`.
    """
    try:
        return locate(endpoint, resolver)
    except NotSent as error:
        raise TargetError(str(error), "a misspelt name, or no network", "check the URL of the target") from error


def _embedded(address: Address) -> Iterable[IPv4Address]:
    """The IPv4 addresses to which an IPv6 address may be translated on its way."""
    if not isinstance(address, IPv6Address):
        return
    for found in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if found is not None:
            yield found
    if int(address) > 1 and any(address in network for network in _WITH_IPV4):
        yield IPv4Address(int(address) & 0xFFFFFFFF)


def _meanings(address: Address) -> list[Address]:
    return [address, *_embedded(address)]


def _is_loopback(address: Address) -> bool:
    """127.0.0.0/8 and ::1, also written as IPv4 within IPv6; translated forms leave this machine."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _is_metadata(address: Address) -> bool:
    return any(a.is_link_local or _without_scope(a) in _METADATA for a in _meanings(address))


def _without_scope(address: Address) -> Address:
    return IPv6Address(int(address)) if isinstance(address, IPv6Address) else address


def _is_named(address: Address, text: str) -> bool:
    return re.search(rf"(?<![\w.:]){re.escape(str(address))}(?![\w:]|\.\w)", text) is not None


def _refuse_never(address: Address, endpoint: Endpoint) -> None:
    for meant in _meanings(address):
        broadcast = meant == IPv4Address("255.255.255.255")
        if meant.is_unspecified or meant.is_multicast or broadcast:
            kind = "no address of a machine" if meant.is_unspecified else "an address of many machines"
            raise SpecError(
                f"the target {endpoint.host} leads to {address}, which is {kind}",
                "0.0.0.0 is where a server listens, not where it is asked" if meant.is_unspecified else "a wrong name",
                "give 127.0.0.1 for a server on this machine, or the address of another one",
            )


def _metadata_error(address: Address, endpoint: Endpoint) -> SpecError:
    return SpecError(
        f"the target {endpoint.host} leads to {address}, a link-local address or a cloud's metadata service",
        "such services hand out credentials; a name that leads there is a trap more often than a model",
        f"use another address; if it is your own model, let authorized: name {address} itself and say why",
    )


def _require_permission(endpoint: Endpoint, beyond: list[Address]) -> None:
    where = f"{endpoint.host} is {', '.join(map(str, beyond))}, beyond this machine"
    if not (endpoint.authorized or "").strip():
        raise SpecError(
            f"the target {where}, and nobody is named who allows the queries",
            "a campaign sends a model thousands of attacked images",
            "ask its owner, and give authorized: 'WHO allows it, AND WHY' with the model; the run records it",
        )
    if endpoint.budget is None:
        raise SpecError(
            f"the target {where}, and no budget is given",
            "what is sent to somebody else's machine cannot be taken back",
            "give budget: N with the model, the number of requests that it may ever be sent",
        )
