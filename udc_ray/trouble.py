"""Errors that the user can mend but that nobody on the way made a `UserError` of."""

from __future__ import annotations

import errno
import sys

from udc_ray.errors import UdcRayError, UserError

_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space, or write to another disk"),
    errno.EDQUOT: ("the quota of this disk is used up", "free some space, or write to another disk"),
    errno.EROFS: ("the disk is read-only", "write elsewhere"),
    errno.EACCES: ("missing permission", "check who owns it, or give another path"),
    errno.EPERM: ("missing permission", "check who owns it, or give another path"),
    errno.ENOENT: ("a wrong path", "check the path"),
    errno.ENOTDIR: ("a file where a folder is wanted", "check the path"),
    errno.EISDIR: ("a folder where a file is wanted", "check the path"),
    errno.EMFILE: ("too many open files", "raise the limit with: ulimit -n 4096"),
}
_MEMORY = ("images or a micro-batch that are too large", "lower run.micro_batch, or crop with --set data.size=256")


def explain(error: BaseException) -> UserError | None:
    """What the user is told of an error; None where it is a defect, which deserves its traceback."""
    # Ray raises its own error with the one that a worker raised as `cause`; of a UserError it is a text.
    inner = getattr(error, "cause", None)
    if isinstance(inner, Exception):
        error = inner
    if isinstance(error, UserError):
        return error
    if isinstance(error, UdcRayError):
        return UserError(str(error))
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{error}", "an installation that is not complete", "install udc-ray again")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return UserError(f"out of memory: {_first_line(error)}", *_MEMORY)
    if isinstance(error, OSError):
        return _of_the_disk(error)
    if _is_validation(error):
        return UserError(_first_problem(error), "a value that cannot be", "see --help, or the README")
    if type(error).__module__.split(".")[0] == "ray":
        return UserError(
            f"Ray failed: {_first_line(error)}",
            "its hosts died or cannot be reached, often for want of memory",
            "give the command again; with --in-process it runs without Ray",
        )
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _of_the_disk(error: OSError) -> UserError:
    unknown = ("the disk, the file or the network refuses", "check the path, its permissions and the space left")
    cause, change = _DISK.get(error.errno or 0, unknown)
    where = f"{error.filename}: " if error.filename is not None else ""
    return UserError(f"{where}{error.strerror or _first_line(error)}", cause, change)


def _is_validation(error: BaseException) -> bool:
    pydantic = sys.modules.get("pydantic")  # where it was never loaded, it has raised nothing
    return pydantic is not None and isinstance(error, pydantic.ValidationError)


def _first_problem(error: BaseException) -> str:
    """Name, problem and value of the first field that pydantic refuses."""
    first = error.errors()[0]  # type: ignore[attr-defined]  # a ValidationError has it
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given: {first['input']!r})"
