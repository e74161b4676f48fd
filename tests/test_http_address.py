"""What a target's entry may say, and where its name may lead."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udc_ray.errors import SpecError
from udc_ray.metered.address import first_place, locate
from udc_ray.metered.endpoint import Endpoint, is_target, read_endpoint, secret_header
from udc_ray.metered.failures import NotSent, TargetError
from udc_ray.spec import Entry

URL = "http://restorer.test:8000/restore"
OWNER = "the lab of A. Person, for the robustness report"
PUBLIC, PRIVATE, METADATA = "93.184.215.14", "192.168.1.7", "169.254.169.254"
SECRET = "hunter2-very-secret"


def endpoint(**values: Any) -> Endpoint:
    return Endpoint(**{"url": URL, **values})


def leads_to(*addresses: str) -> Any:
    return lambda host, port: list(addresses)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_needs_no_permission(address: str) -> None:
    place = locate(endpoint(), leads_to(address))
    assert place.loopback and place.addresses == (str(ip_address(address)),)
    assert (place.host, place.port) == ("restorer.test", 8000)


@pytest.mark.parametrize("address", [PUBLIC, PRIVATE, "10.0.0.1", "2606:2800::1", "fd12::1", f"::ffff:{PUBLIC}"])
def test_other_machines_need_a_permission_and_a_budget(address: str) -> None:
    with pytest.raises(SpecError, match="nobody is named who allows"):
        locate(endpoint(budget=10), leads_to(address))
    with pytest.raises(SpecError, match="no budget is given"):
        locate(endpoint(authorized=OWNER), leads_to(address))
    place = locate(endpoint(authorized=OWNER, budget=10), leads_to(address))
    assert not place.loopback and place.addresses == (str(ip_address(address)),)


def test_every_address_of_a_name_counts() -> None:
    with pytest.raises(SpecError, match=f"{PUBLIC}, beyond this machine"):
        locate(endpoint(), leads_to("127.0.0.1", PUBLIC))
    assert not locate(endpoint(authorized=OWNER, budget=1), leads_to("127.0.0.1", PUBLIC)).loopback


EMBEDDED = {
    "plain": METADATA,
    "mapped": f"::ffff:{METADATA}",
    "compatible": f"::{METADATA}",
    "6to4": "2002:a9fe:a9fe::1",
    "NAT64": f"64:ff9b::{METADATA}",
    "local NAT64": f"64:ff9b:1::{METADATA}",
    "AWS by IPv6": "fd00:ec2::254",
    "Alibaba": "100.100.100.200",
    "link-local": "fe80::1",
    "link-local with its scope": "fe80::1%eth0",
}


@pytest.mark.parametrize("kind", EMBEDDED)
def test_metadata_services_are_refused_in_every_spelling(kind: str) -> None:
    resolver = leads_to("127.0.0.1", EMBEDDED[kind])
    with pytest.raises(SpecError, match="link-local address or a cloud's metadata service"):
        locate(endpoint(authorized=OWNER, budget=10), resolver)


def test_a_link_local_address_that_the_permission_names_is_allowed() -> None:
    named = f"{OWNER}; {METADATA} is our own camera"
    assert locate(endpoint(authorized=named, budget=10), leads_to(METADATA)).addresses == (METADATA,)
    for other in (f"{OWNER}; {METADATA}9", f"{OWNER}; 1{METADATA}", f"{OWNER}; {METADATA}.7"):
        with pytest.raises(SpecError, match="link-local"):
            locate(endpoint(authorized=other, budget=10), leads_to(METADATA))
    with pytest.raises(SpecError, match="no budget"):
        locate(endpoint(authorized=named), leads_to(METADATA))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "255.255.255.255"])
def test_what_is_no_machine_is_never_asked(address: str) -> None:
    with pytest.raises(SpecError, match="no address of a machine|many machines"):
        locate(endpoint(authorized=f"{OWNER} {address}", budget=10), leads_to(address))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_without_permission_only_loopback_is_reached(address: IPv4Address | IPv6Address) -> None:
    """Against a definition by the numbers: 127/8, ::1, and 127/8 mapped into IPv6."""
    number = int(address)
    inner = number - (0xFFFF << 32) if address.version == 6 and number >> 32 == 0xFFFF else number
    here = (address.version == 4 or inner != number) and inner >> 24 == 127
    try:
        locate(endpoint(), leads_to(str(address)))
    except SpecError:
        assert not here and number != 1
    else:
        assert here or (address.version == 6 and number == 1)


def test_odd_spellings_of_an_address_are_what_the_system_makes_of_them() -> None:
    for host in ("2130706433", "0x7f.1", "127.1", "LOCALHOST"):
        assert locate(endpoint(url=f"http://{host}:9/x")).loopback
    with pytest.raises(SpecError, match="0.0.0.0 is where a server listens"):
        locate(endpoint(url="http://0:9/x"))


def test_a_name_without_address_is_not_sent_in_a_run_and_a_user_error_before_it() -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(NotSent, match="restorer.test cannot be resolved: Name or service"):
        locate(endpoint(), nowhere)
    with pytest.raises(TargetError, match="misspelt"):
        first_place(endpoint(), nowhere)


def test_an_entry_becomes_a_target_with_its_defaults() -> None:
    found = read_endpoint(Entry(name=URL, params={"rate": "1/2", "format": "npy"}))
    assert (found.url, found.rate, found.format, found.task) == (URL, 0.5, "npy", "restoration")
    assert found.storage_depth == "float" and (found.host, found.port) == ("restorer.test", 8000)
    assert endpoint().storage_depth == 8 and endpoint(depth=16).storage_depth == 16
    assert endpoint(url="https://a.test/x").port == 443 and endpoint(url="http://a.test").port == 80
    assert is_target(URL) and is_target("HTTPS://x") and not is_target("default") and not is_target("pkg.mod:make")


def test_pace_price_and_permission_do_not_name_a_target() -> None:
    paced = endpoint(budget=5, authorized=OWNER, rate=2, concurrency=9, timeout_s=3, refusals_are_free=True)
    assert paced.identity() == endpoint().identity() != endpoint(depth=16).identity()


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        (URL, {"budgte": 5}, "budget"),
        (URL, {"budget": 0}, "budget"),
        (URL, {"url": "http://169.254.169.254/"}, "a URL twice"),
        (URL, {"rate": 0}, "rate"),
        (URL, {"format": "jpeg"}, "format"),
        (URL, {"depth": 12}, "depth"),
        (URL, {"format": "npy", "depth": 16}, "depth is about PNG"),
        (URL, {"concurrency": 0}, "concurrency"),
        (URL, {"authorized": ""}, "authorized"),
        (URL, {"method": "GET"}, "method"),
        ("http:///restore", {}, "a target is http"),
        ("ftp://host/x", {}, "a target is http"),
        ("http://host:port/x", {}, "[Pp]ort"),
        ("http://host:99999/x", {}, "[Pp]ort"),
        ("http://host/a b", {}, "plain ASCII"),
        ("http://hôst/", {}, "plain ASCII"),
        ("http://host/x#y", {}, "fragment"),
    ],
)
def test_mistakes_in_an_entry_are_one_message(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_endpoint(Entry(name=name, params=params))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        (f"http://user:{SECRET}@host/x", {}),
        (f"http://{SECRET}@host/x", {}),
        (f"http://host/x?key={SECRET}", {}),
        (f"http://host/x?a=1&access_token={SECRET}", {}),
        (URL, {"header": f"Authorization: Bearer {SECRET}"}),
        (URL, {"header": f"Authorization=Bearer {SECRET}"}),
        (URL, {"header": f"Authorization={SECRET}"}),
        (URL, {"header": {"Authorization": SECRET}}),
        (URL, {"header": f"Bad Name={SECRET.upper()}"}),
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as refusal:
        read_endpoint(Entry(name=name, params=params))
    assert SECRET.lower() not in str(refusal.value).lower()


def test_the_client_s_own_headers_cannot_be_set() -> None:
    for name in ("Host", "content-length", "Transfer-Encoding"):
        with pytest.raises(SpecError, match="written by the client itself"):
            read_endpoint(Entry(name=URL, params={"header": f"{name}=VARIABLE"}))


def test_the_header_s_value_comes_from_the_environment() -> None:
    target = read_endpoint(Entry(name=URL, params={"header": "X-Api-Key=LAB_KEY"}))
    assert secret_header(target, {"LAB_KEY": SECRET}) == {"X-Api-Key": SECRET}
    assert secret_header(endpoint(), {"LAB_KEY": SECRET}) == {}
    assert SECRET not in repr(target) + target.identity()
    with pytest.raises(SpecError, match="LAB_KEY is not set"):
        secret_header(target, {})
    for spoilt in (f"{SECRET}\n", f" {SECRET}", f"{SECRET}\r\nX-Evil: 1", "schlüssel"):
        with pytest.raises(SpecError, match="holds what no header can") as refusal:
            secret_header(target, {"LAB_KEY": spoilt})
        assert SECRET not in str(refusal.value)
