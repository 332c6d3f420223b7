"""What follows an alarm that ends a run: back to the last good checkpoint, and a report that shows why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.errors import KanaboError
from cluster.observability import metrics
from cluster.storage import checkpoint
from rewards.monitors import Alarm


class Alarmed(KanaboError):
    """A monitor raised its alarm, and its `on_alarm` says that the run ends."""

    def __init__(self, alarm: Alarm, watched: Sequence[str], *, roll_back: bool) -> None:
        how = "rollback" if roll_back else "stop"
        super().__init__(
            f"{alarm.monitor} at step {alarm.step}: {alarm.message} "
            f"The run ends here because the monitor says on_alarm = '{how}'."
        )
        self.alarm, self.watched, self.roll_back = alarm, tuple(watched), roll_back


def close(directory: Path, alarmed: Alarmed) -> str:
    """After all actors have ended: roll back if asked to, write `alarm.md` and `alarm.png`; says what was done."""
    if alarmed.roll_back:
        outcome = _roll_back(directory / "checkpoints", alarmed.alarm.good)
    else:
        outcome = "All checkpoints stay."
    _draw(directory, alarmed)
    (directory / "alarm.md").write_text(_report(directory, alarmed, outcome))
    return f"{outcome} The curves and what to do are in {directory / 'alarm.md'}."


def _roll_back(checkpoints: Path, good: int) -> str:
    """Later checkpoints are renamed: a resume goes on from the newest one that is left (rule 11 of exactly-once)."""
    before = [checkpoint.read(path).step for path in checkpoint.committed(checkpoints)]
    checkpoint.abandon_after(checkpoints, good)
    kept, left = [step for step in before if step <= good], [step for step in before if step > good]
    renamed = f" Those of steps {', '.join(map(str, left))} are called abandoned_step_N now." if left else ""
    if not kept:
        return (
            f"There is no checkpoint of step {good} or before, the last step at which nothing was amiss: a resume "
            f"starts from the initial model. checkpoint.every_steps sets how many there are.{renamed}"
        )
    return f"The run went back to step {max(kept)}: export takes that one, and a resume goes on from it.{renamed}"


def _report(directory: Path, alarmed: Alarmed, outcome: str) -> str:
    alarm = alarmed.alarm
    rows = metrics.read(directory)
    lines = [
        f"# {alarm.monitor}: alarm at step {alarm.step}",
        "",
        f"Given away by `{alarm.metric}`: {alarm.message}",
        "",
        outcome,
        "",
        "![curves](alarm.png)",
        "",
        f"| metric | at step {alarm.good}, still good | at step {alarm.step} |",
        "|---|---|---|",
    ]
    for name in _shown(alarmed, rows):
        lines.append(f"| `{name}` | {_at(rows, name, alarm.good)} | {_at(rows, name, alarm.step)} |")
    return "\n".join(lines) + "\n"


def _shown(alarmed: Alarmed, rows: Sequence[metrics.Row]) -> list[str]:
    wanted = dict.fromkeys((alarmed.alarm.metric, *alarmed.watched, "reward/mean", "eval/accuracy"))
    return [name for name in wanted if any(row.get(name) is not None for row in rows)]


def _at(rows: Sequence[metrics.Row], name: str, step: int) -> str:
    """The last value up to a step."""
    values = [row[name] for row in rows if row["step"] <= step and row.get(name) is not None]
    return f"{values[-1]:.4g}" if values else "–"


def _draw(directory: Path, alarmed: Alarmed) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = metrics.read(directory)
    names = _shown(alarmed, rows)
    figure, axes = plt.subplots(len(names), 1, figsize=(9, 2 * len(names)), layout="constrained", squeeze=False)
    for axis, name in zip(axes.flat, names, strict=True):
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axis.axvline(alarmed.alarm.good, color="tab:green", linestyle="--", label="last good step")
        axis.axvline(alarmed.alarm.step, color="tab:red", linestyle="--", label="alarm")
        axis.set_title(name, loc="left", fontsize=9)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    axes.flat[-1].set_xlabel("step")
    figure.savefig(directory / "alarm.png", dpi=110)
    plt.close(figure)
