"""The installed command `kanabo`, and what its subcommands share.

Every subcommand is also `python -m cluster.NAME`. `--json` prints one JSON document on stdout; errors and progress go
to stderr. Exit codes, unless a command says otherwise: 0 done · 1 it failed · 2 what was asked for cannot be done.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import import_path
from cluster.config import shipped, with_new_names
from cluster.errors import ConfigError, KanaboError, nearest

COMMANDS = {
    "run": "Train as a recipe says.",
    "sft": "Fine-tune on conversations of a file, without rollouts.",
    "dpo": "Train on preference pairs of a file, without rollouts.",
    "recipes": "The recipes that come with Kanabo, by name.",
    "status": "All runs, live or not, as a table.",
    "scale": "More or fewer workers of a running job.",
    "inspect": "Stored groups with their scores, to the screen, JSONL or Parquet.",
    "evaluate": "How good a model is at some tasks.",
    "rescore": "Another judge on stored groups: agreement, flips, cost.",
    "export": "A checkpoint as a plain Hugging Face directory.",
    "trace": "What every worker did and when, as a file for Perfetto.",
    "replay": "A recorded step once more, compared bit by bit.",
    "console": "The web page of a run that has ended.",
    "doctor": "What is installed and reachable here, and the remedy for what is not.",
}
"""Names of the modules with a `main`. Only the one that is called is imported."""

COMPLETE = "_KANABO_COMPLETE"
"""Set by a shell that asks for completions."""


def complete_runs(incomplete: str) -> list[str]:
    """Return the names of the runs below $KANABO_RUNS, else `runs`, that begin so."""
    return [path.name for path in run_directories(runs_directory(None)) if path.name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    """Return the names of the recipes that come with Kanabo that begin so."""
    return [name for name in shipped.names() if name.startswith(incomplete)]


RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's name, or the path of its directory; RUN@N is its step N, RUN@latest.",
        autocompletion=complete_runs,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="section.key=value, in TOML's syntax.")
]
RunsDir = Annotated[
    str | None,
    typer.Option("--dir", metavar="DIR", help="Where runs live.", show_default="$KANABO_RUNS, else runs"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def main(arguments: list[str] | None = None) -> None:
    """`kanabo COMMAND …`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if COMPLETE in os.environ:
        all_commands()(args=arguments, prog_name="kanabo")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0 if arguments else 2)
    name = arguments[0]
    if name in ("--install-completion", "--show-completion"):
        all_commands()(args=arguments, prog_name="kanabo")
    if name == "--version":
        print(f"kanabo {version('kanabo')}")
        raise SystemExit(0)
    if name not in COMMANDS:
        print(f"error: '{name}' is no command. {nearest(name, COMMANDS)}See kanabo --help.", file=sys.stderr)
        raise SystemExit(2)
    import_path.add_working_directory()
    start(import_module(module_of(name)).main, f"kanabo {name}", arguments[1:])


def all_commands() -> typer.Typer:
    """Return all commands as one program, which completes them, their options, runs and recipes in a shell."""
    app = typer.Typer(add_completion=True)
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    for name, summary in COMMANDS.items():
        # Imported only to complete its own arguments: a shell asks at every key.
        app.command(name, help=summary)(import_module(module_of(name)).main if name in line.split() else _nothing)
    return app


def _nothing() -> None:
    """Stand for a command whose name alone is completed."""


def module_of(name: str) -> str:
    """The module that has the `main` of a command."""
    return "cluster.run" if name == "run" else f"cluster.commands.{name}"


def start(command: Callable[..., None], program: str | None = None, arguments: list[str] | None = None) -> None:
    """Run a command's `main` with what it was called with; the process ends with its exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=_unwrapped(inspect.getdoc(command) or ""))(command)
    app(args=arguments, prog_name=program)


def _unwrapped(text: str) -> str:
    """Paragraphs as single lines: they are wrapped again, to the terminal's width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


@contextmanager
def exit_codes() -> Iterator[None]:
    """Errors of ours become one message on stderr and an exit code: 2 for what the caller can correct, else 1."""
    try:
        yield
    except KanaboError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


def print_json(document: Any) -> None:
    """One document on stdout; what is not finite becomes null, never a number."""
    # Flushed: a command that goes on running, such as `console`, may write to a pipe.
    print(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def progress(what: str, total: int | None = None) -> Any:
    """A bar on stderr, gone when it is done; `advance()` moves it. Nothing on a pipe."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=total)

    @contextmanager
    def shown() -> Iterator[Callable[[float], None]]:
        with bar:
            yield lambda amount=1.0: bar.advance(task, amount)

    return shown()


def runs_directory(given: str | None) -> Path:
    """Where runs live: as given, else $KANABO_RUNS, else `runs`."""
    return Path(given or os.environ.get("KANABO_RUNS") or "runs").absolute()


def find_run(run: str, given: str | None) -> Path:
    """The directory of a run by name or path, or by `RUN@latest`. Raises ConfigError naming the runs there are."""
    directory, step = find_step(run, given)
    if step is not None:
        raise ConfigError(f"'{run}' names step {step} of a run, and this command is about all of it. Give {directory}.")
    return directory


def find_step(run: str, given: str | None, option: int | None = None) -> tuple[Path, int | None]:
    """The directory that `RUN`, `RUN@latest` or `RUN@N` names, and N; None for the newest.

    `option` is the step that the command's own option names. Raises ConfigError naming the runs there are, or if N and
    the option differ.
    """
    base = runs_directory(given)
    name, at, step = run.rpartition("@")
    if _directory(base, run) is not None or not at:
        name, step = run, "latest"
    directory = _directory(base, name)
    if directory is None:
        known = [path.name for path in run_directories(base)]
        there = f"Runs there: {', '.join(known)}." if known else "There is no run; another place is given by --dir."
        raise ConfigError(f"there is no run '{name}' in {base}. {nearest(name, known)}{there}")
    if step == "latest":
        return directory, option
    if not (step.isascii() and step.isdecimal() and len(step) < 10):
        raise ConfigError(f"'{run}': after @ stands the number of a step, or latest; not '{step}'.")
    if option is not None and option != int(step):
        raise ConfigError(f"'{run}' and --step {option} name two steps. Give one of them.")
    return directory, int(step)


def _directory(base: Path, run: str) -> Path | None:
    try:
        return next((path for path in (base / run, Path(run).absolute()) if (path / "config.toml").is_file()), None)
    except (OSError, ValueError):  # a name that is too long for the file system, or has a NUL
        return None


def recipe_of(run: Path) -> dict[str, Any]:
    """The tree of a run's own recipe. Raises ConfigError where it is damaged."""
    path = run / "config.toml"
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
        if wrong := [name for name in ("learner", "buffer") if not isinstance(tree.get(name, {}), dict)]:
            raise ValueError(f"[{wrong[0]}] is no section")
        return with_new_names(tree)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}. Restore it; a start of the run with its recipe writes it anew."
        ) from error


def run_directories(base: Path) -> list[Path]:
    """Directories of all runs, by name."""
    return sorted(path.parent for path in base.glob("*/config.toml"))


def plain(value: Any) -> Any:
    """What JSON can hold: what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: kanabo COMMAND [ARGUMENTS]",
            "",
            *lines,
            "",
            "kanabo COMMAND --help says more, kanabo --version the version.",
            "kanabo --install-completion completes commands, runs and recipes in your shell.",
            "kanabo run is also python -m cluster.run, any other also python -m cluster.commands.COMMAND.",
            "Exit codes: 0 done · 1 failed · 2 what was asked for cannot be done.",
        ]
    )


if __name__ == "__main__":
    main()
