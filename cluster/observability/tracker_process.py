"""The child process of a tracker: writes to MLflow or Trackio what it is told. Any Python from 3.9 on runs it, by path.

The first line of standard input is {"kind": "mlflow", "project", "name", "directory", "address", "config"}; every
further line is {"step": 3, "values": {"reward/mean": 0.5}}. The run ends with standard input. The answer to the first
line is one line, once the run is open.
"""

import json
import os
import sys


def mlflow_run(run):
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_tracking_uri(run["address"] or "file://" + run["directory"])
    mlflow.set_experiment(run["project"])
    mlflow.start_run(run_name=run["name"])
    mlflow.log_dict(run["config"], "recipe.json")
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
