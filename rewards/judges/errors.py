"""What can go wrong between a question to a judge and a score. None of these ever becomes a number."""

from __future__ import annotations

from cluster.errors import DataError, InfrastructureError


class JudgeError(InfrastructureError):
    """A judge gave no answer. Its score is unknown."""

    retry = True
    """May the same request succeed on another replica, or later?"""
    blames_replica = True
    """Does it count towards opening the replica's circuit?"""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, said: str = "") -> None:
        """`said`: the server's own words in full, for reading and not for messages."""
        super().__init__(message)
        self.retry_after_s, self.said = retry_after_s, said


class JudgeUnreachable(JudgeError):
    """The connection broke in the middle of an answer, or the address is none."""


class JudgeAbsent(JudgeUnreachable):
    """No connection to the judge was made. Asking again costs nothing, and counts as no attempt."""


class JudgeTimeout(JudgeError):
    """No answer in time."""


class JudgeUnauthorised(JudgeError):
    """401 or 403: the key is missing or wrong."""

    retry = False


class JudgeBusy(JudgeError):
    """429: too many requests."""

    blames_replica = False  # it works; it is asked to wait


class JudgeServerError(JudgeError):
    """5xx."""


class JudgeRejected(JudgeError):
    """Another 4xx: the request itself is not accepted, and will not be elsewhere."""

    retry = False
    blames_replica = False

    def __init__(self, message: str, *, status: int = 0, said: str = "") -> None:
        """`status`: of the HTTP answer, 0 where there was none."""
        super().__init__(message, said=said)
        self.status = status


class JudgeAnswerTooLong(JudgeError):
    """An answer of more bytes than are read."""

    retry = False


class JudgeProtocolError(JudgeError):
    """An answer that is not what a chat completion looks like."""


class JudgeOverflow(JudgeError):
    """The queue is full: this request was refused, or pushed out by a newer one."""

    retry = False


class JudgeUnavailable(JudgeError):
    """No replica could be asked in time: none is up, or the circuit of every one is open."""

    retry = False


class Unreadable(DataError):
    """An answer that holds no verdict, or more than one."""


class Declined(DataError):
    """The judge says that it cannot judge this."""
