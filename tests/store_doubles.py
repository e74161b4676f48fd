"""An S3 store on loopback (moto), which remembers what it was asked for."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

from udc_ray import location

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_numbers = itertools.count()


@dataclass
class Store:
    """One bucket of a store.

    Attributes:
        endpoint: ``127.0.0.1:port``.
        bucket: a bucket of this test alone.
        requests: (method, key) of everything that was asked of the bucket, in order.
        watch: called after each answer with the same.
    """

    endpoint: str
    bucket: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    watch: Callable[[str, str], None] = lambda method, key: None

    def __post_init__(self) -> None:
        self.filesystem, _ = fs.FileSystem.from_uri(f"s3://{self.bucket}?{self.query}&allow_bucket_creation=true")
        self.filesystem.create_dir(self.bucket)

    @property
    def query(self) -> str:
        """What a URI needs so that it leads here, whatever the environment says."""
        return f"endpoint_override={quote(self.endpoint, safe='')}&scheme=http&region=us-east-1"

    def uri(self, key: str = "", *, explicit: bool = False) -> str:
        """URI of a key; through the environment unless the endpoint shall be in it."""
        return f"s3://{self.bucket}/{quote(key)}".rstrip("/") + (f"?{self.query}" if explicit else "")

    def put(self, key: str, data: bytes) -> str:
        """Store an object; returns its URI."""
        with self.filesystem.open_output_stream(f"{self.bucket}/{key}") as stream:
            stream.write(data)
        return self.uri(key)

    def mirror(self, folder: Path, key: str) -> str:
        """Store all files of a folder below a key."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return self.uri(key)

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of all objects that are no folder markers."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.bucket, recursive=True))
        names = [i.path.removeprefix(f"{self.bucket}/") for i in found if i.type == fs.FileType.File]
        return sorted(n for n in names if n.startswith(prefix))

    def asked(self, method: str, part: str = "") -> list[str]:
        """Keys that were asked for by a method, where they hold a text."""
        return [key for m, key in self.requests if m == method and part in key]


@contextmanager
def running_store() -> Iterator[Store]:
    """A store in a thread, reached by AWS_ENDPOINT_URL or by `Store.uri` with ``explicit``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app, bucket, stores = DomainDispatcherApplication(create_backend_app), f"bucket-{next(_numbers)}", []

    def remember(environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        answer = app(environment, start)
        method, key = environment["REQUEST_METHOD"], environment["PATH_INFO"].removeprefix(f"/{bucket}").lstrip("/")
        for store in stores:
            store.requests.append((method, key))
            store.watch(method, key)
        return answer

    server = make_server("127.0.0.1", 0, remember, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        with mock.patch.dict(
            "os.environ", CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
        ):
            location._filesystem.cache_clear()
            store = Store(endpoint=f"127.0.0.1:{server.server_port}", bucket=bucket)
            stores.append(store)
            yield store
    finally:
        location._filesystem.cache_clear()
        server.shutdown()
        thread.join()
        server.server_close()
