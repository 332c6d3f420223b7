"""`kanabo` itself, status and export: they show what is there, change nothing, and their exit codes hold."""

from __future__ import annotations

import base64
import fcntl
import http.server
import json
import math
import os
import resource
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster import config
from cluster.buffer.server import Store
from cluster.commands import app as cli
from cluster.commands import evaluate, status
from tests.cluster.commands import end, make_run, write_checkpoint
from tests.models import random_llama

ROOT = Path(__file__).parents[2]


# ── kanabo ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_names_every_command_within_a_second():
    """A second of CPU: the clock on the wall would measure the machine's load."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run(
        [sys.executable, "-m", "cluster.commands.app", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert told.returncode == 0
    assert all(f"  {name} " in told.stdout for name in cli.COMMANDS)


def test_help_imports_no_command_and_nothing_heavy():
    call = "import sys, cluster.commands.app\ntry: cluster.commands.app.main(['--help'])\nexcept SystemExit: pass\n"
    code = f"{call}print(sorted(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = told.stdout.splitlines()[-1]
    for name in ("ray", "torch", "redis", "numpy", "pyarrow", "cluster.run", "cluster.commands.doctor"):
        assert f"'{name}'" not in loaded


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_says_what_it_does_and_its_exit_codes(kanabo, name):
    told = kanabo(name, "--help")
    assert told.code == 0
    assert "Exit codes: 0 " in told.out
    assert "--json" in told.out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_what_is_to_be_filled_in_is_in_capitals_and_said(name):
    module = import_module(cli.module_of(name))
    app = typer.Typer()
    app.command()(module.main)
    for parameter in typer.main.get_command(app).params:
        said = getattr(parameter, "help", "")
        assert said, parameter.name
        assert "[" not in said, "what is in brackets is taken for a colour, and not shown"
        if not getattr(parameter, "is_flag", False):
            assert parameter.metavar == (parameter.metavar or "").upper() != "", parameter.name


def test_an_unknown_command_is_told_the_nearest(kanabo):
    told = kanabo("exprt")
    assert (told.code, told.out) == (2, "")
    assert "Did you mean 'export'" in told.err


def test_json_writes_what_is_not_finite_as_null(capsys):
    cli.print_json({"a": math.nan, "b": [math.inf, 1.0], "c": Path("/x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0], "c": "/x"}


# ── status ──────────────────────────────────────────────────────────────────────────────────────────────────────


def states(kanabo, base: Path) -> dict[str, str]:
    return {row["run"]: row["state"] for row in kanabo("status", "--dir", base, "--json").document}


def test_a_run_is_what_it_left(kanabo, tmp_path):
    end(make_run(tmp_path, "finished"))
    end(make_run(tmp_path, "stopped", steps=9))
    end(make_run(tmp_path, "failed", steps=9), error=True)
    make_run(tmp_path, "killed")
    (tmp_path / "no-run").mkdir()
    assert states(kanabo, tmp_path) == {
        "finished": "finished", "stopped": "stopped", "failed": "failed", "killed": "silent",
    }  # fmt: skip


def test_a_summary_of_an_earlier_life_does_not_count(kanabo, tmp_path):
    run = make_run(tmp_path, "resumed")
    end(run, error=True)
    os.utime(run / "summary.json", (1, 1))
    os.utime(run / "error.txt", (1, 1))
    assert states(kanabo, tmp_path) == {"resumed": "silent"}
    (run / "summary.json").write_text("{}")
    assert states(kanabo, tmp_path) == {"resumed": "finished"}


def test_a_run_is_live_while_its_redis_is_owned_and_looking_takes_no_lock(kanabo, tmp_path):
    run = make_run(tmp_path, "owned")
    end(run)
    with Store(run / "redis"):
        assert states(kanabo, tmp_path) == {"owned": "live"}
    assert states(kanabo, tmp_path) == {"owned": "finished"}
    with (run / "redis" / "owner.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_is_live_while_its_learner_is_an_actor(tmp_path):
    run = make_run(tmp_path, "far")
    actors = ["kanabo:far:policy:learner:0", "kanabo:other:policy:learner:1", "somebody", "kanabo:far:judge:j:0"]
    assert status.runs_of(actors) == {"far", "other"}
    assert status.status(run, (), {"far"}).state == "live"
    assert status.status(run, (), {"other"}).state == "silent"


def test_values_are_the_last_known_and_unknown_is_null(kanabo, tmp_path):
    make_run(tmp_path, "a", steps=5)
    make_run(tmp_path, "b", rows=0)
    a, b = kanabo("status", "--dir", tmp_path, "--json").document
    assert (a["step"], a["steps"], a["reward"], a["accuracy"]) == (2, 5, 0.2, 0.25)
    assert a["staleness"] is a["tokens_per_s"] is None
    assert a["age_s"] < 60
    assert (b["step"], b["reward"]) == (0, None)
    table = kanabo("status", "--dir", tmp_path).out
    assert "2/5" in table
    assert "0.200" in table


def test_the_table_cuts_no_value_in_the_width_of_a_pipe(kanabo, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    make_run(tmp_path, "quickstart", steps=120)
    table = kanabo("status", "--dir", tmp_path).out
    assert "…" not in table
    assert "quickstart" in table
    assert "2/120" in table


def test_runs_are_looked_for_where_jobs_write_them(kanabo, tmp_path, monkeypatch):
    make_run(tmp_path, "shared")
    monkeypatch.setenv("KANABO_RUNS", str(tmp_path))
    assert [row["run"] for row in kanabo("status", "--json").document] == ["shared"]


# ── export ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_becomes_a_plain_model_directory(kanabo, tmp_path):
    run = make_run(tmp_path, "a")
    for step in (9, 10):
        write_checkpoint(run, step)
    told = kanabo("export", "a", "--dir", tmp_path, "--to", tmp_path / "out" / "model", "--json")
    assert told.code == 0
    assert (told.document["step"], told.document["files"]) == (10, 3)
    written = tmp_path / "out" / "model"
    assert sorted(path.name for path in written.rglob("*")) == ["README.md", "config.json", "model.safetensors"]
    source = run / "checkpoints" / "global_step_10" / "model.safetensors"
    assert (written / "model.safetensors").read_bytes() == source.read_bytes()
    assert kanabo("export", run, "--step", 9, "--to", tmp_path / "nine").code == 0
    assert json.loads((tmp_path / "nine" / "config.json").read_text()) == {"step": 9}


def test_each_of_several_policies_becomes_a_directory_of_its_own(kanabo, tmp_path):
    run = make_run(tmp_path, "a")
    write_checkpoint(run, 9)
    part = run / "checkpoints" / "global_step_9" / "policies" / "critic"
    (part / "learner").mkdir(parents=True)
    (part / "config.json").write_text('{"policy": "critic"}')
    (part / "learner" / "state").write_text("")
    assert kanabo("export", run, "--to", tmp_path / "first").code == 0
    assert not (tmp_path / "first" / "policies").exists()
    assert kanabo("export", run, "--policy", "critic", "--to", tmp_path / "second").code == 0
    assert sorted(path.name for path in (tmp_path / "second").rglob("*")) == ["README.md", "config.json"]
    assert json.loads((tmp_path / "second" / "config.json").read_text()) == {"policy": "critic"}
    told = kanabo("export", run, "--policy", "cirtic", "--to", tmp_path / "third")
    assert told.code == 2
    assert "has no policy 'cirtic'. There are: policy, critic." in told.err


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that an upload asks; `server.files` are those that it has got."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.asked.append((self.path, self.headers["Authorization"]))
        if server.refuses:
            return self.answer(403, {"error": "you may not"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif self.path == "/api/repos/create":
            server.made = json.loads(body)
        url = f"http://{self.headers['Host']}/me/sums"
        return self.answer(200, {"url": url, "commitUrl": f"{url}/commit/1", "commitOid": "1"})

    def answer(self, code: int, document: Any) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch):
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.made, server.refuses = [], {}, {}, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_key")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_uploaded_with_a_card_of_its_figures_and_recipe(kanabo, tmp_path, hub):
    run = make_run(tmp_path, "a")
    environment = {"use": "program", "options": {"command": ["sh"], "env": {"KEY": "hidden"}}}
    (run / "config.toml").write_text(
        config.dump(config.parse({"run": {"name": "a"}, "rollout": {"environment": environment}}))
    )
    write_checkpoint(run, 1)
    told = kanabo("export", run, "--to", tmp_path / "m", "--push-to-hub", "me/sums", "--json")
    assert told.code == 0, told.err
    assert told.document["url"] == f"http://127.0.0.1:{hub.server_port}/me/sums"
    assert (hub.made["name"], hub.made["visibility"]) == ("sums", "private")
    assert {key for _, key in hub.asked} == {"Bearer hf_key"}
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    card = hub.files["README.md"].decode()
    assert "after 1 steps" in card
    assert "| `eval/accuracy` | 0.25 (step 0) | 0.25 (step 0) |" in card
    assert "| `reward/mean` | 0.1 (step 1) | 0.1 (step 1) |" in card, "figures of later steps are not this model's"
    assert 'name = "a"' in card
    assert "hidden" not in card
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "m").iterdir())


def test_an_upload_that_is_refused_leaves_the_model_here(kanabo, tmp_path, hub):
    write_checkpoint(make_run(tmp_path, "a"), 1)
    hub.refuses = True
    told = kanabo("export", "a", "--dir", tmp_path, "--to", tmp_path / "m", "--push-to-hub", "me/sums", "--public")
    assert told.code == 1
    assert "--push-to-hub 'me/sums'" in told.err
    assert (tmp_path / "m" / "model.safetensors").exists()


@pytest.mark.parametrize(("repository", "token", "error"), [("a b", "k", "'a b'"), ("me/sums", "", "Set HF_TOKEN")])
def test_an_upload_that_cannot_be_is_refused_before_the_copy(
    kanabo, tmp_path, hub, monkeypatch, repository, token, error
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    write_checkpoint(make_run(tmp_path, "a"), 1)
    told = kanabo("export", "a", "--dir", tmp_path, "--to", tmp_path / "m", "--push-to-hub", repository)
    assert told.code == 2
    assert error in told.err
    assert not (tmp_path / "m").exists()
    assert not hub.asked


def test_a_step_that_does_not_exist_names_those_that_do(kanabo, tmp_path):
    run = make_run(tmp_path, "a")
    assert "no checkpoint yet" in kanabo("export", "a", "--dir", tmp_path, "--to", tmp_path / "m").err
    for step in (40, 9):
        write_checkpoint(run, step)
    (run / "checkpoints" / "global_step_50").mkdir()  # not committed
    told = kanabo("export", "a", "--dir", tmp_path, "--step", 50, "--to", tmp_path / "m")
    assert (told.code, told.out) == (2, "")
    assert "it has 9, 40." in told.err
    assert not (tmp_path / "m").exists()


def test_nothing_is_written_over(kanabo, tmp_path):
    write_checkpoint(make_run(tmp_path, "a"), 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert kanabo("export", "a", "--dir", tmp_path, "--to", tmp_path / "mine").code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_checkpoint_that_is_removed_meanwhile_leaves_no_half_model(kanabo, tmp_path, monkeypatch):
    source = write_checkpoint(make_run(tmp_path, "a"), 1)
    from cluster.commands import export

    copy = export._copy

    def remove_after_the_first(*arguments: Any) -> None:
        copy(*arguments)
        (source / "manifest.json").unlink(missing_ok=True)  # what `checkpoint.save` removes first

    monkeypatch.setattr(export, "_copy", remove_after_the_first)
    told = kanabo("export", "a", "--dir", tmp_path, "--to", tmp_path / "m")
    assert told.code == 1
    assert "vanished" in told.err
    assert not [path.name for path in tmp_path.iterdir() if path.name != "a"]


def test_adapters_are_merged_into_their_base_or_given_alone(kanabo, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = random_llama(tmp_path / "base", tied=True)
    sampling = {"do_sample": False, "temperature": 0.6, "eos_token_id": [2, 5]}  # transformers refuses to write it
    (base / "generation_config.json").write_text(json.dumps(sampling))
    run = make_run(tmp_path, "a")
    (run / "config.toml").write_text(config.dump(config.parse({"model": {"path": str(base)}})))
    source = write_checkpoint(run, 3)
    assert "has no [learner.lora]" in kanabo("export", run, "--to", tmp_path / "x", "--adapter").err
    for whole in ("config.json", "model.safetensors"):
        (source / whole).unlink()
    torch.manual_seed(0)
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, lora_alpha=6))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(source)

    told = kanabo("export", run, "--to", tmp_path / "adapter", "--adapter", "--json")
    assert told.code == 0
    ab = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    assert kanabo("export", run, "--to", tmp_path / "merged", "--json").code == 0
    assert not list((tmp_path / "merged").glob("adapter*"))
    stem = "model.layers.1.self_attn.v_proj"
    delta = ab[f"base_model.model.{stem}.lora_B.weight"] @ ab[f"base_model.model.{stem}.lora_A.weight"]
    assert delta.abs().max() > 0.01
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    torch.testing.assert_close(merged[f"{stem}.weight"], before[f"{stem}.weight"] + 3 * delta, atol=1e-6, rtol=0)
    assert torch.equal(merged["lm_head.weight"], before["lm_head.weight"])
    exported = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert exported["eos_token_id"] == [2, 5]


def test_an_unknown_run_names_those_there_are(kanabo, tmp_path):
    make_run(tmp_path, "quickstart")
    told = kanabo("export", "quickstrt", "--dir", tmp_path, "--to", tmp_path / "m")
    assert told.code == 2
    assert "Did you mean 'quickstart'" in told.err


# ── aliases ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 and 2 that has ended."""
    run = make_run(tmp_path, "short")
    for step in (1, 2):
        write_checkpoint(run, step)
    end(run)
    return run


