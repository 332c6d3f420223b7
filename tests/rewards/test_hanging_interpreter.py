"""A reward that holds the interpreter lock lets no thread of its worker run: a timer in C ends the process."""

import subprocess
import sys
import textwrap
import time

import pytest

from tests.end_to_end.jobs import ROOT

WORKER = """
import asyncio, re, sys
import rewards.worker
from rewards.worker import RewardWorker
from tests.rewards.groups import group
from tests.rewards.test_worker import MemoryBuffer, config

rewards.worker.MIN_HANG_S = rewards.worker.HANG_SHARE = 0.02

def {name}(completion):
    {code}
    return 1.0

sys.modules["hangs"] = sys.modules["__main__"]
settings = config({{"use": "hangs:{name}"}})
asyncio.run(RewardWorker("reward-0", buffer=MemoryBuffer([group("85")]), config=settings).run())
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("backtracks", r're.match(r"(a+)+$", "a" * 60 + "b")'),
        ("counts", "sum(range(10**14))"),
        ("multiplies", "str(3 ** (10 ** 9))"),
    ],
)
def test_a_reward_that_holds_the_interpreter_ends_its_worker_in_time_and_says_where(name, code):
    begun = time.monotonic()
    script = textwrap.dedent(WORKER).format(name=name, code=code)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"in {name}" in done.stderr, done.stderr
    assert time.monotonic() - begun < 40
