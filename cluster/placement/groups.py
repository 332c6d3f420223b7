"""Workers on Ray's nodes: placement groups that reserve, options that place, and a look whether there is room at all.

A placement group is found by its name, so nobody carries it about. Ray removes it with the driver that made it.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import get_placement_group, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import RunConfig
from cluster.errors import ConfigError
from cluster.placement.resources import (
    describe,
    engines_of_rank,
    place_of,
    placed_judges,
    places,
    reserved,
    unplaceable,
)

MOST_MEMORY_FRAC = 0.8
"""Largest share of a GPU that engines may take beside a learner."""


def on_gpu() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


# ── placement groups ────────────────────────────────────────────────────────────────────────────────────────


def _group(run_id: str) -> str:
    return f"kanabo:{run_id}:learner"


def reserve(config: RunConfig, run_id: str) -> None:
    """Ask for the run's placement group, if its layout has one. Who is placed in it waits until there is room."""
    if bundles := reserved(config, on_gpu()):
        selectors = [bundle.selector for bundle in bundles]
        placement_group(
            [dict(bundle.resources) for bundle in bundles],
            strategy="PACK",
            name=_group(run_id),
            bundle_label_selector=selectors if any(selectors) else None,  # pyright: ignore[reportArgumentType]
        )


def options(config: RunConfig, run_id: str, role: str, *, rank: int | None = None, beside: bool = False) -> dict:
    """For Ray's `.options` of an actor: resources, and where. `rank` of a learner; `beside` a learner, for an engine
    that takes one of the places that its layout reserves.
    """
    gpu = on_gpu()
    place, section = place_of(config, role, gpu), config.placement
    share = place.resources.get("GPU", 0.0)
    if section.layout == "colocated" and (rank is not None or beside):
        # Ray counts shares in steps of 1e-4, and together they must not exceed the one GPU.
        share = int(1e4 / (engines_of_rank(config) + 1)) / 1e4 if gpu else 0.0
    found: dict[str, Any] = {"num_cpus": place.resources["CPU"], "num_gpus": share}
    if beside or (rank is not None and section.layout != "any"):
        group = get_placement_group(_group(run_id))
        found["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=-1 if rank is None else rank
        )
    elif place.selector:
        found["label_selector"] = place.selector
    return found


def request(config: RunConfig, counts: dict[str, int] | None) -> None:
    """Ask the cluster's autoscaler for room for so many of each role and the learner; None takes the request back.

    A cluster holds one request: that of another run is replaced. Without an autoscaler nobody reads it.
    """
    wanted = places(config, on_gpu(), counts) if counts is not None else []
    request_resources(
        bundles=[dict(place.resources) for place in wanted], bundle_label_selectors=[place.selector for place in wanted]
    )


# ── what the cluster cannot hold ────────────────────────────────────────────────────────────────────────────


def check(config: RunConfig) -> None:
    """Raises ConfigError if the cluster, as it is now, cannot hold what the recipe asks for."""
    gpu = on_gpu()
    if config.weights.transport == "nccl" and not gpu:
        raise ConfigError(
            "weights.transport = 'nccl' needs GPUs, and the cluster has none. "
            "Set weights.transport=pull, or submit the job to a cluster with GPUs."
        )
    memory = engines_of_rank(config) * config.engine.gpu_memory_frac
    if config.placement.layout == "colocated" and gpu and memory > MOST_MEMORY_FRAC:
        raise ConfigError(
            f"placement.layout = 'colocated': the engines on a learner's GPU would take {memory:g} of its memory "
            f"(engine.gpu_memory_frac = {config.engine.gpu_memory_frac:g} each). Leave the learner some: lower that "
            f"until it is {MOST_MEMORY_FRAC:g} or less."
        )
    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = [(node["Resources"], node.get("Labels", {})) for node in nodes]
    if missing := unplaceable(places(config, gpu), there):
        have = [describe(resources, labels, gpu) for resources, labels in there]
        judges = ", replicas, cpus or gpus of judges" if placed_judges(config) else ""
        asked = f"rollout.workers = {config.rollout.workers}, learner.ranks = {config.learner.ranks}"
        raise ConfigError(
            f"the cluster cannot hold the run ({asked}, placement.layout = '{config.placement.layout}'): there is no "
            f"room for {'; '.join(missing)}. Its nodes have {'; '.join(have)}. Lower rollout.workers, learner.ranks"
            f"{judges} or engine.tensor_parallel, add nodes, or change [placement]."
        )