@pytest.mark.parametrize(("alias", "step"), [("short@latest", 2), ("short@1", 1), ("short@2", 2), ("short", 2)])
def test_an_alias_names_the_checkpoint_to_export(kanabo, tmp_path, short, alias, step):
    told = kanabo("export", alias, "--to", tmp_path / "out", "--dir", tmp_path, "--json")
    assert (told.code, told.document["step"]) == (0, step)
    by_path = kanabo("export", tmp_path / alias, "--to", tmp_path / "again", "--json")
    assert by_path.document["step"] == step


def test_an_alias_and_an_option_that_name_two_steps_are_refused(kanabo, tmp_path, short):
    told = kanabo("export", "short@1", "--step", 2, "--to", tmp_path / "out", "--dir", tmp_path)
    assert (told.code, "two steps" in told.err) == (2, True)


UNKNOWN = ["nosuch", "nosuch@latest", "nosuch@3", "short@", "short@x", "short@-1", "short@1.0", "short@٣",
           "short@latest@latest", "short@" + "9" * 40, "@latest", "@", "a" * 5000, "..", "short@99"]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ("export", "{}", "--to", "{to}"),
        ("inspect", "{}"),
        ("rescore", "{}", "--reward", "exact"),
        ("replay", "{}"),
        ("console", "{}"),
        ("scale", "{}", "rollout=1"),
        ("status", "{}"),
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_run_or_alias_is_refused_in_one_line(kanabo, tmp_path, short, command):
    for alias in UNKNOWN:
        told = kanabo(*(word.format(alias, to=tmp_path / "out") for word in command), "--dir", tmp_path)
        assert told.code == 2, (alias, told)
        assert told.out == ""
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1, told.err


