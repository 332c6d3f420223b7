"""The sandbox from within: a zygote that imports once and forks one confined child for each call.

Run as a script by `launch`, with nothing but the standard library. The zygote reads requests of its parent only; text
that a model wrote reaches no process but the child that evaluates it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import importlib.util
import inspect
import json
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any

ANSWER_FD = 3
"""The call's socket: the request comes in, the answer goes out. Behind it, where a call has one, the socket to the
call beside it."""
MAX_THREADS = 64
MAX_OPEN_FILES = 64
MAX_FILE_BYTES = 16 << 20
TMP_BYTES, TMP_FILES = 32 << 20, 256

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_THREAD = 0x00020000, 0x08000000, 0x20000000, 0x00010000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 16384, 1 << 18, 2
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 4, 22, 38, 47, 4
AF_UNIX = 1
EPERM, EAGAIN, ENOSYS = 1, 11, 38

# By name, then x86_64 and aarch64. Creating a process answers EAGAIN, so that memory is what one process may have.
SYSCALLS: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "pidfd_getfd": (438, 438), "chroot": (161, 51), "acct": (163, 89),
    "swapon": (167, 224), "reboot": (169, 142), "quotactl": (179, 60), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
FORK, VFORK = 57, 58
"""Numbers of the system calls on x86_64."""
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def main(control_fd: int) -> None:
    """Import what the first message names, then fork a child for each that follows, until the parent is gone."""
    control = socket.socket(fileno=control_fd)
    setup = json.loads(control.recv(1 << 20))
    try:
        checked(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
        checked(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
        mount_scratch()
        preload(setup["imports"], setup["roots"], last=setup["last"])
        os.chdir("/")
        checked(libc.umount2(os.environ["HOME"].encode(), MNT_DETACH), "detaching the scratch directory")
    except BaseException as error:
        line = traceback.format_exception_only(error)[-1].strip()
        control.send(json.dumps({"refused": line[:2000]}).encode())
        return
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"ready": True}).encode())
    serve(control, setup["uid"])


def preload(targets: list[dict[str, str]], roots: list[str], *, last: bool) -> None:
    """Import the checkers, then take away the directories that they came from: no call sees the project.

    `last`: Kanabo is installed beside the interpreter, and the directories come behind its packages.
    """
    place = len(sys.path) if last else 0
    sys.path[place:place] = roots
    for target in targets:
        module = load(target)
        warm = getattr(module, "warm", None)
        if warm is not None and target.get("warm"):
            warm()
    for root in roots:
        checked(libc.umount2(root.encode(), MNT_DETACH), f"detaching {root}")
        sys.path.remove(root)
    sys.path_importer_cache.clear()


def load(target: dict[str, str]) -> Any:
    """The module that a target names, imported once."""
    if target["module"] in sys.modules or not target.get("file"):
        return importlib.import_module(target["module"])
    spec = importlib.util.spec_from_file_location(target["module"], target["file"])
    if spec is None or spec.loader is None:
        raise ImportError(f"{target['file']} is no Python file")
    module = sys.modules[target["module"]] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(control: socket.socket, uid: int | None) -> None:
    children: dict[int, tuple[int, int, float]] = {}  # a call's number: process, its pidfd, when it must have ended
    while True:
        waiting = min((deadline for _, _, deadline in children.values()), default=None)
        timeout_s = None if waiting is None else max(0.0, waiting - time.monotonic())
        ready, _, _ = select.select([control, *(fd for _, fd, _ in children.values())], [], [], timeout_s)
        for number, (pid, pidfd, deadline) in list(children.items()):
            late = time.monotonic() >= deadline
            if late:
                os.kill(pid, signal.SIGKILL)  # the first process of its namespace: the kernel ends all others there
            if late or pidfd in ready:
                _, status = os.waitpid(pid, 0)
                os.close(pidfd)
                del children[number]
                report(control, number, "time" if late else "end", status)
        if control in ready:
            message, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
            if not message:
                return
            request = json.loads(message)
            if "kill" in request:
                found = children.get(request["kill"])
                if found is not None:
                    os.kill(found[0], signal.SIGKILL)
                continue
            try:
                pid = spawn(fds, request, uid)
                children[request["call"]] = (pid, os.pidfd_open(pid), time.monotonic() + request["timeout_s"])
            except OSError as error:
                report(control, request["call"], f"no process for it: {error}", 0)
            finally:
                for fd in fds:
                    os.close(fd)


def report(control: socket.socket, number: int, how: str, status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    try:
        control.send(json.dumps({"call": number, "how": how, "code": code}).encode())
    except OSError:
        os._exit(1)  # the parent is gone, and this is all that keeps the namespace alive


def spawn(fds: list[int], request: dict[str, Any], uid: int | None) -> int:
    """A child that is the first process of a pid namespace of its own."""
    own = os.pidfd_open(os.getpid())
    try:
        checked(libc.setns(own, CLONE_NEWPID), "setns")  # undoes the last unshare, which could not be repeated else
    finally:
        os.close(own)
    checked(libc.unshare(CLONE_NEWPID), "unshare")
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        confine(fds, request, uid)
        code = answer()
    except BaseException:
        pass
    finally:
        os._exit(code)


def confine(fds: list[int], request: dict[str, Any], uid: int | None) -> None:
    """Give up everything but a socket or two, a small scratch directory and the right to compute."""
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    kept = [os.dup(fd) for fd in fds]  # away from the places that they take
    for place, fd in enumerate(kept, ANSWER_FD):
        os.dup2(fd, place)
    os.closerange(ANSWER_FD + len(kept), 1 << 16)
    checked(libc.unshare(CLONE_NEWNS | CLONE_NEWIPC), "unshare")
    mount_scratch()
    cpu_s = int(request["timeout_s"]) + 2
    for which, limit in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, MAX_THREADS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    drop_capabilities()
    refuse_syscalls()


def mount_scratch() -> None:
    options = f"size={TMP_BYTES},nr_inodes={TMP_FILES},mode=1777"
    place, flags = os.environ["HOME"], MS_NOSUID | MS_NODEV
    checked(libc.mount(b"tmpfs", place.encode(), b"tmpfs", flags, options.encode()), f"mounting {place}")
    os.chdir(place)


def drop_capabilities() -> None:
    checked(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    checked(libc.capset(header, nothing), "capset")
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    checked(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def refuse_syscalls() -> None:
    """A seccomp filter: no other process, no tracing, no namespaces or mounts, no memory outside the address space."""
    column, audit = MACHINES[platform.machine()]
    load_word, equal, at_least, all_of, give = 0x20, 0x15, 0x35, 0x45, 0x06
    errno, allow = 0x00050000, 0x7FFF0000
    number, architecture, argument = 0, 4, 16

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, k)

    def refused(call: int, error: int) -> list[bytes]:
        return [op(equal, call, 0, 1), op(give, errno | error)]

    program = [op(load_word, architecture), op(equal, audit, 1, 0), op(give, errno | EPERM), op(load_word, number)]
    if column == 0:
        program += [op(at_least, 0x40000000, 0, 1), op(give, errno | EPERM)]  # the x32 numbers of the same calls
        program += [*refused(FORK, EAGAIN), *refused(VFORK, EAGAIN)]
    program += refused(CLONE3[column], ENOSYS)  # its flags lie in memory; glibc then uses clone
    for calls in SYSCALLS.values():
        program += refused(calls[column], EPERM)
    program += [
        op(equal, CLONE[column], 0, 3), op(load_word, argument), op(all_of, CLONE_THREAD, 1, 0),
        op(give, errno | EAGAIN), op(load_word, number),
        op(equal, SOCKET[column], 0, 3), op(load_word, argument), op(equal, AF_UNIX, 1, 0), op(give, errno | EPERM),
        op(give, allow),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(program))
    filters = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    checked(libc.prctl(PR_SET_SECCOMP, 2, filters, 0, 0), "seccomp")


def answer() -> int:
    """Read the request, call what it names, and write what that returns as JSON."""
    request = json.loads(read_request())
    function = getattr(load(request), request["name"])
    try:
        value = function(*request["args"], **request.get("options", {}))
        if inspect.isawaitable(value):
            value = asyncio.run(finished(value))
        text = json.dumps({"value": value}, default=plain)
    except SystemExit as error:
        text = json.dumps({"error": f"SystemExit: {error}"[:2000]})
    except BaseException as error:  # whatever foreign text made it raise is its answer
        text = json.dumps({"error": "".join(traceback.format_exception_only(error)).strip()[:2000]})
    write_all(ANSWER_FD, text.encode())
    return 0


async def finished(value: Any) -> Any:
    return await value


def plain(value: Any) -> Any:
    """numpy's scalars and arrays as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no number, text, list or dict")


def read_request() -> bytes:
    length = int.from_bytes(read_exactly(8), "little")
    return read_exactly(length)


def read_exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(ANSWER_FD, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))
