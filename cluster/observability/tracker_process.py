"""The child process of a tracker: writes to MLflow or Trackio what it is told. Any Python from 3.9 on runs it, by path.

The first line of standard input is {"kind": "mlflow", "project", "name", "directory", "address", "config"}; every
further line is {"step": 3, "values": {"reward/mean": 0.5}}. The run ends with standard input. The answer to the first
line is one line, once the run is open.
"""

import json
import os
import sys

MOST_PARAMS = 100
"""MLflow takes so many in one request."""


def flat(tree, before=""):
    """Yield the keys of a recipe, dotted, and their values as text."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, before + key + ".")
        else:
            yield before + key, str(value)[:500]


def mlflow_run(run):
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_tracking_uri(run["address"] or "sqlite:///" + os.path.join(run["directory"], "mlflow.db"))
    mlflow.set_experiment(run["project"])
    mlflow.start_run(run_name=run["name"])
    keys = list(flat(run["config"]))
    for start in range(0, len(keys), MOST_PARAMS):
        mlflow.log_params(dict(keys[start : start + MOST_PARAMS]))
    return (lambda step, values: mlflow.log_metrics(values, step=step)), mlflow.end_run


def trackio_run(run):
    os.environ.setdefault("TRACKIO_DIR", run["directory"])
    import trackio  # pyright: ignore[reportMissingImports]

    space = {"space_id": run["address"]} if run["address"] else {}
    trackio.init(project=run["project"], name=run["name"], config=run["config"], **space)
    return (lambda step, values: trackio.log(values, step=step)), trackio.finish


RUNS = {"mlflow": mlflow_run, "trackio": trackio_run}


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the packages print goes to standard error
    run = json.loads(sys.stdin.readline())
    os.makedirs(run["directory"], exist_ok=True)
    log, finish = RUNS[run["kind"]](run)
    answers.write("open\n")
    answers.close()
    for line in sys.stdin:
        told = json.loads(line)
        log(told["step"], told["values"])
    finish()


if __name__ == "__main__":
    main()
