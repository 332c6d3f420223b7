"""What a run shows while it runs: one live table, and the summary at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

console = Console(stderr=False)


def number(value: Any, form: str = ".3g") -> str:
    return "–" if value is None or value != value else format(value, form)


def show_facts(title: str, facts: Mapping[str, Any]) -> None:
    """A line each."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for key, value in facts.items():
        shown = number(value, ".4g") if isinstance(value, float) or value is None else str(value)
        table.add_row(key, "none" if value in ({}, "") else shown)
    console.print(table)


class LiveTable:
    """The last steps, and a line on what the learner waits for. On a pipe it prints a row now and then instead."""

    SHOWN = 12

    def __init__(self, name: str, steps: int, enabled: bool) -> None:
        self._name, self._steps = name, steps
        self._rows: list[tuple[str, ...]] = []
        self._state = "starting"
        self._live = (
            Live(self._render(), console=console, refresh_per_second=2) if enabled and console.is_terminal else None
        )
        self._enabled = enabled

    def __enter__(self) -> LiveTable:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live:
            self._live.__exit__(*error)

    def step(self, step: int, row: Mapping[str, float]) -> None:
        self._rows.append(
            (
                f"{step}/{self._steps}",
                number(row.get("reward/mean"), ".3f"),
                number(row.get("heldout/accuracy"), ".3f"),
                number(row.get("rollout/tokens_per_s"), ",.0f"),
                number(row.get("policy/staleness_steps"), ".2f"),
                number(row.get("buffer/outstanding_groups"), ".0f"),
                f"{number(row.get('learner/wait_s'), '.2f')} s",
            )
        )
        del self._rows[: -self.SHOWN]
        self._show(printed=step % 10 == 0 or step == 1)

    def waiting(self, text: str) -> None:
        """Where the groups are: what the learner waits for. For the table only."""
        self._state = text
        if self._live:
            self._live.update(self._render())

    def warning(self, text: str) -> None:
        """Print what is wrong, above the table where there is one."""
        console.print(f"[yellow]warning[/] {escape(text)}", highlight=False, soft_wrap=True)

    def state(self, text: str) -> None:
        """What the run as a whole is doing."""
        self.waiting(text)
        if self._enabled and not self._live:
            console.print(text, style="dim", highlight=False, soft_wrap=True)

    def _show(self, printed: bool) -> None:
        if self._live:
            self._live.update(self._render())
        elif printed and self._enabled:
            step, reward, accuracy, rate, stale, groups, wait = self._rows[-1]
            console.print(
                f"step {step}  reward {reward}  accuracy {accuracy}  {rate} tokens/s  staleness {stale}  "
                f"{groups} groups outstanding  waited {wait}",
                highlight=False,
                soft_wrap=True,
            )

    def _render(self) -> Table:
        table = Table(title=f"kanabo · {self._name}", caption=self._state, title_justify="left", caption_justify="left")
        for column in ("step", "reward", "accuracy", "tokens/s", "staleness", "outstanding", "learner waited"):
            table.add_column(column, justify="right")
        for row in self._rows:
            table.add_row(*row)
        return table
