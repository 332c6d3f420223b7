"""What a process died of is found under what its parents say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.errors import InfrastructureError, StartFailed
from cluster.process.causes import failure, last_error, root_of

VLLM = """
(EngineCore pid=7) WARNING 11-29 05:40:11 [x.py:1] something harmless
(EngineCore pid=7) ERROR 11-29 05:40:12 [core.py:9] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-29 05:40:12 [core.py:9]   File "a.py", line 3, in f
(EngineCore pid=7) ERROR 11-29 05:40:12 [core.py:9] ValueError: head_dim 16 is not supported.
(EngineCore pid=7) ValueError: head_dim 16 is not supported.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (VLLM, "ValueError: head_dim 16 is not supported"),
        ("KeyError: 'lm_head.weight'", "KeyError: 'lm_head.weight'"),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", None),
        ("torch.OutOfMemoryError: CUDA out of memory.", None),
        ("RuntimeError: Engine core initialization failed. See root cause above.", None),
        ("no error here\nat all", ""),
        ("", ""),
    ],
)
def test_the_last_error_of_a_log_is_its_cause(log: str, cause: str | None):
    assert last_error(log) == (log.strip().rstrip(".") if cause is None else cause)


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (VLLM, StartFailed),
        ("OSError: [Errno 28] No space left on device", InfrastructureError),
        ("torch.OutOfMemoryError: CUDA out of memory.", InfrastructureError),
        ("OSError: [Errno 98] Address already in use", InfrastructureError),
        ("TimeoutError: waited for 60 s", InfrastructureError),
        ("OSError: model.safetensors not found", StartFailed),
        ("RuntimeError: size mismatch for lm_head", StartFailed),
        ("ValueError: torch.float17 is no dtype", StartFailed),
        ("", InfrastructureError),
    ],
)
def test_only_what_another_try_may_not_meet_is_tried_again(log: str, kind: type):
    error = failure("it", None, log)
    assert type(error) is kind
    assert "\n" not in str(error)


def test_without_a_log_the_exception_is_the_cause():
    assert str(failure("it", ValueError("odd\nmore"))) == "it: ValueError: odd."


@pytest.mark.parametrize("order", [1, -1])
def test_the_root_of_nested_groups_is_what_is_no_failure_of_infrastructure(order: int):
    inner = [InfrastructureError("gone"), ExceptionGroup("inner", [KeyError("answer")])][::order]
    root = root_of(ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("outer", inner)]))
    assert isinstance(root, KeyError)


def test_what_a_child_says_is_overheard_where_output_is_a_file(tmp_path):
    program = (
        "import subprocess, sys\n"
        "from cluster.process.causes import overheard\n"
        "print('before', file=sys.stderr, flush=True)\n"
        "with overheard() as said:\n"
        "    subprocess.run([sys.executable, '-c', 'raise ValueError(\"deep inside\")'])\n"
        "open(sys.argv[1], 'w').write(said.text)\n"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", program, tmp_path / "heard"], stdout=log, stderr=log, check=True)
    heard = (tmp_path / "heard").read_text()
    assert last_error(heard) == "ValueError: deep inside"
    assert "before" not in heard
