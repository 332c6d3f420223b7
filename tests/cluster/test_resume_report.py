"""A start in a used directory: what differs is named, a finished run is not started, old requests are told."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time

import pytest
import typer

from cluster import config, run
from cluster.buffer import ReplicaCounts
from cluster.commands import resume_report, scale
from cluster.config import parse
from cluster.driver import preflight
from cluster.errors import KanaboError
from tests.cluster.commands import end, make_run, write_checkpoint


def recipe_of(base, name: str, text: str = "") -> str:
    path = base / "recipe.toml"
    path.write_text(f'[run]\nname = "{name}"\ndir = "{base}"\n{text}')
    return str(path)


def started(recipe: str, *overrides: str, **options) -> int:
    with pytest.raises(typer.Exit) as left:
        run.main(recipe, list(overrides), **options)
    return left.value.exit_code


@pytest.fixture
def finished(tmp_path):
    directory = make_run(tmp_path, "a", steps=2)
    write_checkpoint(directory, 2)
    (directory / "summary.json").write_text(json.dumps({"steps": 2, "wall_s": 12.5}))
    return directory


def test_a_finished_run_is_not_started_again_and_its_summary_stays(tmp_path, finished, capsys):
    begun = time.monotonic()
    before = (finished / "summary.json").read_bytes()
    assert started(recipe_of(tmp_path, "a"), "learner.steps=2") == 0
    assert time.monotonic() - begun < 5
    assert "nothing left to do" in " ".join(capsys.readouterr().out.split())
    assert (finished / "summary.json").read_bytes() == before
    assert not (finished / "redis").exists(), "no server was started"


def test_a_finished_run_as_json_is_its_summary(tmp_path, finished, capsys):
    assert started(recipe_of(tmp_path, "a"), "learner.steps=2", as_json=True) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["wall_s"] == 12.5
    assert "nothing left to do" in " ".join(told.err.split())


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_finished_run_with_another_recipe_says_what_differs(tmp_path, finished, capsys, dry_run):
    changed = ["learner.steps=2", "learner.schedule.lr=0.5"]
    assert started(recipe_of(tmp_path, "a"), *changed, dry_run=dry_run) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "nothing left to do" in told
    assert re.search(r"learner\.schedule\.lr: \S+ -> 0\.5", told)


def test_a_finished_run_says_so_in_about_a_second_of_computing(tmp_path, finished):
    """Of processor time: what else the machine does has no part in it."""
    command = [sys.executable, "-m", "cluster.run", recipe_of(tmp_path, "a"), "learner.steps=2"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "nothing left to do" in " ".join(told.stdout.split())
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize("case", ["more steps", "a failed end", "no summary", "an older summary", "no checkpoint"])
def test_a_run_with_something_left_is_not_finished(tmp_path, case):
    directory = make_run(tmp_path, "a", steps=2)
    if case != "no checkpoint":
        write_checkpoint(directory, 2)
    if case != "no summary":
        end(directory, error=case == "a failed end")
    if case == "an older summary":
        os.utime(directory / "summary.json", (1, 1))
    settings = parse(
        {"run": {"name": "a", "dir": str(tmp_path)}, "learner": {"steps": 3 if case == "more steps" else 2}}
    )

    assert not resume_report.nothing_left(settings, directory, preflight.resume_point(settings, directory))


def test_the_dry_run_names_the_step_and_every_key_that_differs(tmp_path, capsys):
    directory = make_run(tmp_path, "a", steps=100, rows=8)
    write_checkpoint(directory, 8)
    changed = ["learner.steps=100", "learner.schedule.lr=0.5", "rewards=[{use='exact', weight=2.0}]"]
    assert started(recipe_of(tmp_path, "a"), *changed, dry_run=True) == 0
    said = " ".join(capsys.readouterr().out.split())
    old = config.RunConfig().learner.schedule.lr
    assert "Resumes from step 8 of 100" in said
    assert "92 steps are left" in said
    assert f"learner.schedule.lr: {old!r} -> 0.5" in said
    assert "rewards[0].weight: 1.0 -> 2.0" in said


def test_a_new_run_is_told_nothing_of_a_resume(tmp_path):
    settings = parse({"run": {"name": "new", "dir": str(tmp_path)}})
    assert resume_report.report(settings, tmp_path / "new", None) == []


@pytest.mark.parametrize(
    ("before", "now", "key", "values"),
    [
        ({}, {"learner": {"lora": {"rank": 4}}}, "learner.lora.rank", (None, 4)),
        ({"learner": {"lora": {"rank": 4}}}, {}, "learner.lora.rank", (4, None)),
        ({}, {"rollout": {"prompt_variants": ["a", "b"]}}, "rollout.prompt_variants", (["orig"], ["a", "b"])),
        ({}, {"tasks": {"options": {"path": "x"}}}, "tasks.options.path", (None, "x")),
        ({}, {"judges": {"j": {"kind": "keyword"}}}, "judges.j.kind", (None, "keyword")),
    ],
)
def test_keys_that_come_go_or_change_are_named(before, now, key, values):
    assert resume_report.changes(parse(before), parse(now))[key] == values


def test_the_same_recipe_differs_in_nothing():
    assert resume_report.changes(parse({}), parse({"resume": "off"})) == {}


# ── requests for workers ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def requests(redis_url):
    wishes = ReplicaCounts(redis_url, f"requests-{time.monotonic_ns()}")
    yield wishes
    wishes.close()


def workers(count: int):
    return parse({"run": {"name": "a"}, "rollout": {"workers": count}})


def test_a_request_of_a_former_life_is_told_when_it_is_applied_again(requests):
    requests.wish("rollout", 3)
    (said,) = scale.former(requests, workers(1), workers(1))
    assert "rollout=3" in said
    assert "kanabo scale a rollout=1" in said
    assert requests.wished() == {"rollout": 3}


def test_a_number_that_the_recipe_changes_takes_the_place_of_an_older_request(requests):
    requests.wish("rollout", 3)
    (said,) = scale.former(requests, workers(2), workers(1))
    assert "rollout=2 holds" in said
    assert requests.wished() == {}


def test_a_request_for_what_the_recipe_says_anyway_is_silent(requests):
    requests.wish("rollout", 2)
    requests.wish("judge:gone", 4)
    assert scale.former(requests, workers(2), workers(2)) == []
    assert requests.wished() == {}


@pytest.mark.parametrize(
    ("wanted", "up", "said"),
    [
        ({"rollout": 3}, {"rollout": 1}, "rollout: 2 still to come (1 up, 3 requested)"),
        ({"rollout": 1}, {"rollout": 2}, "rollout: 1 still to leave (2 up, 1 requested)"),
        ({"judge:j": 1}, {}, "judge:j: 1 still to come (0 up, 1 requested)"),
        ({"rollout": 1, "reward": 1}, {"rollout": 1, "reward": 1, "judge:j": 9}, ""),
    ],
)
def test_what_is_still_coming_is_said(wanted, up, said):
    assert scale.coming(wanted, up) == said


def test_a_scale_that_times_out_says_what_is_still_coming(requests):
    requests.staff({"rollout": 1, "reward": 1})
    with pytest.raises(KanaboError, match=r"after 0\.1 s rollout: 2 still to come"):
        scale.wait(requests, {"rollout": 3, "reward": 1}, 0.1)
