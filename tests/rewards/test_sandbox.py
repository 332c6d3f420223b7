"""Text that a model wrote runs in a sandbox only: what it tries there, and what is left of it."""

import asyncio
import json
import os
import socket
import subprocess
import time

import pytest
import pytest_asyncio

from cluster.errors import ConfigError
from rewards.sandbox import launch
from rewards.sandbox.launch import SandboxError, refusal
from rewards.sandbox.pool import Sandbox, Target

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(refusal()), reason=refusal()),
]

EVALUATE = """
import os, sys, socket, signal, time, threading, subprocess
def run(text):
    space = dict(globals())
    exec(text, space)
    return space.get("result")
def version():
    return 1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(tmp_path_factory):
    os.environ["A_SECRET_OF_THE_RUN"] = "s3cret"
    made = Sandbox(2)
    yield made
    made.close()
    del os.environ["A_SECRET_OF_THE_RUN"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A checker that runs whatever it is given: nothing but the sandbox stands between that and the machine."""
    file = tmp_path_factory.mktemp("checker") / "runs_anything.py"
    file.write_text(EVALUATE)
    return Target("runs_anything", "run", str(file))


async def tried(sandbox, target, text, timeout_s=5.0):
    return await sandbox.call(target, [text], timeout_s)


async def test_a_function_is_called_and_its_value_comes_back(sandbox, target):
    assert await tried(sandbox, target, "result = {'a': [1, 2.5, None, 'é']}") == {"a": [1, 2.5, None, "é"]}


async def test_what_a_function_raises_is_named(sandbox, target):
    with pytest.raises(SandboxError, match="ZeroDivisionError"):
        await tried(sandbox, target, "1 / 0")


REFUSED = {
    "network": "socket.create_connection(('1.1.1.1', 53), 2)",
    "the own loopback": "socket.socket()",
    "passwords": "open('/etc/passwd')",
    "the project": f"open({__file__!r})",
    "the home directory": f"os.listdir({os.path.expanduser('~') + '/.ssh'!r})",
    "the list of processes": "os.listdir('/proc')",
    "a file in /usr": "open('/usr/lib/mine', 'w')",
    "a file in the packages": f"open({os.path.dirname(pytest.__file__) + '/mine.py'!r}, 'w')",
    "a file at the top": "open('/mine', 'w')",
    "where the checker came from": "os.listdir('/preload/0') and 0; open('/preload/0/runs_anything.py')",
    "a shell": "subprocess.run(['/bin/sh', '-c', 'id'], check=True)",
    "another process": "os.fork()",
    "the zygote's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "a namespace of its own": "open('/proc/self/ns/user')",
    "10 GB": "x = bytearray(10 << 30)",
    "a large file": "open('big', 'wb').write(bytes(20 << 20))",
    "many files": "x = [open(str(i), 'w') for i in range(100)]",
    "anonymous files": "os.memfd_create('x')",
    "many files closed": "for i in range(1000): open(str(i), 'w').close()",
    "the parent of /tmp by a link": "os.symlink('/etc/passwd', 'link'); open('link')",
    "a real file through ..": "open('../../../../etc/hostname')",
    "deep recursion": "f = lambda: f(); f()",
}


@pytest.mark.parametrize("what", REFUSED)
async def test_it_is_refused(what, sandbox, target):
    with pytest.raises(SandboxError) as error:
        await tried(sandbox, target, REFUSED[what])
    assert not str(error.value).startswith(("NameError", "SyntaxError", "AttributeError"))
    assert await tried(sandbox, target, "result = 1") == 1