@pytest.mark.parametrize("alias", ["short@latest", "short"])
@pytest.mark.parametrize("command", ["inspect", "rescore", "replay", "scale"])
def test_the_newest_state_of_a_run_is_the_run(kanabo, tmp_path, short, command, alias):
    """Each of these finds the run, and says what it lacks."""
    more = {"rescore": ["--reward", "exact"], "scale": ["rollout=1"]}.get(command, [])
    told = kanabo(command, alias, *more, "--dir", tmp_path)
    assert told.code == 2
    assert "there is no run" not in told.err
    assert "short" in told.err


@pytest.mark.parametrize("alias", ["short", "short@latest"])
def test_status_shows_the_runs_that_are_named(kanabo, tmp_path, short, alias):
    make_run(tmp_path, "another")
    told = kanabo("status", alias, "--dir", tmp_path, "--json")
    assert (told.code, [row["run"] for row in told.document]) == (0, ["short"])
    assert "another" not in kanabo("status", alias, "--dir", tmp_path).out


def test_a_model_to_evaluate_may_be_a_checkpoint_of_a_run(tmp_path, short):
    assert evaluate.model_of("short@latest", str(tmp_path)) == str(short / "checkpoints" / "global_step_2")
    assert evaluate.model_of("short@1", str(tmp_path)) == str(short / "checkpoints" / "global_step_1")
    assert evaluate.model_of(f"{short}@1", None) == str(short / "checkpoints" / "global_step_1")
    assert evaluate.model_of("tiny:addition", None) == "tiny:addition"


