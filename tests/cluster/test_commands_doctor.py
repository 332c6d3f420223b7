"""The doctor sees what is there and what is not, and says what to do."""

from __future__ import annotations

import sys
from typing import Any

from cluster.commands import doctor_checks


def findings(check: Any) -> dict[str, doctor_checks.Finding]:
    return {finding.check: finding for finding in check()}


def test_the_doctor_finds_this_machine_fit(kanabo):
    told = kanabo("doctor", "--json")
    rows = {row["check"]: row["state"] for row in told.document}
    assert all(rows[check] == "ok" for check in ("python", "packages", "compiler", "ninja", "redis")), told.document
    assert told.code == int("fail" in rows.values())
    names = set(rows)
    assert names >= {"python", "packages", "compiler", "ninja", "gpu", "ray", "redis", "shared memory", "ports"}


def test_what_is_missing_fails_with_a_remedy(kanabo, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    told = kanabo("doctor", "--json")
    assert told.code == 1
    (row,) = [row for row in told.document if row["state"] == "fail"]
    assert row["check"] == "compiler"
    assert "apt-get install g++" in row["remedy"]


def test_a_lock_file_is_compared_with_what_is_installed():
    lock = "# a comment\nrich==0.0.1\nno-such-package==1\nnothing==1 ; python_version < '3'\ntyper>=0.1\n"
    missing = doctor_checks.differences(lock)
    assert len(missing) == 2
    assert missing[0].startswith("rich is ")
    assert missing[1] == "no-such-package is missing"


def test_a_compiler_that_does_not_run_fails(monkeypatch, tmp_path):
    (tmp_path / "g++").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = findings(doctor_checks.compiler)["compiler"]
    assert (found.state, "broken" in found.seen) == ("fail", True)


def test_a_gpu_that_torch_does_not_see_fails(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 580.1'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = findings(doctor_checks.gpu)
    assert "H200" in found["gpu"].seen
    assert found["torch"].state == "fail"


def test_a_cluster_that_does_not_answer_and_a_missing_token_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert {name: f.state for name, f in findings(doctor_checks.ray).items()} == {"ray": "fail", "ray token": "fail"}
    (tmp_path / "token").write_text("t")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert findings(doctor_checks.ray)["ray token"].state == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert findings(doctor_checks.ray)["ray token"].state == "warn"


def test_a_redis_that_may_lose_something_is_warned_of(monkeypatch, redis_url):
    monkeypatch.setenv("KANABO_REDIS_URL", redis_url)  # the session's server: appendfsync everysec
    found = findings(doctor_checks.redis)
    assert found["redis"].state == "ok"
    assert found["redis url"].state == "warn"
    assert "everysec" in found["redis url"].seen
    password = redis_url.split(":")[2].split("@")[0]
    for url in ("redis://:secret@127.0.0.1:1/0", f"redis://:{password}@[/0", "nonsense"):
        monkeypatch.setenv("KANABO_REDIS_URL", url)
        bad = findings(doctor_checks.redis)["redis url"]
        assert bad.state == "fail"
        assert "secret" not in bad.seen
        assert password not in bad.seen
