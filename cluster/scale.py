"""More or fewer workers of a running job: `python -m cluster.scale RUN rollout=+2 reward=1`.

Exit codes: 0 wished, and with --wait done · 1 Redis does not answer, or it took too long · 2 no such run or role.
"""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from cluster import cli
from cluster.buffer import Wishes
from cluster.errors import ConfigError, KanaboError
from cluster.reach import live_url, run_id

ROLES = ("rollout", "reward")
"""Of every run; one with judges or scorers of its own has `judge:NAME` or `scorer:NAME` too."""


def main(
    run: cli.RunName,
    wishes: Annotated[list[str], typer.Argument(metavar="ROLE=N", help="rollout=4, reward=-1, judge:NAME=+1 …")],
    wait_s: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Until they are there, or gone.")] = 0.0,
    directory: cli.RunsDir = None,
    as_json: cli.AsJson = False,
) -> None:
    """Let workers join or leave a running job.

    A joining engine has the newest weights before its first claim; a leaving one finishes what it has in hand. The wish
    is kept with the run: it also holds after a restart.

    Exit codes: 0 wished, and with --wait done · 1 Redis does not answer, or it took too long · 2 no such run or role.
    """
    with cli.exit_codes():
        found = cli.find_run(run, directory)
        url = live_url(found)
        if url is None:
            raise ConfigError(f"run '{found.name}' is not running: nothing answers for it. Start it first.")
        wishes_of_run = Wishes(url, run_id(found))
        numbers = apply(wishes_of_run, wishes)
        if wait_s:
            _wait(wishes_of_run, numbers, wait_s)
        wishes_of_run.close()
    if as_json:
        cli.print_json(numbers)
    else:
        print(", ".join(f"{role}: {count}" for role, count in numbers.items()))


def apply(run: Wishes, wishes: list[str]) -> dict[str, int]:
    """Wish for what `role=N`, `role=+N` and `role=-N` say; the numbers that came out. Raises ConfigError."""
    there, numbers = run.staffed(), {}
    roles = sorted({*ROLES, *there})
    for wish in wishes:
        match = re.fullmatch(r"([^=]+)=([+-]?)(\d+)", wish)
        if match is None or match[1] not in roles:
            raise ConfigError(
                f"'{wish}' is no wish. Roles: {', '.join(roles)}; say rollout=4, rollout=+1 or rollout=-1."
            )
        role, sign, count = match[1], match[2], int(match[3])
        before = numbers.get(role, run.wished().get(role, there.get(role, 0)))
        wanted = before + count if sign == "+" else before - count if sign == "-" else count
        if wanted < 1:
            raise ConfigError(f"'{wish}' would leave {wanted} {role} workers; at least one must stay.")
        numbers[role] = wanted
    for role, count in numbers.items():
        run.wish(role, count)
    return numbers


def _wait(run: Wishes, numbers: dict[str, int], wait_s: float) -> None:
    until = time.monotonic() + wait_s
    with cli.progress("waiting for them"):
        while (there := {r: n for r, n in run.staffed().items() if r in numbers}) != numbers:
            if time.monotonic() > until:
                raise KanaboError(f"after {wait_s:g} s there are {there} workers, wished for were {numbers}.")
            time.sleep(0.2)


if __name__ == "__main__":
    cli.start(main)
