"""Ray's token authentication, in one message."""

from __future__ import annotations

from udc_ray.errors import UserError

HOW_TO_SET = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN=... or RAY_AUTH_TOKEN_PATH=FILE (or put the token into "
    "~/.ray/auth_token); on the head, `ray get-auth-token` prints it"
)


def no_entry(error: Exception) -> UserError:
    """What a client is told that the cluster does not let in.

    Args:
        error: Ray's own `AuthenticationError`.
    """
    missing = any(words in str(error) for words in ("Authentication required", "no authentication token"))
    return UserError(
        f"the cluster refuses: {'no token was sent' if missing else 'the token is wrong'}",
        "Ray clusters ask their clients for the token that the head was started with"
        if missing
        else "it is the token of another cluster, or an old one",
        HOW_TO_SET,
    )
