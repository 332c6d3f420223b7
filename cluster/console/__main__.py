"""A run's console without the run: `python -m cluster.console RUN_DIR [--host …] [--port …]`.

It shows what is on disk: curves, trained groups, the recipe. A run that is under way serves its own, with what is in
Redis too. Exit code 2: there is no run in that directory, or the address is not this machine's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster import table
from cluster.config import ConsoleSection
from cluster.console.server import Console
from cluster.console.source import Source
from cluster.errors import ConfigError


def main(
    run: Annotated[Path, typer.Argument(help="A run's directory, e.g. runs/quickstart.")],
    host: Annotated[str, typer.Option(help="Anything but a loopback address demands a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Or the next free one.", min=1, max=65535)] = 8266,
) -> None:
    """Serve the console of a finished run until Ctrl-C."""
    try:
        console = Console(Source(run.absolute()), ConsoleSection(host=host, port=port))
    except ConfigError as error:
        table.console.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    table.console.print(f"console of {run}: {console.address}", highlight=False, soft_wrap=True)
    try:
        console.wait()
    except KeyboardInterrupt:
        console.close()


if __name__ == "__main__":
    typer.run(main)
