"""The errors of Kanabo: what, where, with which values, and what to do.

A `ConfigError` (a ValueError) blames the recipe or what it names and ends the program with 2 before anything runs.
Everything else is a `KanaboError`: infrastructure or data, each with a budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class KanaboError(Exception):
    """Root of what Kanabo raises on purpose."""


class ConfigError(KanaboError, ValueError):
    """The recipe, or what it names, cannot run."""


class InfrastructureError(KanaboError):
    """A process, a machine or a connection is gone; the same call may succeed elsewhere or later."""


class BufferUnavailable(InfrastructureError):
    """Redis does not answer."""


class StaleEpoch(KanaboError):
    """A call of a learner or engine whose epoch has ended; it must not be repeated."""


class LeaseLost(KanaboError):
    """The claim's lease expired: its group was dropped and its task is claimed again."""


class DataError(KanaboError):
    """A task, an environment or a plug-in failed on one group; retried little, then dropped with a count."""


class PluginError(KanaboError):
    """A plug-in of the learner's broke its contract; it is deterministic, so nothing is tried again."""


class StartFailed(KanaboError):
    """An actor could not be made, which is deterministic too."""


class Diverged(KanaboError):
    """Several gradients in a row were not finite."""


class Stalled(KanaboError):
    """No progress within the deadline."""


class BudgetSpent(KanaboError):
    """More failures than the recipe allows."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"Did you mean 'majority'? "`, or nothing."""
    # Of a short name two letters that changed places are half.
    close = get_close_matches(name, list(known), n=1, cutoff=0.6 if len(name) > 4 else 0.5)
    return f"Did you mean '{close[0]}'? " if close else ""


def one_line(error: BaseException) -> str:
    """The first line of what others say, as a sentence."""
    try:
        said = str(error).encode("utf-8", "backslashreplace").decode()
    except BaseException as second:  # a plug-in's error may have a message of its own making
        said = f"(its message cannot be read: {type(second).__name__})"
    first = (said.splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {first}."


def located(error: BaseException) -> str:
    """Return class, first line of the message and source line of an error that foreign code raised, as a sentence."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace is not None else ""
    try:
        return f"{one_line(error)[:-1]}{where}."
    except Exception:  # its class is foreign code too
        return f"{type(error).__name__}{where}."


@contextmanager
def calling(where: str) -> Iterator[None]:
    """Turn whatever the plug-in at `where` raises, SystemExit included, into a PluginError that names it.

    Errors of Kanabo's own pass, and so do those of memory: a smaller batch may cure them.
    """
    try:
        yield
    except (KanaboError, MemoryError):
        raise
    except BaseException as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise PluginError(f"{where} raised {one_line(error)} Fix the plug-in, or leave it out.") from error
