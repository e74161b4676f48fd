"""What can become of one attempt to ask a metered target.

AttemptFailure           another attempt may help
+-- Refused              the target would not evaluate it now (429, 503)
+-- LostAnswer           it was sent and may have been evaluated, but no usable answer came back
+-- NotSent              nothing reached the target
TargetError (UserError)  no further attempt helps
+-- TargetDrift          the target is no longer the model that it was
"""

from __future__ import annotations

from udc_ray.errors import UdcRayError, UserError

RESUME = "the run keeps what was answered; `--resume RUN` goes on from there"


class AttemptFailure(UdcRayError):
    """One attempt failed; whoever asks decides whether to try again."""


class Refused(AttemptFailure):
    """The target answered that it takes no request now.

    Args:
        retry_after_s: seconds that it wants to be left alone, or None where it did not say.
    """

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return "refused" if self.retry_after_s is None else f"refused; it asks to wait {self.retry_after_s} s"


class LostAnswer(AttemptFailure):
    """It was sent, at least in part, so the target may have evaluated it: it counts as spent."""


class NotSent(AttemptFailure):
    """No connection came about, so nothing was evaluated."""


class TargetError(UserError):
    """The target cannot be used as it is described."""

    ends_run = True


class TargetDrift(TargetError):
    """The target answers the clean images differently from before."""
