"""A model as a service: requests and answers without a server, and one real server from start to end."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from doubles import Conv, Jitter, images, restorer
from http_doubles import free_port
from PIL import Image
from torch import Tensor, nn

from udc_ray.errors import SpecError, UserError
from udc_ray.metered import formats
from udc_ray.metered.client import Client
from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import TargetError
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.purifiers.victim import Victim
from udc_ray.service import BadRequest, Served, Service, load_victim
from udc_ray.spec import Entry

TOKEN = "a-token-that-is-long-enough"
SERVED = Served(model=Entry(name="doubles:restorer"), micro_batch=3, max_pixels=400)


class Mean(nn.Module):
    """A classifier whose logits are the mean colours."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.mean(dim=(2, 3))


class Picky(nn.Module):
    """Takes even sizes only, and remembers the shape of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.shapes.append(tuple(x_BCHW.shape))
        if x_BCHW.shape[2] % 2:
            raise RuntimeError("odd height\nsecond line")
        return 3 * x_BCHW - 1


def service(module: nn.Module | None = None, **victim: Any) -> Service:
    return Service(SERVED, Victim(restorer=restorer(module), **victim))


def png(x_CHW: Tensor, depth: formats.StorageDepth = 8) -> bytes:
    return formats.encode(x_CHW, depth).body


def test_a_request_is_known_by_its_first_bytes_and_answered_in_kind() -> None:
    asked, x = service(Picky()), images(1, 3, 4, 6)[0]
    for depth, media_type in ((8, formats.PNG), (16, formats.PNG), ("float", formats.NPY)):
        request = asked.read(formats.encode(formats.on_grid(x, depth), depth).body)
        assert request.depth == depth and torch.allclose(request.x_CHW, x, rtol=0, atol=1e-7)
        (output,) = asked.answer([request.x_CHW])
        reply = asked.write(output, request.depth)
        found = formats.decode_image(reply.body, reply.media_type, (3, 4, 6))
        exact = 3 * request.x_CHW - 1
        assert reply.media_type == media_type
        if depth == "float":
            assert torch.equal(found, exact) and float(found.max()) > 1  # unclamped
        else:
            assert torch.allclose(found, exact.clamp(0, 1), rtol=0, atol=0.5 / (2**depth - 1) + 1e-6)


def test_a_foreign_png_of_pillow_is_read() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), 51, np.uint8)).save(stream, "PNG")
    assert torch.allclose(service().read(stream.getvalue()).x_CHW, torch.full((3, 4, 6), 0.2))


def test_every_pass_has_the_same_shape_and_answers_keep_their_order() -> None:
    module = Picky()
    small, large = images(5, 3, 4, 4), images(2, 3, 6, 4, seed=1)
    mixed = [small[0], large[0], small[1], small[2], large[1], small[3], small[4]]
    answers = service(module).answer(mixed)
    assert all(torch.equal(a, 3 * x - 1) for a, x in zip(answers, mixed, strict=True))
    assert sorted(module.shapes) == [(3, 3, 4, 4)] * 2 + [(3, 3, 6, 4)]


def test_an_answer_has_the_same_bits_whatever_else_is_asked() -> None:
    asked, x = service(Conv()), images(7, 3, 16, 12)
    alone = [asked.answer([image])[0] for image in x]
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 4, 0], [5, 3], [1]):
        together = asked.answer([x[n] for n in order])
        assert all(torch.equal(together[k], alone[n]) for k, n in enumerate(order))


def test_a_random_victim_draws_anew_for_every_request() -> None:
    asked, x = service(Picky(), purifier=Jitter(sigma=0.1)), images(1, 3, 4, 4)[0]
    first, second = asked.answer([x, x])
    (third,) = asked.answer([x])
    assert not torch.equal(first, second) and not torch.equal(first, third)
    assert asked.info()["random"] is True and "jitter" in asked.info()["defense"]


def test_a_size_on_which_the_model_fails_spoils_no_other() -> None:
    good, bad = images(1, 3, 4, 4)[0], images(1, 3, 5, 4)[0]
    failed, fine = service(Picky()).answer([bad, good])
    assert isinstance(failed, BadRequest) and failed.status == 422 and torch.equal(fine, 3 * good - 1)
    assert failed.message == "the model fails on images of 5 x 4: RuntimeError: odd height"


def test_a_classifier_answers_scores_as_json() -> None:
    descriptor = Descriptor(name="mean", parameters=0, task="classification", classes=3)
    asked = Service(SERVED, Victim(restorer=ModuleRestorer(Mean(), descriptor)))
    x = images(1, 3, 4, 6)[0]
    reply = asked.write(asked.answer([x])[0], 8)
    assert reply.media_type == formats.JSON and asked.path == "/classify"
    assert torch.equal(formats.decode_scores(reply.body), Mean()(x[None])[0])


X = images(1, 3, 4, 6)[0]
BAD = {
    "nothing": (b"", 400, "no image"),
    "text": (b"hello", 400, "no image"),
    "a form": (b"--boundary\r\nContent-Disposition: form-data", 400, "no image"),
    "cut off": (png(X)[:-9], 400, "cut off"),
    "too many pixels": (png(torch.zeros(3, 30, 20)), 400, "30 x 20 pixels; 1 to 400"),
    "too many bytes": (b"x" * (400 * 3 * 8 + formats.SLACK + 1), 413, "more than"),
    "four planes": (png(torch.zeros(4, 4, 4), "float"), 400, "4 planes, and the model takes 3"),
    "beyond white": (formats.npy_bytes(np.full((4, 4, 3), 1.5, np.float32)), 400, "leaves"),
    "not finite": (formats.npy_bytes(np.full((4, 4, 3), np.nan, np.float32)), 400, "NaN"),
    "no axes": (formats.npy_bytes(np.zeros((4, 4), np.float32)), 400, "H x W x C"),
    "an empty npy": (formats.npy_bytes(np.zeros((0, 4, 3), np.float32)), 400, "0 x 4 pixels"),
    "a damaged npy": (b"\x93NUMPY\x01\x00\x10\x00{{{{", 400, "cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_say_what_is_wrong(case: str) -> None:
    content, status, words = BAD[case]
    with pytest.raises(BadRequest, match=words) as error:
        service().read(content)
    copy = pickle.loads(pickle.dumps(error.value))
    assert error.value.status == copy.status == status and copy.message == error.value.message


def test_what_cannot_be_served_is_said_before_a_server_starts() -> None:
    with pytest.raises(SpecError, match="served already"):
        load_victim(Served(model=Entry(name="http://127.0.0.1:1/restore")))
    with pytest.raises(SpecError, match="unknown defence 'ddmi'"):
        load_victim(Served(model=Entry(name="identity"), defense=Entry(name="ddmi")))
    found = load_victim(Served(model=Entry(name="identity"), defense=Entry(name="jpeg", params={"quality": 30})))
    assert found.purifier is not None and found.purifier.quality == 30


def test_the_command_refuses_a_taken_port_and_a_weak_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from udc_ray_cli.serve import serve

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="cannot listen on 127.0.0.1, port"):
            serve("identity", port=other.getsockname()[1])
    monkeypatch.setenv("WEAK", "short")
    for variable in ("WEAK", "MISSING"):
        with pytest.raises(SpecError, match=f"{variable} holds no token") as error:
            serve("identity", token_env=variable)
        assert "short'" not in str(error.value)


def test_only_an_open_door_is_warned_of() -> None:
    from udc_ray_cluster.serving import Stand

    assert Stand(served=SERVED, host="0.0.0.0").open and Stand(served=SERVED, host="10.0.0.5").open
    assert not Stand(served=SERVED).open and not Stand(served=SERVED, host="0.0.0.0", token_sha256="x").open
    assert Stand(served=SERVED, host="0.0.0.0", port=9).url == "http://127.0.0.1:9"
    assert Stand(served=SERVED, host="::1", port=9).url == "http://[::1]:9"


# -- one real server ---------------------------------------------------------------------------------

COMMAND = """
import typer, udc_ray_cli.main as main
from udc_ray_cli import serve
if not any(command.name == "serve" for command in main.app.registered_commands):
    main.app.command("serve")(serve.serve)
