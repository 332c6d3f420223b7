"""The child's side of the reward `verifiers`: a rubric, or a task class, of the package scores groups of rollouts.

It runs in the Python that has verifiers, imports nothing of Kanabo, and knows two kinds of object:

    rubric    `vf.Rubric`, `RubricGroup`, `JudgeRubric`, … of verifiers 0.1.8 to 0.3, or an environment that has one
    task      a subclass of `vf.Task` of verifiers 0.4, whose methods `@vf.reward` score a trace

A rubric counts a function that raises as 0. Here the rollout's score is an error, with the function's name.
"""

import asyncio
import contextvars
import functools
import importlib
import inspect
import json
import math

STATE = contextvars.ContextVar("state", default=None)
"""The rollout that a function of a rubric is asked about."""
ORIGINAL = "_without_kanabo"
"""Attribute of what stands in for a function of the user's."""
CONCURRENT = 64
"""Functions that early versions of a rubric call at a time."""


class Scorer:
    """Made by the host process of what the recipe's `object` names."""

    def __init__(self, path, options):
        found = importlib.import_module("__main__").resolve(path)
        # Clients of judges belong to the loop that they were first used on.
        self._loop = asyncio.new_event_loop()
        if inspect.isclass(found) and hasattr(found, "data_type") and hasattr(found, "hooks"):
            self._kind = _Task(found, options)
            return
        if inspect.isclass(found) or (callable(found) and not hasattr(found, "score_group")):
            found = found(**options)
        elif options:
            raise TypeError(f"'{path}' is an object that is made already and takes no options")
        found = getattr(found, "rubric", found)
        if not hasattr(found, "score_group"):
            raise TypeError(
                f"'{path}' is {type(found).__name__}: a Rubric of verifiers 0.1.8 to 0.3, an environment with one, a "
                "function that makes either, or a subclass of vf.Task of verifiers 0.4 is expected"
            )
        self._kind = _Rubric(found)

    def names(self):
        """Names of the functions that score. Raises ValueError for what cannot score stored rollouts."""
        return self._kind.names()

    def score(self, row, rollouts):
        """For each rollout {"reward", "scores", "error"}; the reward is None where a part of it is not known."""
        return self._loop.run_until_complete(self._kind.score(row, rollouts))


class _Rubric:
    def __init__(self, rubric):
        self._rubric, self._errors = rubric, {}
        for one in _leaves(rubric):
            one.funcs = [self._guarded(function, one) for function in one.funcs]
            call = getattr(one, "_call_individual_reward_func", None)
            if call is not None and not hasattr(call, ORIGINAL):
                one._call_individual_reward_func = _telling(call)

    def names(self):
        if getattr(self._rubric, "has_advantages", False):
            raise ValueError("the rubric computes advantages itself: name an estimator in [learner.advantages] instead")
        names = [function.__name__ for one in _leaves(self._rubric) for function in one.funcs]
        if not names:
            raise ValueError("the rubric has no reward function")
        return names

    async def score(self, row, rollouts):
        states = [_state(row, rollout) for rollout in rollouts]
        self._errors = {id(state): "" for state in states}
        score_group = self._rubric.score_group
        limits = {
            n: asyncio.Semaphore(CONCURRENT) for n in inspect.signature(score_group).parameters if n.endswith("_sem")
        }
        await score_group(states, **limits)
        found = []
        for state in states:
            error, reward = self._errors[id(state)], state.get("reward")
            metrics = {str(k): v for k, v in (state.get("metrics") or {}).items()}
            found.append({"reward": None if error else reward, "scores": metrics, "error": error})
        return found

    def _guarded(self, function, rubric):
        """The function, whose failures are noted before the rubric makes them 0."""
        function = getattr(function, ORIGINAL, function)  # the object of a module, which was made a scorer before
        is_group = rubric._is_group_func(function) if hasattr(rubric, "_is_group_func") else False

        @functools.wraps(function)
        async def guarded(*args, **kwargs):
            try:
                value = function(*args, **kwargs)
                value = await value if inspect.isawaitable(value) else value
                if is_group:
                    value = [float(one) for one in value]
                    if len(value) != len(self._errors):
                        raise ValueError(f"{len(value)} scores for {len(self._errors)} rollouts")
                else:
                    value = float(value)
            except Exception as error:
                self._note(f"{guarded.__name__}: {type(error).__name__}: {error}", None if is_group else STATE.get())
                return [math.nan] * len(self._errors) if is_group else math.nan
            return value

        guarded.__name__ = getattr(function, "__name__", type(function).__name__)
        setattr(guarded, ORIGINAL, function)
        return guarded

    def _note(self, error, state):
        for key in self._errors if state is None else [id(state)]:
            self._errors[key] = self._errors[key] or error


def _leaves(rubric):
    """The rubrics of a group of them, or the rubric itself; a group's own functions count, too."""
    inner = [leaf for one in getattr(rubric, "rubrics", ()) for leaf in _leaves(one)]
    return [*inner, rubric] if not inner or rubric.funcs else inner


