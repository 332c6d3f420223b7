"""What finds a node and what does not, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import config
from cluster.driver.dry_run import plan
from cluster.errors import ConfigError
from cluster.placement.resources import ResourceRequest, labelled, matches, places, reserved, unplaceable

ENGINE, RANK = ResourceRequest("rollout", {"CPU": 1, "GPU": 2}), ResourceRequest("learner", {"CPU": 1, "GPU": 1})


def recipe(**placement):
    judges = {"critic": {"kind": "vllm", "model": "m", "replicas": 2, "cpus": 4.0, "gpus": 0.5}}
    tree = {"placement": placement, "judges": judges, "rollout": {"workers": 4}, "learner": {"ranks": 2}}
    return config.parse(tree)


def test_processes_find_nodes_or_what_is_missing_is_named():
    there = [({"CPU": 8.0, "GPU": 3.0}, {}), ({"CPU": 8.0, "GPU": 3.0}, {})]
    assert unplaceable([RANK, ENGINE, RANK, ENGINE], there) == []
    missing = unplaceable([ENGINE] * 3, there)
    assert missing == ["rollout: 1 of 3 places with 1 CPU, 2 GPU"], "6 GPUs, but no node has two left"
    reward = ResourceRequest("reward", {"CPU": 0.1})
    assert unplaceable([reward] * 11, [({"CPU": 1.0}, {})]) == ["reward: 1 of 11 places with 0.1 CPU"]
    assert unplaceable([reward] * 10, [({"CPU": 1.0}, {})]) == [], "rounding takes no place"
    assert unplaceable([RANK], []) == ["learner: 1 of 1 places with 1 CPU, 1 GPU"]


def test_the_choosy_are_placed_before_those_who_can_go_anywhere():
    nodes = [({"CPU": 1.0}, {"kanabo-role": "judge"}), ({"CPU": 1.0}, {})]
    anywhere, judge = (
        ResourceRequest("reward", {"CPU": 1.0}),
        ResourceRequest("judge:a", {"CPU": 0.5}, {"kanabo-role": "judge"}),
    )
    assert unplaceable([anywhere, judge], nodes) == []


def test_what_has_no_node_is_named_with_its_label():
    wanted = places(recipe(layout="separated"), gpu=False)
    room = {"CPU": 64.0}
    there = [(room, {"kanabo-role": role}) for role in ("learner", "rollout", "reward")]
    assert unplaceable(wanted, there) == [
        "judge:critic: 2 of 2 places with 4 CPU on nodes with kanabo-role=judge (no node has kanabo-role=judge)"
    ]
    there += [({"CPU": 5.0}, {"kanabo-role": "judge"})]
    assert unplaceable(wanted, there) == ["judge:critic: 1 of 2 places with 4 CPU on nodes with kanabo-role=judge"]
    assert not unplaceable(wanted, [*there, there[-1]])


@pytest.mark.parametrize(
    ("condition", "of", "suits"),
    [
        ("H100", "H100", True), ("H100", "A100", False), ("H100", None, False), ("!H100", "A100", True),
        ("!H100", None, True), ("in(H100, H200)", "H200", True), ("in(H100, H200)", "A100", False),
        ("!in(H100,H200)", "H100", False), ("!in(H100,H200)", "A100", True),
    ],
)  # fmt: skip
def test_labels_are_matched_as_ray_matches_them(condition, of, suits):
    assert matches({"gpu": condition}, {} if of is None else {"gpu": of}) is suits


def test_a_condition_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"placement\.nodes: 'gpu' = 'in\(' is no condition.*in\(VALUE, VALUE\)"):
        matches({"gpu": "in("}, {})


def test_layouts_ask_for_the_same_room_in_other_ways():
    apart, together = recipe(layout="separated"), recipe(layout="colocated")
    assert [p.resources for p in reserved(apart, gpu=True)] == [{"CPU": 1, "GPU": 1}] * 2
    assert [p.resources for p in reserved(together, gpu=True)] == [{"CPU": 3, "GPU": 1}] * 2
    assert not reserved(recipe(), gpu=True)
    cpus = [sum(p.resources["CPU"] for p in places(r, gpu=True)) for r in (recipe(), apart, together)]
    assert cpus == [4 + 2 + 0.1 + 2 * 4] * 3
    gpus = [sum(p.resources.get("GPU", 0) for p in places(r, gpu=True)) for r in (recipe(), apart, together)]
    assert gpus == [4 + 2 + 2 * 0.5] * 2 + [2 + 2 * 0.5]
    more = places(together, gpu=True, counts={"rollout": 5, "reward": 1})
    assert [p.role for p in more if p.role == "rollout"] == ["rollout"], "the fifth has no place beside a learner"


def test_the_roles_own_labels_add_to_those_of_the_layout(tmp_path):
    both = recipe(layout="separated", nodes={"judge:critic": {"gpu": "in(L4)"}, "judge": {"zone": "a"}})
    assert "judge:critic on nodes with kanabo-role=judge, zone=a, gpu=in(L4)" in labelled(both)
    assert "Placement 'separated': learner on nodes with kanabo-role=learner; " in plan(both, tmp_path)
    assert "Placement" not in plan(recipe(), tmp_path)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"placement": {"nodes": {"trainer": {}}}}, "placement.nodes.trainer is no role"),
        ({"placement": {"layout": "colocated"}, "rollout": {"workers": 3}, "learner": {"ranks": 2}}, "a multiple"),
        ({"placement": {"layout": "colocated"}, "engine": {"tensor_parallel": 2}}, "engine.tensor_parallel = 1"),
        ({"placement": {"layout": "colocated"}, "weights": {"transport": "nccl"}}, "weights.transport = 'pull'"),
    ],
)
def test_what_cannot_be_is_refused(tree, said):
    with pytest.raises(ConfigError, match=said):
        config.parse(tree)


def test_the_quickstart_fits_on_two_cpus():
    quickstart = Path(__file__).parents[2] / "deploy" / "recipes" / "quickstart.toml"
    wanted = places(config.load(quickstart), gpu=False)
    assert {place.role for place in wanted} == {"learner", "rollout", "reward"}
    assert unplaceable(wanted, [({"CPU": 2.0}, {})]) == []
