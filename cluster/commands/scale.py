"""More or fewer workers of a running job: `python -m cluster.commands.scale RUN rollout=+2 reward=1`.

Exit codes: 0 wished, and with --wait done · 1 Redis does not answer, or it took too long · 2 no such run or role.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated

import typer

from cluster.buffer import ReplicaCounts
from cluster.buffer.scaling import apply
from cluster.commands import app
from cluster.commands.run_lookup import live_url, run_id
from cluster.config import RunConfig
from cluster.errors import ConfigError, KanaboError
from cluster.placement.resources import roles


def main(
    run: app.RunName,
    wishes: Annotated[list[str], typer.Argument(metavar="ROLE=N", help="rollout=4, reward=-1, judge:NAME=+1 …")],
    wait_s: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Until they are there, or gone.")] = 0.0,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Let workers join or leave a running job.

    A joining engine has the newest weights before its first claim; a leaving one finishes what it has in hand. The wish
    is kept with the run: it also holds after a restart.

    Exit codes: 0 wished, and with --wait done · 1 Redis does not answer, or it took too long · 2 no such run or role.
    """
    with app.exit_codes():
        found = app.find_run(run, directory)
        url = live_url(found)
        if url is None:
            raise ConfigError(f"run '{found.name}' is not running: nothing answers for it. Start it first.")
        wishes_of_run = ReplicaCounts(url, run_id(found))
        numbers = apply(wishes_of_run, wishes)
        if wait_s:
            wait(wishes_of_run, numbers, wait_s)
        wishes_of_run.close()
    if as_json:
        app.print_json(numbers)
    else:
        print(", ".join(f"{role}: {count}" for role, count in numbers.items()))


def former(run: ReplicaCounts, settings: RunConfig, before: RunConfig | None) -> list[str]:
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


def wait(run: ReplicaCounts, numbers: dict[str, int], wait_s: float) -> None:
    """Wait until the requested numbers are up. Raises KanaboError that says what is still coming."""
    until = time.monotonic() + wait_s
    with app.progress("waiting for the workers"):
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
    app.start(main)
