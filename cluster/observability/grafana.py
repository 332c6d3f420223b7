"""Grafana dashboards, made with Ray's panel classes: `python -m cluster.observability.grafana [DIR]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ray.dashboard.modules.metrics.dashboards.common import DashboardConfig, Panel, Row, Target
from ray.dashboard.modules.metrics.grafana_dashboard_factory import _generate_grafana_panels

from cluster.observability.prometheus import exported, series

PLACE = Path("deploy/grafana")


DASHBOARDS: dict[str, dict[str, list[str]]] = {
    "Pipeline": {
        "Reward and evaluation accuracy": ["reward/mean", "eval/accuracy"],
        "Steps": ["learner/steps"],
        "Tokens a second, sampled": ["rollout/tokens_per_s"],
        "Seconds of a step, and of waiting in it": ["learner/step_s", "learner/wait_s"],
        "Groups outstanding": ["buffer/outstanding_groups"],
        "Staleness, steps": ["policy/staleness_steps", "policy/staleness_max_steps"],
        "Length, tokens": ["rollout/length_tokens"],
        "Cut short": ["rollout/truncated_frac"],
        "Observations cut to the context": ["rollout/num_cut_observations"],
    },
    "Judges": {
        "Queue": ["judge/*_queue_depth"],
        "Longest wait in it, s": ["judge/*_queue_age_s"],
        "Latency, s": ["judge/*_latency_p50_s", "judge/*_latency_p95_s"],
        "Answered from what is known": ["judge/*_hit_frac"],
        "Unreadable or failed": ["judge/*_invalid_frac"],
        "Known answers found": ["judge/*_canary_frac"],
        "Agreement, consistency, first position": [
            "judge/*_agreement_frac",
            "judge/*_consistency_frac",
            "judge/*_first_position_frac",
        ],
        "Cost, tokens": ["judge/*_cost_tokens"],
        "Circuits open": ["judge/*_open_circuits"],
    },
    "Rewards": {
        "Mean by reward": ["reward/*_mean"],
        "Mean and spread": ["reward/mean", "reward/std"],
        "Known": ["reward/known_frac", "reward/*_known_frac"],
        "Failed": ["reward/*_failed_frac"],
        "Groups of equal rewards": ["reward/zero_variance_frac"],
        "Trained on under old scores": ["reward/outdated_frac"],
        "Alarms": ["monitor/*_alarms"],
    },
    "Weights": {
        "Engine and learner apart, nats": [
            "policy/logprob_diff_mean_nats",
            "policy/logprob_diff_max_nats",
            "policy/logprob_diff_floor_nats",
        ],
        "Fetch and pause, s": ["weights/fetch_s", "weights/pause_s"],
        "Gradient norm": ["learner/grad_norm"],
        "Entropy, nats": ["loss/entropy_nats"],
        "Loss": ["loss/total"],
        "Ratios clipped": ["loss/clipped_frac"],
    },
    "Engines": {
        "Sequences in flight, and waiting": ["vllm:num_requests_running", "vllm:num_requests_waiting"],
        "Tokens a second": ["vllm:generation_tokens_total", "vllm:prompt_tokens_total"],
        "Key-value cache in use": ["vllm:kv_cache_usage_perc"],
        "Requests turned out of the cache, a second": ["vllm:num_preemptions_total"],
        "Seconds of a request, and of its waiting (mean)": [
            "vllm:e2e_request_latency_seconds",
            "vllm:request_queue_time_seconds",
        ],
    },
    "Failures": {
        "Infrastructure": ["failures/num_infrastructure"],
        "Data": ["failures/num_data"],
        "Leases lost": ["failures/num_leases_lost"],
        "Groups that cannot be read": ["failures/num_unreadable"],
        "Groups that rewards died over": ["failures/num_condemned"],
        "Scores that failed": ["reward/failed_scores"],
        "Workers": ["workers/num_*"],
        "Groups dropped, by reason": ["buffer/num_dropped_*"],
    },
}
"""Dashboard → panel → metrics: the run's, a counter as its total; or vLLM's (`vllm:…`; `_total` is shown as a rate,
`_seconds` as a mean)."""


def found_as(metric: str) -> str:
    """The name that Prometheus knows it by."""
    return f"ray_{metric.replace(':', '_')}" if metric.startswith("vllm:") else series(metric.replace("*", "ANY"))


def _of_vllm(name: str) -> str:
    labels = '{model_name=~"$run"}'
    if name.endswith("_total"):
        return f"rate({name}{labels}[1m])"
    if name.endswith("_seconds"):
        return f"rate({name}_sum{labels}[1m]) / rate({name}_count{labels}[1m])"
    return f"{name}{labels}"


def expression(metric: str) -> str:
    """What Prometheus is asked; a `*` stands for any part of a name."""
    if metric.startswith("vllm:"):
        return _of_vllm(found_as(metric))
    if "*" not in metric:
        return f'{found_as(metric)}{{run=~"$run"}}'
    before, after = metric.split("*")
    after = after.replace("/", "_") + ("_total" if series(metric.replace("*", "ANY")).endswith("_total") else "")
    return f'{{__name__=~"ray_{exported(before)}.+{after}", run=~"$run"}}'


def dashboard(name: str, panels: dict[str, list[str]]) -> dict[str, Any]:
    """As Grafana imports it: data source and runs are chosen on the page."""
    made = []
    for number, (title, metrics) in enumerate(panels.items(), start=1):
        targets = [Target(expr=_escaped(expression(m)), legend="{{run}} {{__name__}}") for m in metrics]
        about = ", ".join(metrics)
        made.append(Panel(title, about, number, _unit(metrics[0]), targets, fill=0, stack=False))
    rows = [Row(title=name, id=0, panels=made)]
    settings = DashboardConfig(
        name=name, default_uid=f"kanabo-{name.lower()}", rows=rows, standard_global_filters=[], base_json_file_name=""
    )
    return {
        "title": f"Kanabo: {name}",
        "uid": settings.default_uid,
        "tags": ["kanabo"],
        "schemaVersion": 27,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": _generate_grafana_panels(settings, [], ""),
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "run",
                    "type": "query",
                    "datasource": "${datasource}",
                    "query": "label_values(ray_kanabo_learner_steps, run)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                },
            ]
        },
    }


def _escaped(expression: str) -> str:
    """Ray fills in filters of its own by `str.format`."""
    return expression.replace("{", "{{").replace("}", "}}")


def _unit(metric: str) -> str:
    if metric.endswith(("_frac", "_perc")):
        return "percentunit"
    return "s" if metric.endswith(("_s", "_seconds")) and not metric.endswith("_per_s") else "short"


def write(place: Path) -> list[Path]:
    """One JSON file per dashboard; the same bytes every time."""
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for name, panels in DASHBOARDS.items():
        path = place / f"{name.lower()}.json"
        path.write_text(json.dumps(dashboard(name, panels), indent=1, sort_keys=True) + "\n")
        written.append(path)
    return written


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE):
        print(path)
