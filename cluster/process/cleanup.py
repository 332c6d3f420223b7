"""What a process ends before it goes: its event loop, its child processes, its shared memory."""

import gc
import os
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL


def settle() -> None:
    """First thing in every process: ninja, which DeepSpeed compiles with, lives beside the interpreter."""
    beside = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != beside:
        os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def collect_less() -> None:
    """In an actor that is ready: look for garbage every 20,000 new objects instead of every 700, not in old ones.

    Whoever waits for thousands of answers at once creates many objects and little garbage.
    """
    gc.freeze()
    gc.set_threshold(20_000)


def end_children_with_me() -> None:
    """What this process starts from now on ends with it, also by SIGKILL.

    Its descendants share a process group that is killed once this process is gone: an engine that is still coming up
    would wait for its dead parent for minutes.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    _after_me(f"kill -9 -{os.getpid()}")


def remove_after_me(*paths: Path) -> None:
    """Remove files and directories once this process is gone, also by SIGKILL."""
    if paths:
        _after_me(f"rm -rf {shlex.join(map(str, paths))}")


def end_marked_after_me(variable: str, prefix: str) -> None:
    """Once this process is gone, kill every process whose environment variable `variable` begins with `prefix`.

    It finds what has left the process group, and what began a session of its own. `prefix` needs no quoting.
    """
    look = f'grep -qsz "^{variable}={prefix}" "$p/environ" && kill -9 "${{p#/proc/}}"'
    _after_me(f"for i in 1 2 3; do for p in /proc/[0-9]*; do {look}; done; sleep 0.2; done")


def _after_me(command: str) -> None:
    script = f"while [ -d /proc/{os.getpid()} ]; do sleep 1; done; {command}"
    # In the background of a shell that ends at once: Ray kills the children of a worker, not those of init.
    orphan = ["/bin/sh", "-c", f"({script}) &"]
    subprocess.run(orphan, process_group=0, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, check=True)
