"""What Prometheus finds on a node of a running job: a value for every panel of every dashboard."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest

from cluster.observability import grafana
from rewards.monitors import Alarm, Monitor
from tests.end_to_end import jobs

RECIPE = """
[[rewards]]
use = "judge"
name = "words"
blocking = false
weight = 0.1
missing = 0.0
options = { judge = "words", template = "pairwise", votes = 2, temperature = 1.0 }

[judges.words]
kind = "keyword"
options = { keywords = ["1", "2", "3"] }
canary_every = 4

[[monitors]]
use = "tests.end_to_end.test_scraped:Nervous"

[learner]"""


class Nervous(Monitor):
    def observe(self, step, row):
        return Alarm("nervous", step, "eval/accuracy", "for the panel.") if "eval/accuracy" in row else None


def names(address: str) -> set[str]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line.startswith(("ray_kanabo", "ray_vllm"))}


def missing(found: set[str]) -> list[str]:
    """Metrics of panels that are not there; a counter is there from its first event on, and need not be."""
    wanted = [metric for panels in grafana.DASHBOARDS.values() for metrics in panels.values() for metric in metrics]
    wanted = [m for m in wanted if m.startswith("vllm:") or not grafana.found_as(m).endswith("_total")]
    patterns = {m: re.escape(grafana.found_as(m.replace("*", "STAR"))).replace("STAR", ".+") for m in wanted}
    patterns |= {m: f"{pattern}_sum" for m, pattern in patterns.items() if m.endswith("_seconds")}
    return [m for m, pattern in patterns.items() if not any(re.fullmatch(pattern, name) for name in found)]


@pytest.mark.job
@pytest.mark.verify
def test_every_panel_has_its_metric_in_a_running_job(tmp_path):
    log, recipe = tmp_path / "log", tmp_path / "scraped.toml"
    quickstart = (jobs.ROOT / "deploy" / "recipes" / "quickstart.toml").read_text()
    recipe.write_text(quickstart.replace("[learner]", RECIPE, 1))
    overrides = [
        *jobs.TINY, f"run.dir={tmp_path}", "run.name=scraped", "learner.steps=100000", "weights.probe_every=1",
    ]  # fmt: skip
    job, left, begun = jobs.start(overrides, recipe=str(recipe), log=log), ["all of them"], time.monotonic()
    try:
        while left and time.monotonic() - begun < 150 and job.poll() is None:
            time.sleep(3)
            address = re.search(r"metrics: (http\S+)", log.read_text())
            left = missing(names(address[1])) if address else left
    finally:
        jobs.end(job)
    assert not left, f"{left}\n{jobs.tail(log)}"


def test_committed_dashboards_are_those_of_the_code(tmp_path):
    for written in grafana.write(tmp_path):
        committed = jobs.ROOT / "deploy" / "grafana" / written.name
        assert json.loads(committed.read_text()) == json.loads(written.read_text()), (
            "run python -m cluster.observability.grafana"
        )
        assert all(p.get("targets") for p in json.loads(written.read_text())["panels"] if p["type"] != "row")
