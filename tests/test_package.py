"""`kanabo` as a user meets it: what it exports, how a reward travels, the handle of a run, and what a wheel holds."""

from __future__ import annotations

import ast
import json
import linecache
import os
import shutil
import signal
import site
import subprocess
import sys
import types
import venv
import zipfile
from email.parser import Parser
from importlib import import_module
from pathlib import Path

import pytest

import kanabo
from cluster import config, import_path
from cluster.commands import app
from cluster.config import shipped
from cluster.errors import ConfigError, KanaboError
from kanabo import sources
from rewards.base import Services
from rewards.registry import build_reward
from tests.rewards.groups import group
from tests.test_docs import ROOT, blocks

HIDING = ("actors", "learner", "rewards")
"""Names of packages of Kanabo's that a user's file may have, too."""


def python(*arguments: str, path: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A Python process that finds Kanabo in `path`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def evaluated(code: str, **options) -> object:
    """The JSON that a Python process prints in its last line."""
    done = python("-c", code, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_import_is_cheap():
    loaded = evaluated(
        "import json, sys; before = set(sys.modules); import kanabo; print(json.dumps([*{*sys.modules} - before]))"
    )
    assert isinstance(loaded, list)
    assert "kanabo" in loaded
    assert not {"cluster", "rewards", "pydantic", "numpy", "ray", "torch"} & set(loaded)


def test_starting_a_run_and_writing_a_reward_needs_no_ray_and_no_torch():
    code = (
        "import json, sys, kanabo; kanabo.Reward, kanabo.Scores, kanabo.Environment, kanabo.Shaper, kanabo.Run; "
        "kanabo.load('quickstart'); print(json.dumps(sorted(sys.modules)))"
    )
    loaded = evaluated(code)
    assert isinstance(loaded, list)
    assert "rewards.base" in loaded
    assert not {"ray", "torch", "vllm", "deepspeed", "redis"} & set(loaded)


def test_every_public_name_is_what_its_module_has():
    assert set(kanabo.MODULES) == set(kanabo.__all__)
    for name, module in kanabo.MODULES.items():
        assert getattr(kanabo, name) is getattr(import_module(module), name)
    assert kanabo.__version__
    with pytest.raises(AttributeError, match="Rewards"):
        kanabo.Rewards  # noqa: B018


def test_type_checkers_see_the_names_that_the_package_gives():
    tree = ast.parse((ROOT / "kanabo" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == kanabo.MODULES


def test_a_module_of_the_users_under_the_name_of_a_package_is_refused(tmp_path):
    (tmp_path / "rewards.py").write_text("mine = 1\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rewards, kanabo; kanabo.Reward"
    done = python("-c", code)
    assert f"a module 'rewards' from '{tmp_path / 'rewards.py'}'" in done.stderr


# ── the order of sys.path ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of the user's that have the names of Kanabo's packages."""
    folder = tmp_path / "user"
    folder.mkdir()
    for name in HIDING:
        (folder / f"{name}.py").write_text("def mine(completion):\n    return 1.0\n")
    monkeypatch.chdir(folder)
    return folder


def test_the_working_directory_comes_behind_the_packages(user):
    root, packages = import_path.ROOT, "/usr/lib/packages"
    for entry in ("", ".", str(user)):
        assert import_path.reordered([entry, root, packages]) == [root, packages, entry]
    assert import_path.reordered([packages, str(user)]) == [packages, root, str(user)], "an editable installation"
    assert import_path.reordered([root, packages]) == [root, packages]


def test_a_directory_that_hides_a_package_comes_behind_it_wherever_the_process_runs(user, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    path = [str(user), str(other), import_path.ROOT]
    assert import_path.reordered(path) == [str(other), import_path.ROOT, str(user)]


def test_in_a_checkout_nothing_changes(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert import_path.reordered(["", str(ROOT), "/x"]) == ["", str(ROOT), "/x"]


WORKER = """
import json, os, pickle, sys
sys.path.insert(0, os.getcwd())  # as Ray does in each of its workers
pickle.loads(b"ccluster.workers.reward\\nRewardActor\\n.")
import actors, learner, rewards.worker
files = [module.__file__ for module in (actors, learner, rewards)]
print(json.dumps({"files": files, "last": os.path.realpath(sys.path[-1])}))
"""


def test_files_of_the_users_hide_no_package_in_a_worker(user):
    found = evaluated(WORKER, cwd=user)
    assert isinstance(found, dict)
    assert found["files"] == [str(ROOT / name / "__init__.py") for name in ("actors", "learner", "rewards")]
    assert found["last"] == str(user), "the user's own modules are still found"


RECIPE = """
[run]
name = "mine"
[[rewards]]
use = "rewards.py:mine"
[[rewards]]
use = "helper:also_mine"
"""


@pytest.mark.parametrize("program", [["-m", "cluster.run"], ["-P", "-m", "kanabo", "run"]], ids=["module", "command"])
def test_files_of_the_users_hide_no_package_in_the_driver_and_are_rewards(user, program):
    (user / "recipe.toml").write_text(RECIPE)
    (user / "helper.py").write_text("def also_mine(completion):\n    return 1.0\n")
    done = python(*program, "recipe.toml", "--dry-run", cwd=user)
    assert done.returncode == 0, done.stdout + done.stderr


# ── recipes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("quickstart").run.name == "quickstart"
    assert config.load("dapo", ["learner.steps=3"]).learner.steps == 3
    (tmp_path / "quickstart").write_text('[run]\nname = "mine"\n')
    assert config.load("quickstart").run.name == "mine", "a file comes first"
    with pytest.raises(ConfigError, match=r"Did you mean 'quickstart'.*kanabo recipes"):
        config.load("quickstrat")
    with pytest.raises(ConfigError, match="does not exist"):
        config.load("nowhere/quickstart")


def test_a_shipped_recipe_finds_its_data_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in shipped.names():
        recipe = config.tree(name)
        path = recipe.get("data", recipe.get("tasks", {}).get("options", {})).get("path")
        assert path is None or (Path(path).is_absolute() and Path(path).is_file()), name
    monkeypatch.chdir(ROOT)
    assert config.load("follow_up").tasks.options["path"] == "deploy/recipes/data/arithmetic.jsonl"


def test_the_command_lists_every_recipe_with_its_first_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["recipes"])
    assert not ended.value.code
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    files = [path for folder in ("", "methods/", "offline/") for path in ROOT.glob(f"deploy/recipes/{folder}*.toml")]
    assert lines.keys() == {path.stem for path in files}, "no two recipes share a name"
    assert lines["quickstart"] == "Two-digit addition on a laptop: two cores, no GPU, no download."


def test_the_command_says_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"kanabo {kanabo.__version__}\n"


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_nested_or_dotted_and_checked(tmp_path):
    overrides = {"learner.schedule": {"lr": 1e-3}, "run": {"dir": str(tmp_path)}}
    settings = kanabo.load("quickstart", learner={"steps": 7}, **overrides)
    assert (settings.learner.steps, settings.learner.groups_per_step, settings.learner.schedule.lr) == (7, 64, 1e-3)
    assert settings.learner.schedule.warmup_steps == 10, "what an override does not name stays"
    again = kanabo.load(settings, learner={"steps": 8})
    assert again.learner.steps == 8
    assert again.learner.schedule == settings.learner.schedule
    with pytest.raises(ConfigError, match=r"unknown key 'learner\.stepz'"):
        kanabo.load("quickstart", learner={"stepz": 1})


def test_a_recipe_of_sections_is_not_changed(tmp_path):
    tree = {"run": {"dir": str(tmp_path)}, "learner": {"steps": 3}}
    assert kanabo.load(tree, learner={"steps": 4}).learner.steps == 4
    assert tree["learner"]["steps"] == 3


# ── rewards that travel ─────────────────────────────────────────────────────────────────────────────────────────


def cell(source: str, monkeypatch: pytest.MonkeyPatch, name: str = "<cell>", before: str = "") -> dict:
    """What a notebook's cell defines: names of `__main__` whose source the interpreter alone knows."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(before, vars(main))
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), vars(main))
    return vars(main)


CELL = """
import re
import math as m
from collections import Counter
import kanabo
from kanabo import Group, Reward, Scores, Services

PATTERN = {"number": r"\\d+"}

def numbers(text):
    return re.findall(PATTERN["number"], text)

def share(completion: str, answer: str) -> float:
    counts = Counter(numbers(completion))
    return m.fsum(n for number, n in counts.items() if number == answer) / max(1, sum(counts.values()))

class Longest(Reward):
    most: int = 3

    async def score(self, group: Group, services: Services) -> Scores:
        return Scores.of([min(self.most, len(numbers(r.text))) for r in group.rollouts])
"""


@pytest.mark.parametrize(("name", "values"), [("share", [1.0, 0.5, 0.0]), ("Longest", [1.0, 2.0, 3.0])])
async def test_a_reward_of_a_cell_scores_where_the_cell_is_not(tmp_path, monkeypatch, name, values):
    with monkeypatch.context() as notebook:
        reward = cell(CELL, notebook)[name]
        settings = kanabo.load({"run": {"dir": str(tmp_path), "name": "cell"}}, rewards=reward)
    (section,) = settings.rewards
    file, _, named = section.use.rpartition(":")
    assert (Path(file).parent, named) == (tmp_path, name)
    services = Services()
    scores = await build_reward(section, "rewards[0]").score(group("4", "4 5", "1 2 3 5", answer="4"), services)
    services.close()
    assert scores.values.tolist() == values


def test_a_changed_reward_is_another_reward(tmp_path, monkeypatch):
    texts = ["def r(completion):\n    return 1.0\n", "def r(completion):\n    return 2.0\n"]
    uses = [
        sources.name_of(cell(text, monkeypatch, f"<cell {i}>")["r"], tmp_path, "run")
        for i, text in enumerate(texts * 2)
    ]
    assert uses[0] == uses[2] != uses[1] == uses[3]


def test_a_reward_of_a_module_is_named_and_not_copied(tmp_path):
    from rewards.builtin.exact import Exact

    assert sources.name_of(Exact, tmp_path, "run") == "rewards.builtin.exact:Exact"
    assert not list(tmp_path.iterdir())


CLOSURE = """
def make(bonus):
    def reward(completion):
        return bonus
    return reward
reward = make(1)
"""
OBJECT = """
import re
P = re.compile("a")
def reward(completion):
    return P.match(completion)
"""
CANNOT = {
    "a lambda": ("reward = lambda completion: 1.0", "lambda"),
    "a closure": (CLOSURE, "'bonus'"),
    "an object": (OBJECT, "global 'P'"),
    "a call": ("import functools\nreward = functools.partial(max, 1)", "neither a function nor a class"),
    "no source": ("exec('def reward(completion):\\n    return 1.0')", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_travel_is_refused_with_its_name(tmp_path, monkeypatch, case):
    source, message = CANNOT[case]
    reward = cell(source, monkeypatch)["reward"]
    with pytest.raises(ConfigError, match=message):
        kanabo.load({"run": {"dir": str(tmp_path)}}, rewards=[reward])
    assert not list(tmp_path.iterdir())


# ── the handle ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recipe_that_cannot_run_is_raised_with_the_words_of_the_command(tmp_path):
    run = kanabo.run({"run": {"dir": str(tmp_path), "name": "wrong"}, "model": {"path": "tiny:no_such"}})
    with pytest.raises(ConfigError, match="no_such"):
        run.wait(120)
    assert not run.running
    assert run.log.read_text()
    assert run.checkpoint is None


def handle(tmp_path: Path, program: str, stop_s: float = 20.0) -> kanabo.Run:
    """A run whose process is `program`, which is ready once it has printed a line."""
    log = tmp_path / "run.log"
    log.write_bytes(b"error of an earlier start\n")
    begin = log.stat().st_size
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-uc", program], cwd=tmp_path, stdout=output, stderr=output)
    run = kanabo.Run(tmp_path / "run", process, log, begin, stop_s)
    next(run.follow())
    return run


GRACEFUL = """
import pathlib, signal, sys
def stop(*_):
    pathlib.Path("run").mkdir()
    pathlib.Path("run/summary.json").write_text('{"steps": 3}')
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready")
while True:
    signal.pause()
"""


def test_stop_asks_waits_and_returns_the_summary(tmp_path):
    run = handle(tmp_path, GRACEFUL)
    assert run.running
    assert run.summary is None
    with pytest.raises(TimeoutError, match="has not ended"):
        run.wait(0.01)
    assert run.stop() == {"steps": 3}
    assert not run.running
    assert run.wait() == run.stop() == run.summary == {"steps": 3}


def test_a_run_that_does_not_stop_is_killed_and_that_is_said(tmp_path):
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); signal.pause()"
    run = handle(tmp_path, program, stop_s=0.2)
    with pytest.raises(kanabo.RunFailed, match="did not stop within"):
        run.stop()
    assert not run.running


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (
            "print('ready'); print('failed ' + 'the learner died.\\nSee x'); exit(1)",
            kanabo.RunFailed,
            "the learner died",
        ),
        ("print('ready'); print('no mark'); exit(1)", kanabo.RunFailed, "no mark"),
        ("print('error ' + 'no such model'); exit(2)", ConfigError, "^no such model$"),
        ("import os; print('ready'); os.kill(os.getpid(), 9)", kanabo.RunFailed, signal.SIGKILL.name),
    ],
    ids=["failed", "unmarked", "refused", "killed"],
)
def test_a_failure_is_raised_with_its_cause(tmp_path, program, error, message):
    with pytest.raises(error, match=message) as raised:
        handle(tmp_path, program).wait(60)
    assert "an earlier start" not in str(raised.value)


def test_what_a_run_prints_is_followed_to_its_end(tmp_path):
    run = handle(tmp_path, "import time; print('one'); time.sleep(0.7); print('two')")
    assert "".join(run.follow()) == "one\ntwo\n"


def test_a_directory_of_another_process_is_read_and_not_stopped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "rewa')
    (tmp_path / "samples.jsonl").write_text('{"step": 1, "text": "47"}\n')
    run = kanabo.Run(tmp_path)
    assert run.metrics() == [{"step": 1, "reward/mean": 0.5}]
    assert run.samples() == [{"step": 1, "text": "47"}]
    assert list(run.groups()) == []
    assert run.checkpoint is run.summary is None
    for call in (run.stop, run.wait):
        with pytest.raises(KanaboError, match="not started by this handle"):
            call()


# ── the wheel ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built from a copy."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("actors", "cluster", "kanabo", "learner", "rewards", "deploy/recipes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    done = python("-c", code, cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_has_recipes_types_and_the_readme(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
    recipes = ROOT / "deploy" / "recipes"
    files = [*recipes.rglob("*.toml"), *recipes.rglob("*.jsonl"), *recipes.rglob("*.py")]
    assert {f"kanabo/recipes/{path.relative_to(recipes)}" for path in files} <= names
    assert {f"{name}/py.typed" for name in ("actors", "cluster", "kanabo", "learner", "rewards")} <= names
    assert {"cluster/buffer/scripts/claim.lua", "cluster/observability/console/static/index.html"} <= names
    assert not [name for name in names if name.startswith(("tests", "deploy", "docs"))]
    message = Parser().parsestr(metadata)
    assert message["Description-Content-Type"] == "text/markdown"
    assert str(message.get_payload()).startswith("# Kanabo")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel's files, and this environment's packages behind them."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return folder / "bin" / "python"


def run_installed(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_kanabo_has_its_recipes_and_their_data(installed, user):
    code = (
        "import json, kanabo; from cluster.config import shipped; settings = kanabo.load('follow_up'); "
        "print(json.dumps([kanabo.__file__, str(shipped.directory()), settings.tasks.options['path']]))"
    )
    package, folder, data = map(Path, json.loads(run_installed(installed, "-c", code, cwd=user)))
    assert package.is_relative_to(installed.parents[1])
    assert folder == package.parent / "recipes"
    assert data == folder / "data" / "arithmetic.jsonl"


def test_beside_files_of_the_users_an_installed_kanabo_runs_a_recipe_and_their_reward_in_the_sandbox(installed, user):
    (user / "rewards.py").write_text(
        "from rewards.parsing.answers import __name__ as ours\n"  # Kanabo's, though this file is rewards.py
        "def mine(completion):\n    return float(ours == 'rewards.parsing.answers')\n"
    )
    override = 'rewards=[{use = "exact"}, {use = "rewards.py:mine", untrusted = true}]'
    told = run_installed(installed, "-m", "cluster.run", "dapo", override, "--dry-run", "--json", cwd=user)
    assert [reward["use"] for reward in json.loads(told)["rewards"]] == ["exact", "rewards.py:mine"]


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    """The one that trains runs in tests/end_to_end/test_python.py."""
    monkeypatch.chdir(tmp_path)
    examples = blocks("python", "python")
    assert len(examples) == 3
    for number in (0, 2):
        cell(examples[number], monkeypatch, f"docs/python.md, block {number}", before="import kanabo")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_the_page_names_every_part_of_the_handle():
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    for name in [name for name in dir(kanabo.Run) if not name.startswith("_")]:
        assert name == "name" or f"`{name}" in text, name