def _telling(call):
    """The rubric's call of a function, which says for which state it is."""

    async def telling(func, state, *args, **kwargs):
        token = STATE.set(state)
        try:
            return await call(func, state, *args, **kwargs)
        finally:
            STATE.reset(token)

    setattr(telling, ORIGINAL, call)
    return telling


def _state(row, rollout):
    """What verifiers' environments leave of a rollout, as its rubrics read it."""
    prompt, completion = _messages(row["prompt"]), _messages(rollout["completion"])
    columns = {k: v for k, v in row["columns"].items() if k not in ("prompt", "completion", "reward", "metrics")}
    given = {
        "example_id": row["id"],
        **columns,
        "prompt": prompt,
        "answer": "" if row["answer"] is None else row["answer"],
        "info": _info(columns.get("info", columns)),
        "task": row["source"],
    }
    steps, seen = [], list(prompt)
    for message in completion:
        if message["role"] == "assistant":
            steps.append(
                {
                    "prompt": list(seen),
                    "completion": [message],
                    "response": None,
                    "tokens": None,
                    "reward": None,
                    "advantage": None,
                    "is_truncated": rollout["truncated"],
                    "trajectory_id": row["id"],
                    "extras": {},
                }
            )
        seen.append(message)
    told = {
        **given,
        "input": given,
        "completion": completion,
        "trajectory": steps,
        "turn": len(steps),
        "is_completed": True,
        "is_truncated": rollout["truncated"],
        "stop_condition": "max_turns_reached" if rollout["truncated"] else None,
        "reward": 0.0,
        "metrics": {},
        "error": None,
    }
    return (_of_package("verifiers.types", "State") or dict)(told)


def _info(info):
    if isinstance(info, str):
        try:
            info = json.loads(info)
        except ValueError:
            return {"info": info}
    return info if isinstance(info, dict) else {}


def _messages(messages):
    """Messages of the package's own classes, where it has such, which can be read as dicts, too."""
    rows = [
        {**message, "tool_call_id": f"call_{i}"} if message["role"] == "tool" else message
        for i, message in enumerate(messages)
    ]
    normalize = _of_package("verifiers.utils.message_utils", "normalize_messages")
    return rows if normalize is None else normalize(rows)


def _of_package(module, name):
    """What the package has there; None in a version, or beside a rubric of another package, that has no such thing."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


class _Task:
    """Scores traces by the methods of a subclass of `vf.Task`, without the runtime in which an agent played."""

    def __init__(self, cls, config):
        self._class, self._config = cls, cls.config_type()(**config)

    def names(self):
        task = self._class(self._class.data_type().model_construct(), self._config)
        judges = task.plugged_judges()
        functions = [(f.__name__, f) for f in task.hooks("reward")] + [(j.reward_name, j.score) for j in judges]
        if not functions:
            raise ValueError(f"{self._class.__name__} has no method with @vf.reward and no judge")
        for name, function in functions:
            runtime = inspect.signature(function).parameters.get("runtime")
            if runtime is not None and runtime.default is runtime.empty:
                raise ValueError(
                    f"the reward '{name}' looks into the runtime in which the agent played, and that is gone when a "
                    "stored rollout is scored: play the task on a server of verifiers, with the environment 'verifiers'"
                )
        return [name for name, _ in functions]

    async def score(self, row, rollouts):
        data = {"prompt": row["prompt"], "answer": row["answer"], **row["columns"]}
        data = data["task_data"] if isinstance(data.get("task_data"), dict) else data
        task = self._class(self._class.data_type().model_validate(data), self._config)
        return await asyncio.gather(*(self._one(task, row["prompt"], rollout) for rollout in rollouts))

    async def _one(self, task, prompt, rollout):
        trace = self._trace(task, prompt, rollout)
        error = ""
        try:
            await task.score(trace)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        scores = {name: None if reward is None else reward.score for name, reward in trace.rewards.items()}
        known = not error and all(reward is not None for reward in trace.rewards.values())
        return {"reward": trace.reward if known else None, "scores": {**scores, **trace.metrics}, "error": error}

    def _trace(self, task, prompt, rollout):
        """What a server of verifiers would have recorded of the rollout, tokens left out."""
        vf = importlib.import_module("verifiers.v1")
        state_cls = importlib.import_module("verifiers.v1.state").state_cls
        trace = vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            state=state_cls(type(task))(),
            agent=vf.AgentInfo(config=vf.AgentConfig(runtime=vf.SubprocessConfig())),
            is_completed=True,
            ok=True,
            stop_condition="max_turns" if rollout["truncated"] else None,
        )
        kinds = {"system": vf.SystemMessage, "assistant": vf.AssistantMessage, "tool": vf.ToolMessage}
        first = len(prompt)
        for i, message in enumerate((*prompt, *rollout["completion"])):
            call = {"tool_call_id": f"call_{i}"} if message["role"] == "tool" else {}
            made = kinds.get(message["role"], vf.UserMessage)(content=message["content"], **call)
            sampled = i >= first and message["role"] == "assistant"
            trace.nodes.append(vf.MessageNode(parent=i - 1 if i else None, message=made, sampled=sampled))
        return trace
