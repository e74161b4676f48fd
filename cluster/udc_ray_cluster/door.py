"""The door to a cluster's jobs: Ray's own client, with time limits and messages that help."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from udc_ray.errors import UserError
from udc_ray_cluster.tokens import no_entry

T = TypeVar("T")

ANSWER_SECONDS = 20.0
"""A head that has not answered a request for so long is taken for unreachable."""
UPLOAD_SECONDS = 600.0
_CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers of Ray that tell of every upload and connection on our console; two set a level of their own."""
_AWAY = (500, 502, 503, 504)
OURS = "udc-"
"""Begin of the submission ids of our jobs."""


class Unreachable(UserError):
    """The head does not answer now; it may again."""

    def __init__(self, reason: str, cause: str = "", change: str = "") -> None:
        super().__init__(reason, cause or "a head that is busy or lost, or the network to it", change or "try again")


class _Client(JobSubmissionClient):  # type: ignore[misc]  # ray is not typed here
    """Ray's client waits for ever where the network swallows packets; this one does not."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", UPLOAD_SECONDS if method == "PUT" else ANSWER_SECONDS)
        return super()._do_request(method, endpoint, **kwargs)


class Door:
    """Jobs of one cluster.

    Args:
        address: ``http://HEAD:8265`` or https.

    Raises:
        UserError: no Ray head answers there, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        for logger in _CHATTY:
            logging.getLogger(logger).setLevel(logging.ERROR)
        try:
            self._client: Any = _call(lambda: _Client(address))
        except Unreachable as error:
            raise UserError(
                f"no Ray head answers at {address}: {error.what}",
                "a wrong address or port, a head that is not up, or a firewall between",
                "give --address http://HEAD:8265, its dashboard; through a tunnel: ssh -L 8265:localhost:8265",
            ) from error

    def versions(self) -> dict[str, str]:
        """What the head says of itself: its Ray version."""
        answer: dict[str, str] = _call(lambda: self._client._do_request("GET", "/api/version").json())
        return {"ray": answer.get("ray_version", "unknown")}

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes, as Ray's state API describes them."""
        answer = _call(lambda: self._client._do_request("GET", "/api/v0/nodes?limit=10000").json())
        rows: list[dict[str, Any]] = ((answer.get("data") or {}).get("result") or {}).get("result") or []
        return [row for row in rows if row.get("state") == "ALIVE"]

    def submit(self, submission_id: str, entrypoint: str, **what: Any) -> bool:
        """Submit a job; False where a job of that id is there already.

        Args:
            submission_id: an id that this cluster has never had.
            entrypoint: command line of the driver.
            what: more of Ray's `submit_job`: runtime_env, metadata, where the driver goes.
        """
        try:
            _call(lambda: self._client.submit_job(entrypoint=entrypoint, submission_id=submission_id, **what))
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            raise _refused(error, self.address) from error
        return True

    def jobs(self, prefix: str = OURS) -> list[JobDetails]:
        """Jobs whose submission id begins so, oldest first."""
        found = [job for job in _call(self._client.list_jobs) if (job.submission_id or "").startswith(prefix)]
        return sorted(found, key=lambda job: job.start_time or 0)

    def job(self, submission_id: str) -> JobDetails | None:
        """One job; None where the cluster does not know it (a head that was started anew forgets)."""
        try:
            return _call(lambda: self._client.get_job_info(submission_id))
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return None
            raise Unreachable(_first_line(error)) from error

    def stop(self, submission_id: str) -> bool:
        """Ask a job to drain; False where it has ended already."""
        stopped: bool = _call(lambda: self._client.stop_job(submission_id))
        return stopped

    def log(self, submission_id: str) -> str:
        """The log so far."""
        text: str = _call(lambda: self._client.get_job_logs(submission_id))
        return text

    async def tail(self, submission_id: str, silence: float) -> AsyncIterator[str]:
        """The log from its start, in pieces, until the job ends.

        Args:
            submission_id: the job.
            silence: seconds without a piece after which the connection is taken for lost.

        Raises:
            Unreachable: the connection is lost.
        """
        pieces = self._client.tail_job_logs(submission_id)
        while True:
            try:
                yield await asyncio.wait_for(anext(pieces), silence)
            except StopAsyncIteration:
                return
            except (TimeoutError, RuntimeError, aiohttp.ClientError, OSError) as error:
                raise Unreachable(_first_line(error)) from error


def is_over(job: JobDetails) -> bool:
    """Whether a job has ended, in whatever way."""
    return job.status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


def _call(request: Callable[[], T]) -> T:
    """Send a request; whatever says that the head is away becomes `Unreachable`."""
    try:
        return request()
    except AuthenticationError as error:
        raise no_entry(error) from error
    except (requests.RequestException, ConnectionError, OSError) as error:
        raise Unreachable(_first_line(error)) from error
    except RuntimeError as error:
        if any(f"status code {code}" in str(error) for code in (500, 502, 503, 504)) and "already exists" not in str(
            error
        ):
            raise Unreachable(_first_line(error)) from error
        raise


def _refused(error: RuntimeError, address: str) -> UserError:
    return UserError(
        f"the cluster at {address} refuses the job: {_first_line(error)}",
        "Ray could not take its files or its environment",
        "see `ray job list`, and the dashboard's log of the head",
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
