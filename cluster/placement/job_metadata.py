"""The Ray job that a driver was submitted as, if it was: what `ray job list` and Ray's dashboard show of it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping

log = logging.getLogger(__name__)


def tell_job(facts: Mapping[str, str]) -> None:
    """Add these to the job's metadata; nothing outside of a submitted job. Ray must be initialised.

    Ray has no call for it after submission, so its entry is changed as Ray's own JobInfoStorageClient changes it.
    """
    id = submission_id()
    if id is None:
        return
    from ray._private.ray_constants import KV_NAMESPACE_JOB  # late: importing Ray takes half a second
    from ray.experimental import internal_kv

    key = f"_ray_internal_job_info_{id}".encode()
    entry = internal_kv._internal_kv_get(key, namespace=KV_NAMESPACE_JOB)
    if entry is None:
        log.warning("Ray has no entry of job %s: its metadata lacks %s", id, ", ".join(facts))
        return
    job = json.loads(entry)
    job["metadata"] = {**(job["metadata"] or {}), **facts}
    internal_kv._internal_kv_put(key, json.dumps(job).encode(), overwrite=True, namespace=KV_NAMESPACE_JOB)


def submission_id() -> str | None:
    """Return the id under which this driver was submitted as a Ray job; None outside of one."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return job.get("metadata", {}).get("job_submission_id")
