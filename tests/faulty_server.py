"""A model behind HTTP on loopback, in this process, that fails as it is told.

    with FaultyServer(plan=["ok", "500", "429:2", "ok"]) as server:
        client = Client(Endpoint(url=server.url))

Each request takes the next entry of the plan; after the last one all is well. Faults:

    ok               answer properly
    STATUS           that status, with a body of text; ``STATUS:N`` adds Retry-After: N
    lost             evaluate, then close the connection without an answer
    hang             evaluate, then say nothing until the server closes
    drip             evaluate, and send the answer a byte at a time
    truncate         announce the whole answer and send half of it
    cut              half of the answer, properly announced
    garbage          bytes that are no image
    small            an image of half the height
    page             a page of HTML
    gzip             the answer in gzip coding
    endless          an answer without end
    huge             an answer that announces 1 TB
    redirect[:URL]   307 to URL (this server's own /restore unless given)
    drift            the proper answer to another model
    echo             500 whose body repeats the request's headers
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]


def darker(image_HWC: Floats) -> Floats:
    """A restorer that halves every value: its answers can be computed by hand."""
    return image_HWC * np.float32(0.5)


def mean_colour(image_HWC: Floats) -> list[float]:
    """A classifier whose scores are the mean red, green and blue."""
    return [float(v) for v in image_HWC.astype(np.float64).mean(axis=(0, 1))]


class FaultyServer:
    """Counts what it evaluates, and remembers every request.

    Args:
        model: H x W x 3 in [0, 1] to the same shape, or to a list of scores.
        plan: what becomes of each request.
        tls: a server-side context for https.

    Attributes:
        evaluated: images that passed the model.
        bodies: sha256 of each request's body, in the order of arrival.
        headers: headers of each request.
        most_at_once: requests that were under way at the same time.
    """

    def __init__(
        self,
        model: Callable[[Floats], Any] = darker,
        plan: Sequence[str] = (),
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.model, self.plan = model, list(plan)
        self.evaluated, self.most_at_once, self._now = 0, 0, 0
        self.bodies: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"{self._scheme}://127.0.0.1:{self.port}/restore"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def begin(self, body: bytes, headers: dict[str, str]) -> str:
        """Note a request; what is to become of it."""
        with self.lock:
            self.bodies.append(hashlib.sha256(body).hexdigest())
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return self.plan.pop(0) if self.plan else "ok"

    def end(self) -> None:
        """A request is over."""
        with self.lock:
            self._now -= 1

    def evaluate(self, body: bytes, fault: str) -> tuple[bytes, str]:
        """The answer and its media type."""
        npy = body.startswith(b"\x93NUMPY")
        image = np.load(io.BytesIO(body)) if npy else np.asarray(Image.open(io.BytesIO(body)), np.float32) / 255
        with self.lock:
            self.evaluated += 1
        answer = self.model(image)
        if isinstance(answer, list):
            return json.dumps({"scores": [*answer, 0.0] if fault == "small" else answer}).encode(), "application/json"
        if fault == "drift":
            answer = answer * np.float32(0.9)
        if fault == "small":
            answer = answer[: len(answer) // 2]
        return (_npy(answer), "application/x-npy") if npy else (_png(answer), "image/png")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


def _npy(values: Floats) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values.astype(np.float32))
    return stream.getvalue()


def _png(values: Floats) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            fault = server.begin(body, {k.lower(): v for k, v in self.headers.items()})
            try:
                self._fail(fault, body)
            finally:
                server.end()

        def _fail(self, fault: str, body: bytes) -> None:
            kind, _, detail = fault.partition(":")
            if kind.isdigit():
                self._send(int(kind), b"no such luck", "text/plain", {"retry-after": detail} if detail else {})
            elif kind == "redirect":
                self._send(307, b"", "text/plain", {"location": detail or server.url})
            elif kind == "echo":
                self._send(500, str(self.headers).replace("\n", " ").replace("\r", "").encode(), "text/plain")
            elif kind == "page":
                self._send(200, b"<html>log in</html>", "text/html; charset=utf-8")
            else:
                self._spoil(kind, *server.evaluate(body, kind))

        def _spoil(self, kind: str, answer: bytes, media_type: str) -> None:
            half = answer[: len(answer) // 2]
            if kind in {"ok", "drift", "small"}:
                self._send(200, answer, media_type)
            elif kind == "gzip":
                self._send(200, gzip.compress(answer), media_type, {"content-encoding": "gzip"})
            elif kind == "cut":
                self._send(200, half, media_type)
            elif kind == "garbage":
                self._send(200, b"garbage" * 20, media_type)
            else:
                self._break(kind, answer, media_type)

        def _break(self, kind: str, answer: bytes, media_type: str) -> None:
            """Answers that do not end as they should; the connection is of no use afterwards."""
            self.close_connection = True
            if kind == "hang":
                server.closing.wait()
            if kind in {"hang", "lost"}:
                return
            length = {"huge": str(2**40), "endless": None}.get(kind, str(len(answer)))
            self._head(200, media_type, length, {})
            if kind == "truncate":
                self.wfile.write(answer[: len(answer) // 2])
            elif kind == "endless":
                while not server.closing.is_set():
                    self.wfile.write(b"x" * 65536)
            elif kind == "drip":
                for byte in answer:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if server.closing.wait(0.02):
                        return

        def _send(self, status: int, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
            self._head(status, media_type, str(len(body)), headers or {})
            self.wfile.write(body)

        def _head(self, status: int, media_type: str, length: str | None, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("content-type", media_type)
            if length is not None:
                self.send_header("content-length", length)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
