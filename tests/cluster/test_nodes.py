"""What counts as the death of a process that can be replaced, and what as a fault that would come again."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from cluster.errors import ConfigError, DataError, InfrastructureError, StartFailed
from cluster.placement.ray_errors import cause_of, is_infrastructure


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."),
        InfrastructureError("gone"),
        ExceptionGroup("several", [InfrastructureError("gone"), OutOfMemoryError("full")]),
    ],
    ids=lambda e: type(e).__name__,
)
def test_who_dies_with_its_machine_is_replaced(error):
    assert is_infrastructure(error)


@pytest.mark.parametrize(
    "error",
    [ConfigError("wrong"), DataError("bad row"), ExceptionGroup("both", [InfrastructureError("gone"), ValueError()])],
    ids=lambda e: type(e).__name__,
)
def test_a_fault_of_the_recipe_or_of_ours_is_not_repeated(error):
    assert not is_infrastructure(error)


def test_an_actor_that_cannot_be_made_is_named_and_not_tried_again():
    raised = ModuleNotFoundError("No module named 'nowhere'")
    error = ActorDiedError(RayTaskError("Broken.__init__", f"Traceback:\n{type(raised).__name__}: {raised}", raised))
    cause = cause_of(error)
    assert cause is not None
    assert not is_infrastructure(cause)
    assert str(cause) == "an actor could not be made: ModuleNotFoundError: No module named 'nowhere'"


def made(raised: Exception, module: str = "cluster.errors") -> ActorDiedError:
    text = f"Traceback:\n{module}.{type(raised).__name__}: {raised}"
    return ActorDiedError(RayTaskError("Broken.__init__", text, raised))


def test_a_start_that_may_succeed_elsewhere_is_tried_again():
    cause = cause_of(made(InfrastructureError("vLLM cannot run it: OSError: No space left on device.")))
    assert cause is not None
    assert is_infrastructure(cause)


def test_a_start_that_would_fail_again_has_its_cause_alone():
    cause = cause_of(made(StartFailed("vLLM cannot run it: ValueError: head_dim.")))
    assert isinstance(cause, StartFailed)
    assert str(cause) == "vLLM cannot run it: ValueError: head_dim."


def test_a_group_of_exceptions_is_named_by_its_root():
    group = ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("inner", [StartFailed("bad shape")])])
    cause = cause_of(RayTaskError("Rollout.run", "Traceback:\nE", group))
    assert isinstance(cause, StartFailed)
    assert not is_infrastructure(cause)
