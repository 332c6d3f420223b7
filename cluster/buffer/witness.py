"""A process beside a rollout worker: it names the group whose environment holds the worker's interpreter, and ends it.

A regular expression or C code that never returns holds the interpreter lock: no thread of the worker can give its group
up, and no call to the worker is answered. This process reads the worker's marks (`cluster.process.marks`), fails the
group in the buffer, says that its death is explained, and kills the worker, whose place another one takes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cluster.buffer.client import Buffer
from cluster.errors import KanaboError, LeaseLost
from cluster.process import marks
from cluster.types import Claim, decode
from cluster.types.events import RolloutReport

log = logging.getLogger(__name__)

LOOK_S = 0.25
BUSY_S = 0.05
"""The thread that holds the interpreter lock uses more processor time than this while the interpreter stands still."""
PATIENCE_S = 5.0


class Witness:
    """Watches one worker, a process on this machine, by the file of its marks."""

    def __init__(self, file: Path, pid: int, worker: str, buffer: Buffer, limit_s: float) -> None:
        """The worker may stand still for `limit_s`; time in which its process is stopped does not count."""
        self._file, self._pid, self._worker = file, pid, worker
        self._buffer, self._limit_s = buffer, limit_s

    def watch(self) -> None:
        """Return once the worker's process has ended."""
        count, held_s, begun = -1, 0.0, time.monotonic()
        used: dict[int, float] = {}
        while (state := _state(self._pid)) is not None:
            passed, begun = time.monotonic() - begun, time.monotonic()
            before = count
            count, running = self._read(count)
            if count != before or not running or state == "T":
                held_s, used = 0.0, {}
            else:
                held_s += min(passed, 2 * LOOK_S)
                used |= {thread: _used_s(self._pid, thread) for thread in running.keys() - used.keys()}
            if held_s > self._limit_s:
                self._end(_holders(self._pid, running, used), held_s)
                return
            time.sleep(LOOK_S)
        with suppress(KanaboError):  # the run has ended too
            for claim in _claims(self._read(count)[1].values()):
                self._buffer.died_over(claim)

    def _read(self, count: int) -> tuple[int, dict[int, bytes]]:
        try:
            return marks.read(self._file)
        except FileNotFoundError:  # the worker removes its file when it ends
            return count, {}

    def _end(self, running: Mapping[int, bytes], held_s: float) -> None:
        """Fail the groups whose steps hold the worker, and kill it."""
        why = (
            f"the environment held the interpreter lock of {self._worker} for {held_s:.0f} s (a regular expression or "
            "C code that never returns), so the worker was ended. Run such code in a process of its own"
        )
        log.error("%s.", why)
        claims = _claims(running.values())
        try:
            for claim in claims:
                with suppress(LeaseLost):
                    self._buffer.give_up(claim, "data_failure", requeue=False)
                    self._buffer.emit(_failed(self._worker, f"group {claim.id} dropped: {why}."))
            if claims:
                self._buffer.forsake(claims[0].policy, self._worker)  # this death is explained
        except KanaboError as error:
            log.error("%s: its group was not failed: %s", self._worker, error)
        finally:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def _claims(found: Iterable[bytes]) -> list[Claim]:
    """Return the claims among marks: an evaluation's episode has none, nor has a constructor."""
    claims = []
    for mark in found:
        with suppress(msgspec.ValidationError, msgspec.DecodeError):
            claims.append(decode(mark, Claim))
    return list(dict.fromkeys(claims))


def _failed(worker: str, why: str) -> RolloutReport:
    return RolloutReport(worker=worker, claims=False, data_failures=1, last_failure=why)


def _holders(pid: int, running: Mapping[int, bytes], before: Mapping[int, float]) -> Mapping[int, bytes]:
    """Return the marks of the threads that compute; of all where none does, as code that sleeps with the lock."""
    busy = {t: mark for t, mark in running.items() if _used_s(pid, t) - before[t] > BUSY_S}
    return busy or running


def _state(pid: int) -> str | None:
    """Return the letter of a process' state, None where it has ended."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if letter in "ZX" else letter


def _used_s(pid: int, thread: int) -> float:
    """Return the processor time that a thread has used."""
    try:
        fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(file: Path, worker: str, buffer: Buffer, limit_s: float) -> None:
    """Start a witness of this process; it ends with it."""
    url, run, _ = buffer.__reduce__()[1]
    setup = {
        "file": str(file), "pid": os.getpid(), "worker": worker, "url": url, "run": run, "limit_s": limit_s,
    }  # fmt: skip
    command = [sys.executable, "-c", "from cluster.buffer.witness import main; main()"]
    # Through standard input: the URL holds a password, and a command line is public.
    importable = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    orphan = [sys.executable, "-S", "-c", _ORPHAN, *command]
    subprocess.run(orphan, input=json.dumps(setup).encode(), env=importable, check=True)


_ORPHAN = """
import os, sys
line = sys.stdin.buffer.readline()
if os.fork():
    os._exit(0)
os.setsid()
inner, outer = os.pipe()
os.write(outer, line + b"\\n")
os.close(outer)
os.dup2(inner, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Ray kills the children of a worker, not those of init, and so does the worker's own process group."""


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    setup = json.loads(sys.stdin.readline())
    buffer = Buffer(setup["url"], setup["run"], PATIENCE_S)
    Witness(Path(setup["file"]), setup["pid"], setup["worker"], buffer, setup["limit_s"]).watch()
