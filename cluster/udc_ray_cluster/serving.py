"""A model behind HTTP with Ray Serve, on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from udc_ray.errors import UserError
from udc_ray.service import Asked, BadRequest, Served, Service
from udc_ray_cluster.session import session

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own use of pydantic is deprecated
    from ray import serve

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
APPLICATION = "udc-ray"
GATHER_S = 0.005
"""Seconds for which a micro-batch waits to be full."""
QUEUE = 64
"""Micro-batches that may wait at a host; beyond, clients are told 503."""
_QUIET = {"log_level": "ERROR", "enable_access_log": False}


@dataclass(frozen=True, kw_only=True)
class Stand:
    """How a model is served.

    Attributes:
        served: the model.
        host, port: where HTTP listens.
        hosts: copies of the model, each in a process of its own.
        threads: torch threads of each.
        token_sha256: of the token that requests must carry as ``Authorization: Bearer ...``, or empty for none.
    """

    served: Served
    host: str = "127.0.0.1"
    port: int = 8000
    hosts: int = 1
    threads: int = 1
    token_sha256: str = ""

    @property
    def open(self) -> bool:
        """Whether other machines can ask it without a token."""
        return self.host not in LOOPBACK and not self.token_sha256

    @property
    def url(self) -> str:
        """Address of the service, without a path."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
        host = everywhere.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{self.port}"


class Replica:
    """One copy of the model: reads requests, gathers micro-batches, writes answers."""

    def __init__(self, stand: Stand) -> None:
        _stay_on_loopback()
        self._token = stand.token_sha256
        torch.set_num_threads(stand.threads)
        self.service = Service(stand.served)
        # one thread computes, so that the loop goes on answering /healthz
        self._compute = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(stand.threads,))
        self.many.set_max_batch_size(stand.served.micro_batch)

    @serve.batch(batch_wait_timeout_s=GATHER_S)  # type: ignore[untyped-decorator]  # ray brings no types
    async def many(self, images: list[Tensor]) -> list[Tensor | BadRequest]:
        """Evaluate images that were asked at about the same time."""
        return await asyncio.get_running_loop().run_in_executor(self._compute, self.service.answer, images)

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._respond(request)
        except BadRequest as error:
            return _json({"error": error.message}, error.status)

    async def _respond(self, request: Request) -> Response:
        from starlette.responses import Response

        route = (request.method, request.url.path.rstrip("/"))
        if route == ("GET", "/healthz"):
            return _json({"status": "ok"})
        self._admit(request)
        if route == ("GET", "/info"):
            return _json(self.service.info())
        if route[1] != self.service.path:
            raise BadRequest(
                f"there is no {request.url.path} here; POST {self.service.path}, GET /info or /healthz", 404
            )
        if route[0] != "POST":
            raise BadRequest(f"{self.service.path} takes POST", 405)
        asked: Asked = self.service.read(await self._body(request))
        output = await self.many(asked.x_CHW)
        if isinstance(output, BadRequest):
            raise output
        reply = self.service.write(output, asked.depth)
        return Response(reply.body, media_type=reply.media_type)

    def _admit(self, request: Request) -> None:
        if not self._token:
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        if kind.lower() != "bearer" or not hmac.compare_digest(given, self._token):
            raise BadRequest("the token is missing or wrong: send Authorization: Bearer TOKEN", 401)

    async def _body(self, request: Request) -> bytes:
        limit, parts, size = self.service.max_bytes, [], 0
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise BadRequest(f"the request has more than {limit} bytes", 413)
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise BadRequest(f"the request has more than {limit} bytes", 413)
            parts.append(part)
        return b"".join(parts)


def _json(document: dict[str, Any], status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(document), status_code=status, media_type="application/json")


@contextmanager
def serving(stand: Stand) -> Iterator[str]:
    """Serve a model on a Ray of its own; nothing is left running afterwards.

    Yields:
        The URL of the service, without a path.

    Raises:
        UserError: the port is taken, or Ray cannot be started.
    """
    _require_port(stand)
    with session(stand.hosts):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            _start(stand)
            yield stand.url
        finally:
            serve.shutdown()


def _start(stand: Stand) -> None:
    """Start the HTTP server and the copies of the model, and wait until they answer."""
    http = {"host": stand.host, "port": stand.port}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=_QUIET)
            serve.run(_application(stand), name=APPLICATION, route_prefix="/", logging_config=_QUIET)
        except RuntimeError as error:
            raise _not_started(error) from error


def _application(stand: Stand) -> Any:
    slots = stand.served.micro_batch
    deployment = serve.deployment(
        name="model",
        num_replicas=stand.hosts,
        max_ongoing_requests=2 * slots,  # one micro-batch is computed while the next is gathered
        max_queued_requests=QUEUE * slots,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(stand.served.device == "cuda")},
    )
    return deployment(Replica).bind(stand)


def _require_port(stand: Stand) -> None:
    try:
        family = socket.AF_INET6 if ":" in stand.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((stand.host, stand.port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {stand.host}, port {stand.port}: {error.strerror or error}",
            "another server has the port, or the address is not this machine's",
            "give another --port, or the address of one of this machine's interfaces",
        ) from error


def _not_started(error: RuntimeError) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return UserError(
        f"Ray Serve did not start the model: {lines[-1] if lines else type(error).__name__}",
        "too little memory for so many copies, or a model that loads here and not in a process of its own",
        "give fewer --hosts; the logs are in /tmp/ray/session_latest/logs/serve",
    )


def _stay_on_loopback() -> None:
    """Keep this replica's own gRPC server on 127.0.0.1; Ray Serve opens it on every interface.

    It takes pickled calls. Ray's token keeps strangers out where one is set; here nobody beyond this machine
    gets as far as that.
    """
    from ray.serve._private import replica

    inner = getattr(replica, "add_port_to_grpc_server", None)
    if inner is None:
        raise UserError(
            "this version of Ray Serve opens its replicas to the network",
            "only the way of Ray 2.60 is known here",
            "install ray 2.60",
        )
    replica.add_port_to_grpc_server = lambda server, address: inner(server, address.replace("[::]", "127.0.0.1"))
