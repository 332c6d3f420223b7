"""A picture of a run's time: `python -m cluster.commands.trace RUN [--out FILE] [--last SECONDS]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import app
from cluster.errors import ConfigError
from cluster.observability import trace


def main(
    run: app.RunName,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it.", show_default="RUN/trace.json")
    ] = None,
    last: Annotated[
        float | None, typer.Option("--last", metavar="SECONDS", min=0, help="Only the run's last so many seconds.")
    ] = None,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Write what every worker of a run did and when, as a file that https://ui.perfetto.dev opens.

    The run may be live. Each worker is a process of the picture: groups with their sampling and put, scores, weights,
    the learner's steps with their stages, and waits.

    Exit codes: 0 written · 2 no such run, nothing noted, or FILE cannot be written.
    """
    with app.exit_codes():
        place = app.find_run(run, directory)
        spans = list(trace.read(place))
        if not spans:
            raise ConfigError(
                f"run '{place.name}' has noted no span: it has not begun to sample, or tracking.trace = false."
            )
        target = (out or place / "trace.json").absolute()
        try:
            target.write_text(json.dumps(trace.chrome_trace(spans, last)), "utf-8")
        except OSError as error:
            raise ConfigError(f"--out {target} cannot be written: {error}.") from error
    workers = len({worker for worker, _ in spans})
    if as_json:
        app.print_json({"path": target, "workers": workers, "spans": len(spans)})
    else:
        print(f"{len(spans):,} spans of {workers} workers in {target}. Open it at https://ui.perfetto.dev.")


if __name__ == "__main__":
    app.start(main)