main.main()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """``udc-ray serve`` in a process group of its own, as a terminal starts it: its URL and first lines."""
    port = free_port()
    words = ["serve", "doubles:restorer", "--port", str(port), "--micro-batch", "3", "--token-env", "LAB_TOKEN"]
    folder = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "LAB_TOKEN": TOKEN, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("Ctrl-C"):
            break
    assert lines, process.stderr.read()
    try:
        yield f"http://127.0.0.1:{port}", process, lines
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.cluster  # starting Ray and Serve takes 15 to 30 s
def test_a_real_server_is_asked_attacked_and_ended(server: tuple[str, subprocess.Popen[str], list[str]]) -> None:
    url, process, lines = server
    started = psutil.Process(process.pid).children(recursive=True)
    _check_what_it_says(url, lines)
    _check_answers(url)
    _check_bad_requests(url)
    _check_only_loopback([psutil.Process(process.pid), *started])
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches Ray's processes too
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "udc-ray: stopped by SIGINT")
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)


def _check_what_it_says(url: str, lines: list[str]) -> None:
    assert lines[0] == f"conv at {url}/restore (1 copy, micro-batches of 3)"
    assert any(f"udc-ray campaign --target {url}/restore --set model.header=" in line for line in lines)
    assert TOKEN not in " ".join(lines)
    with httpx.Client(trust_env=False) as http:
        assert http.get(f"{url}/healthz").json() == {"status": "ok"}
        info = http.get(f"{url}/info", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert (info["name"], info["channels"], info["random"], info["micro_batch"]) == ("conv", 3, False, 3)


def _check_answers(url: str) -> None:
    """Eight at once, of two sizes: each its own, with the bits of a padded micro-batch made here."""
    candidates = [*images(5, 3, 16, 12), *images(3, 3, 10, 10, seed=2)]
    here = Service(SERVED, Victim(restorer=restorer()))
    target = Endpoint(url=f"{url}/restore", format="npy", concurrency=8, header="Authorization=HEADER")
    with (
        Client(target, environment={"HEADER": f"Bearer {TOKEN}"}) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(client.send, candidates))
    for x, answer in zip(candidates, answers, strict=True):
        assert torch.equal(answer, here.answer([x])[0])
    as_png = target.model_copy(update={"format": "png"})
    with Client(as_png, environment={"HEADER": f"Bearer {TOKEN}"}) as client:
        reply = here.write(answers[0], 8)
        assert torch.equal(client.send(candidates[0]), formats.decode_image(reply.body, reply.media_type, (3, 16, 12)))


def _check_bad_requests(url: str) -> None:
    with Client(Endpoint(url=f"{url}/restore")) as client, pytest.raises(TargetError, match="401: .*token is missing"):
        client.send(X)
    bearer = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(trust_env=False, headers=bearer) as http:
        for path, content, status in (("/restore", b"hello", 400), ("/elsewhere", b"", 404)):
            reply = http.post(f"{url}{path}", content=content)
            assert reply.status_code == status and set(reply.json()) == {"error"}
        assert http.get(f"{url}/restore").status_code == 405
        too_long = http.post(f"{url}/restore", content=b"x" * (2**22 * 3 * 8 + formats.SLACK + 1))
        assert too_long.status_code == 413, too_long.text


def _check_only_loopback(processes: list[psutil.Process]) -> None:
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        if process.is_running()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3 and set(listening) == {"127.0.0.1"}


def test_the_token_goes_to_the_replicas_as_its_hash() -> None:
    from udc_ray_cli.serve import _token_hash

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", TOKEN)
        assert _token_hash("LAB_TOKEN") == hashlib.sha256(TOKEN.encode()).hexdigest()
    assert json.dumps(_token_hash(None)) == '""'
