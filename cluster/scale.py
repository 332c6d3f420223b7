"""More or fewer workers of a running job: `python -m cluster.scale RUN rollout=+2 reward=1`.

Exit codes: 0 wished, and with --wait done · 1 Redis does not answer, or it took too long · 2 no such run or role.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Annotated

import typer

from cluster import cli
from cluster.buffer import Wishes
from cluster.config import RunConfig
from cluster.errors import ConfigError, KanaboError
from cluster.reach import live_url, run_id
from cluster.room import roles

ROLES = ("rollout", "reward")
"""Of every run; one with judges or scorers of its own has `judge:NAME` or `scorer:NAME` too."""
MAX_WORKERS = 10_000
"""Of a role. More is a slip of the finger."""


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
            wait(wishes_of_run, numbers, wait_s)
        wishes_of_run.close()
    if as_json:
        cli.print_json(numbers)
    else:
        print(", ".join(f"{role}: {count}" for role, count in numbers.items()))


def apply(run: Wishes, wishes: list[str]) -> dict[str, int]:
    """Wish for what `role=N`, `role=+N` and `role=-N` say; the numbers that came out. Raises ConfigError."""
    there, numbers = run.staffed(), {}
    known = sorted({*ROLES, *there})
    for wish in wishes:
        match = re.fullmatch(r"([^=]+)=([+-]?)(\d{1,18})", wish)
        if match is None or match[1] not in known:
            raise ConfigError(
                f"Invalid argument '{wish}': expected ROLE=N, ROLE=+N or ROLE=-N, for example rollout=4. Roles: "
                f"{', '.join(known)}."
            )
        role, sign, count = match[1], match[2], int(match[3])
        before = numbers.get(role, run.wished().get(role, there.get(role, 0)))
        wanted = before + count if sign == "+" else before - count if sign == "-" else count
        if wanted < 1:
            raise ConfigError(f"'{wish}' would leave {wanted} {role} workers; at least one must stay.")
        if wanted > MAX_WORKERS:
            raise ConfigError(f"'{wish}' asks for more than {MAX_WORKERS:,} {role} workers.")
        numbers[role] = wanted
    for role, count in numbers.items():
        run.wish(role, count)
    return numbers


def former(run: Wishes, settings: RunConfig, before: RunConfig | None) -> list[str]:
    """What an earlier life of the run was scaled to, in sentences: applied again unless the recipe changed since.

    `before` is the recipe of that life. A number that the recipe changes since then takes the request's place.
    """
    now, then, said = roles(settings), roles(before) if before else {}, []
    for role, count in sorted(run.wished().items()):
        if role not in now or count == now[role]:
            run.forget(role)
        elif then.get(role, now[role]) != now[role]:
            run.forget(role)
            said.append(
                f"{role}={count} was requested in an earlier life of this run, and the recipe changes the number from "
                f"{then[role]} to {now[role]} since: {role}={now[role]} holds."
            )
        else:
            said.append(
                f"{role}={count} was requested in an earlier life of this run and is applied again (the recipe says "
                f"{now[role]}). `kanabo scale {settings.run.name} {role}={now[role]}` takes it back."
            )
    return said


def wait(run: Wishes, numbers: dict[str, int], wait_s: float) -> None:
    """Wait until the requested numbers are up. Raises KanaboError that says what is still coming."""
    until = time.monotonic() + wait_s
    with cli.progress("waiting for the workers"):
        while missing := coming(numbers, run.staffed()):
            if time.monotonic() > until:
                raise KanaboError(
                    f"after {wait_s:g} s {missing}.{each(numbers, run.moving())} The request stays, and the run goes "
                    "on with it. `kanabo scale` takes it back."
                )
            time.sleep(0.2)


def coming(wanted: dict[str, int], up: dict[str, int]) -> str:
    """Which workers are still to join or to leave, in words; empty once the numbers are as requested."""
    parts = []
    for role, count in wanted.items():
        missing = count - up.get(role, 0)
        if missing:
            what = "still to come" if missing > 0 else "still to leave"
            parts.append(f"{role}: {abs(missing)} {what} ({up.get(role, 0)} up, {count} requested)")
    return "; ".join(parts)


def each(roles: Iterable[str], moving: Mapping[str, str]) -> str:
    """What each worker of these roles that is still to join or to leave waits for, in sentences."""
    return "".join(f" {name} {said}." for name, said in sorted(moving.items()) if name.rpartition("-")[0] in roles)


if __name__ == "__main__":
    cli.start(main)