SYSTEM_CALLS = {
    "ptrace": 101,
    "mount": 165,
    "unshare": 272,
    "keyctl": 250,
    "shmget": 29,
    "io_uring_setup": 425,
    "fork": 57,
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize("name", SYSTEM_CALLS)
async def test_a_system_call_that_reaches_out_is_refused(name, sandbox, target):
    call = f"import ctypes; result = ctypes.CDLL(None, use_errno=True).syscall({SYSTEM_CALLS[name]}, 0, 0, 0, 0, 0)"
    assert await tried(sandbox, target, call) == -1


ENDS = {
    "os._exit": "os._exit(0)",
    "an abort": "os.abort()",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "a closed socket": "os.close(3)",
    "an exit": "sys.exit(0)",
    "an answer that is no JSON": "os.write(3, b'1.0'); os._exit(0)",
    "an answer that is too long": "os.set_blocking(3, True)\nwhile True: os.write(3, b'x' * 65536)",
    "a value that is too long": "result = 'x' * (8 << 20)",
    "a value that is no JSON": "result = object()",
    "nested JSON": "os.write(3, b'[' * 100000); os._exit(0)",
    "two answers": "os.write(3, b'{\"value\": 1}')",
    "a large number": "os.write(3, b'{\"value\": ' + b'9' * 5000 + b'}'); os._exit(0)",
}


@pytest.mark.parametrize("what", ENDS)
async def test_a_process_that_ends_or_answers_oddly_is_a_failure_of_its_call(what, sandbox, target):
    with pytest.raises(SandboxError):
        await tried(sandbox, target, ENDS[what])
    assert await tried(sandbox, target, "result = 1") == 1


ENDLESS = {
    "a loop": "while True: pass",
    "a sleep": "time.sleep(1000)",
    "a sleep that ignores signals": "[signal.signal(s, signal.SIG_IGN) for s in (2, 15, 14, 24)]; time.sleep(1000)",
    "a thread that is waited for": "t = threading.Thread(target=time.sleep, args=(1000,)); t.start(); t.join()",
    "a held interpreter": "9 ** 9 ** 9",
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_never_ends_is_ended_at_its_time(what, sandbox, target):
    begun = time.monotonic()
    with pytest.raises((TimeoutError, SandboxError)):
        await tried(sandbox, target, ENDLESS[what], timeout_s=1.0)
    assert time.monotonic() - begun < 8
    assert await tried(sandbox, target, "result = 1") == 1


async def test_the_environment_of_the_run_is_not_there(sandbox, target):
    found = await tried(sandbox, target, "result = dict(os.environ)")
    assert "A_SECRET_OF_THE_RUN" not in found
    assert not {name for name in found if name.startswith(("RAY", "KANABO", "AWS", "HF"))}


async def test_a_call_may_import_what_is_installed(sandbox, target):
    assert await tried(sandbox, target, "import sympy.assumptions.wrapper, wave; result = 1") == 1


async def test_nothing_that_a_call_leaves_is_there_in_the_next(sandbox, target):
    leave = """
import runs_anything, builtins
runs_anything.version = lambda: 2
builtins.left = 1
sys.modules['json'].dumps = lambda *a, **k: '{"value": 1.0}'
open('left', 'w').write('x'); os.environ['LEFT'] = 'x'
signal.signal(15, signal.SIG_IGN)
"""
    await tried(sandbox, target, leave)
    look = """
import runs_anything, builtins
result = [runs_anything.version(), hasattr(builtins, 'left'), os.listdir('.'), 'LEFT' in os.environ]
"""
    assert await tried(sandbox, target, look) == [1, False, [], False]


async def test_a_call_sees_no_process_but_its_own(sandbox, target):
    sleeping = asyncio.create_task(tried(sandbox, target, "time.sleep(2); result = 'unharmed'"))
    kill = """
failed = 0
for pid in [-1, *range(2, 300)]:
    try: os.kill(pid, 9)
    except OSError: failed += 1
result = [os.getpid(), os.getppid(), failed]
"""
    assert await tried(sandbox, target, kill) == [1, 0, 300 - 1]
    assert await sleeping == "unharmed"


async def test_a_call_holds_nothing_but_its_socket(sandbox, target):
    look = """
result = []
for fd in range(0, 60):
    try: os.fstat(fd); result.append(fd)
    except OSError: pass
"""
    assert await tried(sandbox, target, look) == [0, 1, 2, 3]


async def test_a_call_has_no_capability_and_is_not_root(sandbox, target):
    text = "import ctypes; result = [os.getuid(), ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)]"
    uid, no_new_privileges = await tried(sandbox, target, text)
    assert uid != 0
    assert no_new_privileges == 1
    with pytest.raises(SandboxError, match="PermissionError"):
        await tried(sandbox, target, "os.setuid(0)")


async def test_a_call_that_is_given_up_is_ended(sandbox, target):
    given_up = asyncio.create_task(tried(sandbox, target, "time.sleep(1000)", timeout_s=500))
    await asyncio.sleep(0.5)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    begun = time.monotonic()
    assert await asyncio.gather(*(tried(sandbox, target, "result = 1") for _ in range(4))) == [1] * 4
    assert time.monotonic() - begun < 30


def bubblewraps():
    asked = subprocess.run(["pgrep", "-P", str(os.getpid()), "bwrap"], capture_output=True, text=True)
    return [int(pid) for pid in asked.stdout.split()]


async def test_a_lost_zygote_is_started_again(target):
    sandbox = Sandbox(1)
    try:
        assert await tried(sandbox, target, "result = 1") == 1
        children = await asyncio.to_thread(bubblewraps)
        sleeping = asyncio.create_task(tried(sandbox, target, "time.sleep(1000)", timeout_s=500))
        await asyncio.sleep(0.5)
        for pid in children:
            os.kill(pid, 9)
        with pytest.raises(SandboxError, match="lost"):
            await sleeping
        assert await tried(sandbox, target, "result = 1") == 1
    finally:
        sandbox.close()


async def test_all_of_it_is_gone_when_it_is_closed(target):
    sandbox = Sandbox(1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sleeping = asyncio.create_task(tried(sandbox, target, "time.sleep(1000)", timeout_s=500))
        await asyncio.sleep(0.5)
        sandbox.close()
        with pytest.raises(SandboxError):
            await sleeping


async def test_an_import_that_fails_is_named_before_a_call(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_package\n")
    sandbox = Sandbox(1)
    with pytest.raises(ConfigError, match="no_such_package"):
        await sandbox.prepare(Target("broken", "run", str(file)))
    sandbox.close()


def refuses(tmp_path, monkeypatch, script):
    stand_in = tmp_path / "bwrap"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    refusal.cache_clear()
    try:
        return refusal()
    finally:
        refusal.cache_clear()


async def test_where_user_namespaces_are_forbidden_it_refuses_with_the_remedy(tmp_path, monkeypatch):
    script = "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
    said = refuses(tmp_path, monkeypatch, script)
    assert "No permissions to create new namespace" in said
    assert "user.max_user_namespaces" in said
    assert "Docker: --security-opt" in said


async def test_a_bubblewrap_that_confines_nothing_is_refused(tmp_path, monkeypatch):
    """A stand-in that runs the command bare: the zygote cannot set up what it must, and so answers no call."""
    script = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    assert "cannot be started" in refuses(tmp_path, monkeypatch, script)


async def test_a_kernel_that_has_no_namespaces_left_refuses():
    text = "from rewards.sandbox.launch import refusal; print(refusal())"
    bound = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" -c "$1"'
    command = ["unshare", "-Ur", "sh", "-c", bound, launch.sys.executable, text]
    asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    if asked.returncode:
        pytest.skip(asked.stderr)
    assert "cannot be started" in asked.stdout
    assert "user.max_user_namespaces" in asked.stdout


async def test_an_answer_is_not_taken_for_more_than_json(sandbox, target):
    """A text that gets to run may write what it likes into its own call's socket, and there is nothing else."""
    text = 'os.write(3, b\'{"value": "forged"}\'); os._exit(0)'
    assert await tried(sandbox, target, text) == "forged"
    assert json.dumps(await tried(sandbox, target, "result = 2")) == "2"
