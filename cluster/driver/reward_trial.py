"""The trial of a reward of the user's own in a process of its own.

A reward may end its process, crash it, or never let go of the interpreter: that must not be the command's process,
which has to say so.

    preflight                          this process
    recipe, reward, group ───────────► builds the reward, says that it is ready
    waits for imports, then    ◄────── asks the reward, says why it failed, or nothing
    for the reward's time-out
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from cluster import config
from cluster.config import RewardSection, RunConfig
from cluster.errors import ConfigError
from cluster.types import FAILED, Group, decode, encode
from rewards.asking import ask, is_own
from rewards.base import Reward, Services
from rewards.function_reward import FunctionReward
from rewards.registry import build_reward

BLOCKED_S = 5.0
"""A reward that is cut off and holds the event loop is given up after so much longer than its time-out."""
HELD_S = 5.0
"""One that also holds the interpreter lock is ended after so much longer again."""
IMPORTS_S = 300.0


def try_apart(settings: RunConfig, number: int, group: Group) -> str:
    """Why reward `number` of the recipe fails on the group, asked in a process of its own; nothing if it does not."""
    data = base64.b64encode(encode(group)).decode()
    setup = json.dumps({"recipe": config.tree_of(settings), "number": number, "group": data})
    importable = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=importable, start_new_session=True
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(setup.encode())
            process.stdin.close()
        said = bytearray()
        if not _hear(process, said, 1, IMPORTS_S):
            return _end_of(process, f"its imports took over {IMPORTS_S:g} s.")
        timeout_s = settings.rewards[number].timeout_s
        if _hear(process, said, 2, timeout_s + BLOCKED_S + HELD_S):
            return json.loads(said.splitlines()[1])
        held = f"no answer within {timeout_s:g} s: it holds the interpreter lock (a regular expression or C code)."
        return _end_of(process, held)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _hear(process: subprocess.Popen[bytes], said: bytearray, lines: int, timeout_s: float) -> bool:
    """Add what the process says to `said` until that has so many lines; whether it has before the time is up."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    while said.count(b"\n") < lines:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            return False
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return False
        said += part
    return True


def _end_of(process: subprocess.Popen[bytes], alive: str) -> str:
    """What became of a process that has not answered: `alive` if it is there."""
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(1.0)
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return f"it ended its process with {how}. A reward returns, or raises."
    return alive


def main() -> None:
    """Try the reward that standard input names. Whatever it prints goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    setup = json.load(sys.stdin)
    settings, number = config.parse(setup["recipe"]), setup["number"]
    group = decode(base64.b64decode(setup["group"]), Group)

    reward = build_reward(settings.rewards[number], f"rewards[{number}]")
    os.write(answers, b"ready\n")
    failure = try_here(reward, settings.rewards[number], group, settings.reward_names[number])
    os.write(answers, json.dumps(failure).encode() + b"\n")
    os._exit(0)  # what it has left behind is not waited for


def try_here(reward: Reward, section: RewardSection, group: Group, name: str) -> str:
    """Why the reward fails on the whole group; nothing if it does not."""
    answer: list[str] = []
    prepared = threading.Event()

    def asked() -> None:
        answer.append(asyncio.run(_failure(reward, section, group, name, prepared)))

    # In a thread: an async reward that blocks would hold the command for ever.
    thread = threading.Thread(target=asked, daemon=True, name=f"trial of {name}")
    thread.start()
    prepared.wait(IMPORTS_S)
    thread.join(section.timeout_s + BLOCKED_S)
    return answer[0] if answer else f"no answer within {section.timeout_s:g} s: it blocks the event loop"


async def _failure(reward: Reward, section: RewardSection, group: Group, name: str, prepared: threading.Event) -> str:
    services = Services(threads=2)
    try:
        try:
            await reward.prepare(services)
        finally:
            prepared.set()
        scores, note = await ask(reward, group, services, section.timeout_s, name)
    except ConfigError as error:
        return str(error)
    finally:
        services.close()
    if note or not is_foreign(reward) or not (scores.state == FAILED).all():
        return note  # ours may fail where no environment has played
    return next((p.note for p in scores.provenance if p.note), "every score is failed")


def is_foreign(reward: Reward) -> bool:
    """Whether a user's own code scores."""
    return isinstance(reward, FunctionReward) or not is_own(reward)