@pytest.mark.parametrize(
    "alias", ["policy@latest", "previous", "initial", "nosuch@latest", "short@7", "short@x", "{run}"]
)
def test_a_model_that_no_run_has_is_refused_in_one_line(kanabo, tmp_path, short, alias):
    told = kanabo("evaluate", alias.format(run=short), "--tasks", "addition", "--dir", tmp_path)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1, told.err


@pytest.mark.parametrize("damage", [b"", b"[run\n", b"\xff\xfe", b"a = 1\na = 2\n", b"learner = 3\n", b"buffer = []\n"])
def test_a_damaged_recipe_of_one_run_is_said_in_one_line_and_hides_no_other(kanabo, tmp_path, short, damage):
    (make_run(tmp_path, "another") / "config.toml").write_bytes(damage)
    told = kanabo("status", "--dir", tmp_path, "--json")
    assert (told.code, {row["run"] for row in told.document}) == (0, {"short", "another"})
    if not damage:
        return  # an empty recipe is one with defaults
    rescore, scale = ["rescore", "another", "--reward", "exact"], ["scale", "another", "rollout=1"]
    for command in (["inspect", "another"], rescore, scale, ["console", "another"]):
        told = kanabo(*command, "--dir", tmp_path)
        assert told.code == 2, command
        assert told.err.startswith("error: ")
        assert "config.toml" in told.err


@pytest.mark.parametrize(
    ("line", "found"),
    [("kanabo sc", "scale"), ("kanabo inspect fi", "first"), ("kanabo run quick", "quickstart"), ("kanabo xy", "")],
)
def test_a_shell_completes_commands_runs_and_recipes(line, found, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.toml").touch()
    asked = {
        "_KANABO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
        "KANABO_RUNS": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "cluster.commands.app"], capture_output=True, text=True, cwd=ROOT, env=os.environ | asked
    )
    assert done.stdout.split() == ([found] if found else []), done.stderr
