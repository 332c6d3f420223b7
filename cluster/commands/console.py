"""A run's console without the run: `python -m cluster.commands.console RUN [--host …] [--port …]`.

It shows what is on disk: curves, trained groups, the recipe. A run that is under way serves its own, with what is in
Redis too. Exit codes: 0 ended by Ctrl-C · 2 no such run, or the address is not this machine's.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands import app
from cluster.config import ConsoleSection
from cluster.observability.console.server import Console
from cluster.observability.console.source import Source


def main(
    run: app.RunName,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Anything but a loopback address demands a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="Or the next free one.", min=1, max=65535)] = 8266,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also answer under this name; may be repeated.")
    ] = None,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Serve the console of a run that has ended, until Ctrl-C.

    Exit codes: 0 ended by Ctrl-C · 2 no such run, or the address is not this machine's.
    """
    with app.exit_codes():
        found = app.find_run(run, directory)
        section = ConsoleSection(host=host, port=port, allowed_hosts=tuple(allowed_host or ()))
        console = Console(Source(found), section)
    if as_json:
        app.print_json({"run": found.name, "console": console.address})
    else:
        print(f"console of {found}: {console.address}", flush=True)
    try:
        console.wait()
    except KeyboardInterrupt:
        console.close()


if __name__ == "__main__":
    app.start(main)
