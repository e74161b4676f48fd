"""The HTTP client against a server that fails as it is told."""

from __future__ import annotations

import hashlib
import logging
import pickle
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from doubles import images
from faulty_server import FaultyServer, darker, mean_colour
from http_doubles import Book, free_port
from torch import Tensor

from udc_ray.errors import SpecError, UserError
from udc_ray.metered.attempts import Circuit, Patience, Trying, attempts
from udc_ray.metered.client import Client
from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import AttemptFailure, LostAnswer, NotSent, Refused, TargetDrift, TargetError
from udc_ray.metered.pace import Turnstile, pace_of

X = images(1, 3, 12, 10)[0]
TOKEN = "wachtwoord-1234567890"


def ask(plan: list[str], x: Tensor = X, **values: Any) -> tuple[Any, FaultyServer]:
    """One attempt against a server with this plan: the answer or the error, and the server."""
    with FaultyServer(plan=plan) as server, Client(Endpoint(url=server.url, **{"timeout_s": 20.0, **values})) as client:
        try:
            return client.send(x), server
        except (AttemptFailure, UserError) as error:
            return error, server


def test_a_png_target_answers_in_8_bits() -> None:
    answer, server = ask(["ok"])
    assert torch.equal(answer, torch.from_numpy(np.rint(darker((X * 255).numpy())) / np.float32(255)))
    assert answer.dtype == torch.float32 and server.evaluated == 1


def test_an_npy_target_answers_in_floats() -> None:
    x = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1))
    answer, server = ask(["ok"], x, format="npy")
    assert torch.equal(answer, x * 0.5)
    assert server.headers[0]["content-type"] == server.headers[0]["accept"] == "application/x-npy"


def test_a_16_bit_target_gets_16_bits() -> None:
    x = (X * 65535).round() / 65535
    with FaultyServer() as server, Client(Endpoint(url=server.url, depth=16)) as client:
        assert client.query(x).body[24] == 16
        assert client.query(x).sha256 != Client(Endpoint(url=server.url)).query(X).sha256


def test_a_classifier_answers_scores() -> None:
    with (
        FaultyServer(mean_colour, ["ok", "small"]) as server,
        Client(Endpoint(url=server.url, task="classification")) as client,
    ):
        assert torch.allclose(client.send(X), X.mean(dim=(1, 2)), atol=1e-6)
        with pytest.raises(LostAnswer, match="4 scores, earlier ones had 3"):
            client.send(X)
        assert server.headers[0]["accept"] == "application/json"


def test_the_hash_is_that_of_the_bytes_that_arrive() -> None:
    with FaultyServer() as server, Client(Endpoint(url=server.url)) as client:
        query = client.query(X)
        client.send(query)
        client.send(X)
    assert server.bodies == [query.sha256] * 2 == [hashlib.sha256(query.body).hexdigest()] * 2


def test_an_image_off_the_grid_is_never_sent() -> None:
    answer, server = ask([], X * 0.5)
    assert isinstance(answer, SpecError) and server.bodies == []


