"""One attempt to ask a target: a request, and an answer or a typed failure."""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

import certifi
import httpx
from torch import Tensor

from udc_ray.metered import formats
from udc_ray.metered.address import Place, Resolver, first_place, locate, resolve
from udc_ray.metered.endpoint import Endpoint, secret_header
from udc_ray.metered.failures import LostAnswer, NotSent, Refused, TargetError
from udc_ray.redact import redact

REFUSALS = frozenset({425, 429, 503})
EXCERPT = 200
"""Characters of an error's body that a message repeats."""
_ERROR_BYTES = 4096
_BLAMES = {
    401: ("it wants another authentication", "set the header's environment variable, or give header: NAME=VARIABLE"),
    403: ("it does not allow this", "check the authentication header and the permission"),
    404: ("the path of the URL is wrong", "check the target's URL, such as http://HOST:PORT/restore"),
    405: ("the path of the URL takes no POST", "check the target's URL, such as http://HOST:PORT/restore"),
    413: ("images of this size are too large for it", "use smaller images, or raise the server's limit"),
    415: ("it takes another format", "give format: png or format: npy with the target"),
}


class Client:
    """Asks one target, from any number of threads, one image a call.

    Args:
        endpoint: the target.
        environment: where the authentication header comes from; this process's unless given.
        resolver: turns the host name into addresses.

    Raises:
        UserError: the address, its permission or the header's variable is missing or wrong.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        environment: Mapping[str, str] | None = None,
        resolver: Resolver = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint, self._resolver, self._clock = endpoint, resolver, clock
        self._secret = secret_header(endpoint, environment)
        self.place: Place = first_place(endpoint, resolver)
        self._lock = threading.Lock()
        self._scores: int | None = None
        # the debug lines of httpx's transport repeat what a server sends, which may be our own header
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        seconds = endpoint.timeout_s
        self._http = httpx.Client(
            trust_env=False,  # no proxy and no .netrc: the connection goes to the address that was checked
            verify=_tls(endpoint.url.lower().startswith("https")),
            follow_redirects=False,
            timeout=httpx.Timeout(seconds, connect=min(10.0, seconds)),
            # idle connections go before the usual server closes them, so that none breaks under a request
            limits=httpx.Limits(max_connections=endpoint.concurrency, keepalive_expiry=2.0),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def query(self, x_CHW: Tensor) -> formats.Query:
        """The request for an image: its exact bytes and their hash.

        Raises:
            SpecError: the image is not on the grid that the target takes.
        """
        return formats.encode(x_CHW, self.endpoint.storage_depth)

    def send(self, x: Tensor | formats.Query) -> Tensor:
        """Ask once.

        Args:
            x: C x H x W in [0, 1], or its `query`.

        Returns:
            C x H x W float32, or a vector of scores.

        Raises:
            Refused: 429 or 503.
            LostAnswer: sent, and no usable answer.
            NotSent: no connection.
            TargetError: what no further attempt mends.
        """
        query = x if isinstance(x, formats.Query) else self.query(x)
        *others, last = self.place.addresses
        for address in others:
            with suppress(NotSent):
                return self._ask(query, address)
        try:
            return self._ask(query, last)
        except NotSent:
            # the name may lead elsewhere by now; what it leads to is checked as at the start
            self.place = locate(self.endpoint, self._resolver)
            raise

    def _ask(self, query: formats.Query, address: str) -> Tensor:
        deadline = self._clock() + self.endpoint.timeout_s
        try:
            with self._http.stream(
                self.endpoint.method,
                _at(self.endpoint.url, address),
                content=query.body,
                headers=self._headers(query),
                extensions={"sni_hostname": self.place.host},
            ) as response:
                self._judge(response, deadline)
                media_type = self._media_type(response)
                content = self._read(response, formats.largest_answer(query.shape, media_type), deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise self._not_connected(error, address) from error
        except httpx.TimeoutException as error:
            raise LostAnswer(f"no answer within {self.endpoint.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise LostAnswer(f"the connection broke: {type(error).__name__}: {self._clean(str(error))}") from error
        return self._decode(content, media_type, query)

    def _headers(self, query: formats.Query) -> dict[str, str]:
        parts = urlsplit(self.endpoint.url)
        accept = formats.JSON if self.endpoint.task == "classification" else query.media_type
        ours = {
            "host": parts.netloc,
            "content-type": query.media_type,
            "accept": accept,
            "accept-encoding": "identity",
            "user-agent": "udc-ray",
        }
        return {**ours, **self._secret}

    def _judge(self, response: httpx.Response, deadline: float) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        if status == 200:
            return
        if status in REFUSALS:
            raise Refused(retry_after(response.headers.get("retry-after"), datetime.now(UTC)))
        if status >= 500 or status == 408:
            raise LostAnswer(f"the target answered {status}{self._excerpt(response, deadline)}")
        if 300 <= status < 400:
            raise TargetError(
                f"the target redirects ({status}) to {self._clean(response.headers.get('location', 'nowhere'))}",
                "another scheme (https), another path, or a login page",
                "give the final URL; redirects are not followed, as only the address in the spec was checked",
            )
        cause, change = _BLAMES.get(status, ("it cannot use the request", "check URL, format and depth of the target"))
        raise TargetError(f"the target answered {status}{self._excerpt(response, deadline)}", cause, change)

    def _media_type(self, response: httpx.Response) -> str:
        """The kind of the answer's body; any other than what was asked for is refused."""
        given = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        wanted = formats.PNG if self.endpoint.format == "png" else formats.NPY
        if self.endpoint.task == "classification":
            wanted = formats.JSON
        spellings = {wanted} | ({"application/octet-stream", ""} if wanted != formats.JSON else set())
        if given not in spellings or coding not in {"", "identity"}:
            what = given or "no media type"
            raise TargetError(
                f"the target answers {what}{f' in {coding} coding' if coding != 'identity' else ''}, not {wanted}",
                "a page in place of a model's answer, or a model that speaks another format",
                "check the URL, and format and task of the target",
            )
        return wanted

    def _read(self, response: httpx.Response, limit: int, deadline: float) -> bytes:
        announced = response.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise LostAnswer(f"the answer has {announced} bytes, {limit} are the most that such an image takes")
        parts, size = [], 0
        for part in response.iter_raw():
            size += len(part)
            if size > limit:
                raise LostAnswer(f"the answer goes on beyond {limit} bytes, the most that such an image takes")
            if self._clock() > deadline:
                raise LostAnswer(f"no whole answer within {self.endpoint.timeout_s:g} s")
            parts.append(part)
        return b"".join(parts)

    def _decode(self, content: bytes, media_type: str, query: formats.Query) -> Tensor:
        try:
            if media_type != formats.JSON:
                return formats.decode_image(content, media_type, query.shape)
            scores = formats.decode_scores(content)
        except ValueError as error:
            raise LostAnswer(f"the answer cannot be used: {error}") from error
        with self._lock:
            self._scores = self._scores or len(scores)
        if len(scores) != self._scores:
            raise LostAnswer(f"the answer has {len(scores)} scores, earlier ones had {self._scores}")
        return scores

    def _not_connected(self, error: httpx.HTTPError, address: str) -> NotSent | TargetError:
        host = self.place.host
        name = f"{host if host == address else f'{host} ({address})'}, port {self.place.port}"
        reason = self._clean(str(error)) or type(error).__name__
        if "certificate" in reason.lower():
            return TargetError(
                f"no trusted connection to {name}: {reason}",
                "a certificate of a private authority, for another name, or out of date",
                "let SSL_CERT_FILE name the authority's certificate; the check cannot be turned off",
            )
        return NotSent(f"no connection to {name}: {reason}")

    def _excerpt(self, response: httpx.Response, deadline: float) -> str:
        """The beginning of an error's body, if it is text."""
        content = b""
        try:
            for part in response.iter_raw():
                content += part
                if len(content) > _ERROR_BYTES or self._clock() > deadline:
                    break
        except httpx.HTTPError:
            return ""
        text = self._clean(content[:_ERROR_BYTES].decode("utf-8", errors="replace"))
        return f": {text}" if text and text.isprintable() else ""

    def _clean(self, text: str) -> str:
        """Foreign text for a message: on one line, short, without our secret."""
        for value in self._secret.values():
            for secret in (value, value.rpartition(" ")[2]):
                text = text.replace(secret, "***")
        return re.sub(r"\s+", " ", redact(text)).strip()[:EXCERPT]


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3): a number, or a date.

    Args:
        value: the header.
        now: the time of day, with its zone.

    Returns:
        Seconds, at least 0; None where the header is missing or unreadable.
    """
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def _at(url: str, address: str) -> str:
    """The URL with a literal address for the host."""
    parts = urlsplit(url)
    literal = f"[{address}]" if ":" in address else address
    return urlunsplit(parts._replace(netloc=literal if parts.port is None else f"{literal}:{parts.port}"))


def _tls(used: bool) -> ssl.SSLContext:
    """Trust the system's authorities (or SSL_CERT_FILE) and those that httpx brings."""
    if not used:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reading the authorities takes a while
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
