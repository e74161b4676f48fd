"""Targets that count every call in a file, before they answer: one behind HTTP, and a model of our own.

As a program (``python counting_target.py FOLDER SECONDS``) it serves on loopback and prints its port. As a model
factory (``counting_target:make``) it counts the images of every batch in the folder that ``COUNTING_FOLDER`` names.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_VARIABLE, SECONDS_VARIABLE = "COUNTING_FOLDER", "COUNTING_SECONDS"
LINE = 65
"""Bytes of a line of the log: a SHA-256 in hexadecimal, and the end of the line."""


class Counter:
    """Two files that every call grows: a byte each, and the hash of what was asked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.counter, self.log = folder / "counter", folder / "log"

    @property
    def count(self) -> int:
        return self.counter.stat().st_size if self.counter.exists() else 0

    def hashes(self, first: int = 0) -> list[str]:
        """What was asked, from one call on."""
        with self.log.open("rb") as file:
            file.seek(first * LINE)
            return file.read().decode().split()

    def add(self, asked: bytes) -> None:
        """Count a call; on the files when it returns, whoever dies then."""
        for path, data in ((self.counter, b"."), (self.log, f"{hashlib.sha256(asked).hexdigest()}\n".encode())):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, data)
            os.close(descriptor)


class CountingTarget(Counter):
    """The program, started and ended; it lives on when those who ask it are killed.

    Args:
        folder: where it counts.
        seconds: how long it takes to answer.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__(folder)
        command = [sys.executable, __file__, str(folder), str(seconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def __enter__(self) -> CountingTarget:
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/restore"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Restorer:
    """A weak blur that counts the images it is given, and takes its time; slots that are padding count too."""

    def __init__(self) -> None:
        from udc_ray.models.base import Descriptor

        self.descriptor = Descriptor(name="counting", parameters=0, source="tests", licence="none", channels=3)
        self._counter = Counter(Path(os.environ[FOLDER_VARIABLE]))
        self._seconds = float(os.environ.get(SECONDS_VARIABLE, "0"))

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        from torch.nn.functional import avg_pool2d

        for x_CHW in x_BCHW.detach():
            self._counter.add(x_CHW.numpy().tobytes())
        time.sleep(self._seconds * len(x_BCHW))
        blurred: Tensor = avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        return blurred

    def to(self, device: str) -> Restorer:
        return self


make = Restorer


def blur(image_HWC: Any) -> Any:
    """What the target behind HTTP does to an image in [0, 1]."""
    padded = np.pad(image_HWC, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows, columns = image_HWC.shape[:2]
    shifted = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.mean(shifted, axis=0)


def _handler(counter: Counter, seconds: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            counter.add(body)
            time.sleep(seconds)
            answer = io.BytesIO()
            image = blur(np.asarray(Image.open(io.BytesIO(body)), np.float64) / 255)
            Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(answer, "PNG")
            self.send_response(200)
            self.send_header("content-type", "image/png")
            self.send_header("content-length", str(len(answer.getvalue())))
            self.end_headers()
            self.wfile.write(answer.getvalue())

    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed is what this is for."""


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), _handler(Counter(Path(sys.argv[1])), float(sys.argv[2])))
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