FAULTS: dict[str, tuple[type[Exception], str, int]] = {
    "500": (LostAnswer, "answered 500: no such luck", 0),
    "502": (LostAnswer, "answered 502", 0),
    "408": (LostAnswer, "answered 408", 0),
    "lost": (LostAnswer, "the connection broke", 1),
    "truncate": (LostAnswer, "the connection broke", 1),
    "cut": (LostAnswer, "cannot be used: it is cut off", 1),
    "garbage": (LostAnswer, "cannot be used: it is no PNG", 1),
    "small": (LostAnswer, "its size is 6 x 10 x 3, sent were 12 x 10 x 3", 1),
    "endless": (LostAnswer, "goes on beyond", 1),
    "huge": (LostAnswer, "1099511627776 bytes", 1),
    "400": (TargetError, "answered 400: no such luck", 0),
    "401": (TargetError, "header: NAME=VARIABLE", 0),
    "403": (TargetError, "does not allow", 0),
    "404": (TargetError, "path of the URL is wrong", 0),
    "413": (TargetError, "too large", 0),
    "415": (TargetError, "another format", 0),
    "204": (TargetError, "answered 204", 0),
    "page": (TargetError, "answers text/html, not image/png", 0),
    "gzip": (TargetError, "in gzip coding", 1),
    "redirect": (TargetError, "redirects \\(307\\)", 0),
    "redirect:http://169.254.169.254/": (TargetError, "to http://169.254.169.254/", 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_the_failure_that_it_is(fault: str) -> None:
    kind, words, evaluated = FAULTS[fault]
    error, server = ask([fault])
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error
    assert (len(server.bodies), server.evaluated) == (1, evaluated)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_an_answer_that_does_not_come_in_time_is_lost(fault: str) -> None:
    error, server = ask([fault], timeout_s=0.3)
    assert isinstance(error, LostAnswer) and "within 0.3 s" in str(error) and server.evaluated == 1


@pytest.mark.parametrize(("plan", "seconds"), [("429:3", 3.0), ("503", None), ("429:soon", None)])
def test_refusals_say_how_long_to_wait(plan: str, seconds: float | None) -> None:
    error, server = ask([plan])
    assert isinstance(error, Refused) and error.retry_after_s == seconds and server.evaluated == 0


def test_where_nobody_listens_nothing_is_sent() -> None:
    with Client(Endpoint(url=f"http://127.0.0.1:{free_port()}/restore")) as client, pytest.raises(NotSent, match="127"):
        client.send(X)


def test_failures_cross_processes() -> None:
    for made in (Refused(2.5), Refused(), LostAnswer("it fell"), NotSent("no line"), TargetDrift("a", "b", "c")):
        copy = pickle.loads(pickle.dumps(made))
        assert type(copy) is type(made) and str(copy) == str(made)


class Names:
    """A name service whose answers change; counts how often it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_a_name_is_resolved_once_and_the_checked_address_is_used() -> None:
    """DNS rebinding: the second answer of the name service would lead elsewhere."""
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    with FaultyServer() as server:
        target = Endpoint(url=f"http://restorer.test:{server.port}/restore")
        with Client(target, resolver=names) as client:
            for _ in range(3):
                client.send(X)
    assert names.asked == 1 and server.evaluated == 3
    assert server.headers[0]["host"] == f"restorer.test:{server.port}"


def test_a_name_that_moved_is_checked_before_it_is_followed() -> None:
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    with (
        Client(Endpoint(url=f"http://restorer.test:{free_port()}/restore"), resolver=names) as client,
        pytest.raises(SpecError, match="metadata"),
    ):
        client.send(X)


def test_the_next_address_of_a_name_is_tried() -> None:
    with FaultyServer() as server:
        target = Endpoint(url=f"http://restorer.test:{server.port}/restore")
        with Client(target, resolver=Names(["127.0.0.9", "127.0.0.1"])) as client:  # nobody listens at the first
            client.send(X)
    assert server.evaluated == 1


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    answer, _ = ask(["ok"])
    assert isinstance(answer, Tensor)


def test_the_secret_is_sent_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    environment = {"LAB_TOKEN": f"Bearer {TOKEN}"}
    with FaultyServer(plan=["ok", "echo", f"redirect:http://evil.test/?t={TOKEN}", "401"]) as server:
        target = Endpoint(url=server.url, header="Authorization=LAB_TOKEN")
        with Client(target, environment=environment) as client:
            client.send(X)
            told = [repr(client), repr(client.__dict__["place"]), repr(target)]
            for _ in range(3):
                with pytest.raises((LostAnswer, TargetError)) as error:
                    client.send(X)
                told += [str(error.value), repr(error.value)]
    assert server.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert "***" in " ".join(told)
    assert TOKEN not in " ".join(told) + caplog.text


def test_a_missing_variable_is_said_before_anything_is_sent() -> None:
    with FaultyServer() as server, pytest.raises(SpecError, match="LAB_TOKEN is not set"):
        Client(Endpoint(url=server.url, header="Authorization=LAB_TOKEN"), environment={})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ssl.SSLContext]]:
    """Server contexts for a host name, signed by an authority that SSL_CERT_FILE names."""
    folder = tmp_path_factory.mktemp("tls")

    def context(host: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(certificate(folder, host))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate(folder, "restorer.test")))
        yield context


def certificate(folder: Path, host: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    path = folder / f"{host}.pem"
    if path.exists():
        return path
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    alternative = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


def test_tls_is_verified_against_the_name_and_not_the_address(authority: Callable[[str], ssl.SSLContext]) -> None:
    names = Names(["127.0.0.1"])
    with FaultyServer(tls=authority("restorer.test")) as server:
        with Client(Endpoint(url=f"https://restorer.test:{server.port}/restore"), resolver=names) as client:
            assert isinstance(client.send(X), Tensor)
        with (
            Client(Endpoint(url=f"https://other.test:{server.port}/restore"), resolver=names) as client,
            pytest.raises(TargetError, match="no trusted connection to other.test"),
        ):
            client.send(X)
    assert server.evaluated == 1


def test_an_unknown_authority_is_not_trusted(authority: Callable[[str], ssl.SSLContext]) -> None:
    with FaultyServer(tls=authority("127.0.0.1")) as server, Client(Endpoint(url=server.url)) as client:
        with pytest.raises(TargetError, match="certificate"):
            client.send(X)
        assert server.bodies == []


def test_many_threads_lose_nothing_and_count_nothing_twice() -> None:
    """Faults of every mendable kind under 4 threads: each candidate gets its own answer, the books equal the server."""
    faults = ["500", "429:0", "ok", "lost", "truncate", "503", "cut", "small", "ok", "garbage"] * 3
    candidates = images(40, 3, 6, 5, seed=3)
    with FaultyServer(plan=faults) as server:
        target = Endpoint(url=server.url, concurrency=4)
        circuit = Circuit(limit=100)
        pace = pace_of(target)
        pace.allowed = 4.0
        trying = Trying(
            slot=Turnstile(pace, circuit.check).slot,
            circuit=circuit,
            patience=Patience(attempts=50, first_pause_s=0.001, longest_pause_s=0.01),
        )
        books = [Book() for _ in candidates]
        with Client(target) as client, ThreadPoolExecutor(8) as pool:

            def one(n: int) -> Tensor:
                return attempts(lambda: client.send(candidates[n]), books[n], trying, lambda attempt: 0.5)

            answers = list(pool.map(one, range(len(candidates))))
    for x, answer in zip(candidates, answers, strict=True):
        assert torch.equal(answer, torch.from_numpy(np.rint(darker((x * 255).numpy())) / np.float32(255)))
    ends = [end for book in books for end in book.ends]
    assert ends.count("answered") == 40 and ends.count("refused") == 6 and ends.count("lost") == 18
    assert len(server.bodies) == len(ends) == 64
    assert ends.count("answered") <= server.evaluated <= ends.count("answered") + ends.count("lost")
    assert server.most_at_once <= 4


def test_no_thread_of_these_tests_is_left() -> None:
    with FaultyServer() as server:
        assert any(thread is server._thread for thread in threading.enumerate())
    assert not server._thread.is_alive()
