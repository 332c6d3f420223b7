"""What is looked at before anything starts: what a user can get wrong ends here, in one line and with exit code 2."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.models import TINY, check_files, different_token, load_tokenizer
from cluster.config import OfflineConfig, RunConfig, without_password
from cluster.config import stored as read_stored
from cluster.driver import preflight_dataset, preflight_rewards
from cluster.driver.preflight_plugins import build_kind, plugins
from cluster.errors import ConfigError, DataError, nearest, one_line
from cluster.observability.trackers import trackers
from cluster.placement.job_metadata import submission_id
from cluster.process import lock
from cluster.storage import checkpoint, leftovers
from cluster.storage.model_aliases import FIXED, Registry, behind, named
from cluster.types import Task
from rewards.registry import build_reward

if TYPE_CHECKING:
    from cluster.buffer import Limits

RENDERED = 100
"""Prompts that are tried on the chat template: a template refuses kinds of prompts, not single ones."""
IDENTITY = re.compile(
    r"seed|policies|(policies\.[^.]+\.)?model\.(path|options\..+)|tasks\..+|rollout\.(group_size|prompt_variants.*|max_turns|environment\..+)"
    r"|rewards\[\d+\]\.(name|use|blocking|options\..+)"
    r"|(policies\.[^.]+\.)?learner\.(groups_per_step|advantage\.use|loss\.use|sequence_losses\[\d+\]\.use"
    r"|lora\.(rank|alpha|target_modules.*))|selectors\[\d+\]\..+|scorers\.[^.]+\.model"
)
"""Keys that `identity` compares."""


def run_directory(settings: RunConfig | OfflineConfig) -> Path:
    """Absolute directory of the run.

    Raises ConfigError for a relative `run.dir` inside a submitted job, whose working directory is thrown away.
    """
    base = Path(settings.run.dir)
    if not base.is_absolute() and "KANABO_RUNS" in os.environ and "dir" not in settings.run.model_fields_set:
        base = Path(os.environ["KANABO_RUNS"])
    if not base.is_absolute() and submission_id():
        if "KANABO_RUNS" not in os.environ:
            raise ConfigError(
                f"run.dir = '{base}' is relative, and a submitted job's working directory is thrown away. "
                "Give an absolute path that all nodes see, or set KANABO_RUNS in the job's runtime environment."
            )
        base = Path(os.environ["KANABO_RUNS"])
    return (base / settings.run.name).absolute()


def everything(settings: RunConfig, directory: Path, *, online: bool) -> list[str]:
    """All that can be looked at without starting or writing anything; returns warnings.

    `online` may ask Hugging Face for a model's tokenizer; otherwise what is not on this machine is a warning.
    Raises ConfigError.
    """
    place(directory)
    skipped = leftovers.look(directory)
    used_directory(settings, directory)
    resume_point(settings, directory)
    for tracker in trackers(settings.tracking):
        tracker.check()
    plugins(settings)
    head = tasks(settings)
    prompt_variants(settings, head)
    warnings = [said for lock in settings.policy_names for said in model(settings.of_policy(lock), head, online=online)]
    judged(settings, head)
    aliases(settings, directory)
    warnings += anchored(settings)
    sizes = leftovers.sizes(settings, directory, weights_bytes(settings))
    preflight_rewards.rewards(settings, head)
    return [*skipped, *warnings, *data(settings, directory, online=online), *sizes, *storage(settings)]


def data(settings: RunConfig, directory: Path, *, online: bool) -> list[str]:
    """What is remarkable about the rows of data files, in sentences. Raises ConfigError for another run's rows."""
    rows = preflight_dataset.read(settings)
    if rows is None:
        return []
    said = preflight_dataset.warnings(rows)
    if begun(directory) and preflight_dataset.stored(directory):
        return [*said, *preflight_dataset.check_same(directory, settings, rows)]
    lock = {name: settings.of_policy(name) for name in settings.policy_names}
    tokenizers = {n: load_tokenizer(s.model, s.seed, online=online) for n, s in lock.items()}
    if None in tokenizers.values():
        return said  # lengths are measured once the model is there
    return [*said, *preflight_dataset.measure(settings, rows, tokenizers)[1]]


def aliases(settings: RunConfig, directory: Path) -> None:
    """Models that the recipe names by an alias are there, and can be followed where they move. Raises ConfigError."""
    registry = Registry(settings, directory, "")  # what the run begins with may not be made yet
    for where, alias in named(settings).items():
        back = behind(alias)
        if back and settings.learner.lora:
            raise ConfigError(
                f"{where} = '{alias}', and what [learner.lora] saves are adapters without their model. Name "
                "'initial', or a directory that `kanabo export` has made."
            )
        if back > 1 and not settings.checkpoint.every_steps:
            raise ConfigError(
                f"{where} = '{alias}' looks {back} checkpoints back, and checkpoint.every_steps = 0 makes none before "
                "the end. Set checkpoint.every_steps to the steps of a round."
            )
        if where == "learner.reference" and back and settings.policies:
            raise ConfigError(
                f"learner.reference = '{alias}' beside [policies.…]: only a single policy's reference follows its "
                "checkpoints. Name 'initial', RUN@N or a directory."
            )
        try:
            if back:
                registry.resolve(alias)  # its directory is the first weights' until there is a checkpoint
            elif alias not in FIXED:
                _same_tokens(settings, Path(registry.directory(alias).where), where)
        except ConfigError as error:
            raise ConfigError(f"{where} = '{alias}': {error}") from error


def _same_tokens(settings: RunConfig, directory: Path, where: str) -> None:
    """A model that reads or writes token ids has the policy's tokenizer. Raises ConfigError with the first difference.

    Judges are asked in text. Where a tokenizer is not on this machine nothing is compared.
    """
    if where.startswith("judges."):
        return
    ours = load_tokenizer(settings.model, settings.seed, online=False)
    if ours is not None and (difference := different_token(ours, directory)):
        raise ConfigError(
            f"its tokenizer is not that of model.path = '{settings.model.path}': {difference}. It is given the "
            "policy's own tokens: name a model that has the policy's tokenizer."
        )


def anchored(settings: RunConfig) -> list[str]:
    """Warnings about the past that `temporal` rejects, which is the first iteration's beginning in the later ones too.

    Raises ConfigError where this run goes on from a checkpoint of an iteration before, and calls that the past.
    """
    warnings = []
    for i, selector in enumerate(settings.selectors):
        past = str(selector.options.get("past", "initial"))
        generator = settings.generators.get(past)
        folder = Path(settings.model.path).expanduser()
        if selector.use != "temporal" or generator is None or generator.model != "initial" or not folder.is_dir():
            continue
        here = f"generators.{past}.model = 'initial' is model.path = '{settings.model.path}'"
        stored = folder.absolute().parent.parent / "config.toml"
        before = read_stored(stored.parent) if (folder / "manifest.json").is_file() and stored.is_file() else None
        if before is not None and any(s.use == "temporal" for s in before.selectors):
            first = before.generators[past].model if past in before.generators else "initial"
            anchor = f"{stored.parent}@initial" if first == "initial" else first
            raise ConfigError(
                f"selectors[{i}]: {here}, where the iteration before ended, so that the rejected sides would no longer "
                f"be the first model's. Set generators.{past}.model = '{anchor}', what the first iteration began with."
            )
        warnings.append(
            f"selectors[{i}]: {here}. If an iteration before ended there, set generators.{past}.model to what the "
            "first began with, its RUN@initial or a directory; if this is the first model, name this directory."
        )
    return warnings


def place(directory: Path) -> None:
    """The run's directory is there or can be made, and no other run is going on in it. Raises ConfigError."""
    there = next(p for p in (directory, *directory.parents) if p.exists())
    for path in (directory, *directory.parents):
        if path.is_symlink() and not path.exists():
            raise ConfigError(
                f"run.dir: '{directory}' cannot be made, '{path}' is a link to something that is not there. Remove "
                "the link, or give another run.dir."
            )
    leftovers.refuse_foreign(directory)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is a file"
        raise ConfigError(
            f"run.dir: '{directory}' cannot be made, '{there}' {why}. Give another run.dir, or set its permissions."
        )
    lock.look(directory)


def tasks(settings: RunConfig) -> list[Task]:
    """The source's first tasks, each of which can be made and stored. Raises ConfigError."""
    from actors.tasks import TASKS, checked

    use = settings.tasks.use
    source = build_kind(TASKS, settings.tasks, "tasks", "train")
    try:
        if not len(source.train()):
            raise ConfigError(f"tasks: '{use}' gives no training task. Look at tasks.options.")
        return [checked(task) for task in source.head()]
    except ConfigError:
        raise
    except DataError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # a source of the user's own
        raise ConfigError(
            f"tasks.use = '{use}' fails: {one_line(error)} Fix the source, or its tasks.options."
        ) from error


def prompt_variants(settings: RunConfig, head: Sequence[Task]) -> None:
    """These tasks have the variants that are sampled. Raises ConfigError."""
    for task in head:
        if missing := [variant for variant in settings.rollout.prompt_variants if variant not in task.variants]:
            raise ConfigError(
                f"rollout.prompt_variants = {list(settings.rollout.prompt_variants)}, but task {task.id} of "
                f"'{settings.tasks.use}' has no variant '{missing[0]}'. {nearest(missing[0], task.variants)}"
                f"It has: {', '.join(task.variants)}. "
                "Set rollout.prompt_variants, or let the source make that variant (tasks.options.prompt_variants for "
                "files)."
            )


def judged(settings: RunConfig, head: Sequence[Task]) -> None:
    """Every reward finds what it needs in these tasks, and none declines them all. Raises ConfigError."""
    for i, section in enumerate(settings.rewards):
        reward = build_reward(section, f"rewards[{i}]")
        for task in head:
            reward.check(task)
        if section.weight != 0 and section.missing_value is None and head and all(map(reward.declines, head)):
            raise ConfigError(
                f"rewards[{i}] = '{section.use}' abstains from all of the first {len(head)} tasks of "
                f"'{settings.tasks.use}': {reward.declines(head[0])}. Fix the data (tasks.options.answer_key names "
                "the column of the reference answer), or use another reward."
            )


def model(settings: RunConfig, head: Sequence[Task], *, online: bool) -> list[str]:
    """There is such a model, and its tokenizer can write the prompts of these tasks. Raises ConfigError."""
    from actors.chat import Chat
    from actors.demonstrations import Demonstrations

    said: list[str] = []
    path = settings.model.path
    tokenizer = load_tokenizer(settings.model, settings.seed, online=online)
    check_files(settings.model)
    chat = None
    if tokenizer is not None:
        chat = Chat(tokenizer, stop=settings.rollout.stop, tool_parser=settings.rollout.tool_parser)
        if getattr(_environment(settings), "uses_tools", False):
            chat.check_tools()
        if settings.learner.demonstrations is not None:
            left_out = Demonstrations(settings.learner.demonstrations, chat, settings.seed).check()
            said = [f"learner.demonstrations: left out: {why}" for why in left_out[:1]]
            if len(left_out) > 1:
                said.append(f"learner.demonstrations: {len(left_out) - 1} more of the first rows are left out.")
    if tokenizer is not None and chat is not None and tokenizer.chat_template:
        try:
            for task in head[:RENDERED]:
                for variant in settings.rollout.prompt_variants:
                    chat.prompt(task.variants[variant])
        except DataError as error:
            raise ConfigError(f"model.path = '{path}': task {task.id}: {error}") from error
        return [*said, *_conversation(settings, chat, head)]
    elif tokenizer is not None or path.startswith(TINY):
        _plain(path, head)
    elif path != "smollm2":
        return [f"not checked: model.path = '{path}', which is not in the local cache, and whether it has a template."]
    return said


def _environment(settings: RunConfig) -> Any:
    """Return the environment of one episode: of a search the one that it searches."""
    from actors.environments import ENVIRONMENTS
    from actors.environments.search import SearchEnvironment

    built = build_kind(ENVIRONMENTS, settings.rollout.environment, "rollout.environment", "play")
    return built.episode if isinstance(built, SearchEnvironment) else built


def _conversation(settings: RunConfig, chat: Any, head: Sequence[Task]) -> Iterator[str]:
    """The template can write what the environment answers between the policy's turns, tried on made-up turns.

    Raises ConfigError with the role that it cannot write; returns warnings.
    """
    from actors.environments import ENVIRONMENTS
    from actors.environments.base import Environment

    section, environment = settings.rollout.environment, _environment(settings)
    roles = getattr(environment, "roles", Environment.roles)
    if settings.rollout.max_turns < 2 or not roles:
        return
    begin = head[0].variants["orig"] if head and getattr(environment, "shows_task", True) else ()
    for role in roles:
        try:
            odd = chat.check_turns(begin, role)
        except DataError as error:
            raise ConfigError(
                f"model.path = '{settings.model.path}': environment '{section.use}' answers in the role '{role}', and "
                f"{error}"
            ) from error
        if odd:
            yield f"model.path = '{settings.model.path}': {odd}"
    if section.use not in ENVIRONMENTS and "roles" not in vars(type(environment)):
        try:
            chat.check_turns(begin, "tool")
        except DataError as error:
            yield f"If environment '{section.use}' answers in the role 'tool', its groups will fail: {error}"


def _plain(path: str, head: Sequence[Task]) -> None:
    """Without a chat template a prompt is its text alone, which has no place for roles."""
    for task in head:
        roles = [m.role for m in task.variants["orig"]]
        if roles != ["user"]:
            raise ConfigError(
                f"model.path = '{path}' has a tokenizer without a chat template, and the prompt of task {task.id} has "
                f"messages of {', '.join(roles)}. Use an instruct model, put a chat_template.jinja into its directory, "
                "or give prompts as plain text without tasks.options.system."
            )


def weights_bytes(settings: RunConfig) -> int:
    """Return the bytes of the policy's model files, 0 if they are not on this machine yet."""
    folder = Path(settings.model.path).expanduser()
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0


def storage(settings: RunConfig) -> list[str]:
    """What the user's own Redis could lose. Raises ConfigError if it cannot be reached."""
    if settings.buffer.url is None:
        return []
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    url, where = str(settings.buffer.resolved()), without_password(settings.buffer.url)
    try:
        retry = Retry(NoBackoff(), 0)
        client = redis.Redis.from_url(url, retry=retry, socket_timeout=5, socket_connect_timeout=5)
    except ValueError:  # what it says may hold the password
        raise ConfigError(
            f"buffer.url = '{where}' is not a URL of Redis. redis://:PASSWORD@HOST:PORT/0 is expected, "
            "with special characters of the password percent-encoded."
        ) from None
    try:
        with client:
            client.ping()
    except redis.RedisError as error:
        raise ConfigError(
            f"buffer.url = '{where}' does not answer: {one_line(error)} "
            "Check host, port and password, or leave buffer.url out and the run starts its own server."
        ) from error
    from cluster.buffer import Buffer

    return Buffer(url, settings.run.name).persistence()


def begun(directory: Path) -> bool:
    """Whether a run has begun in this directory."""
    return (directory / "metrics.jsonl").exists() or bool(checkpoint.committed(directory / "checkpoints"))


def used_directory(settings: RunConfig, directory: Path) -> None:
    """Raises ConfigError if the directory holds a run and `resume = "off"`, or a run of another recipe."""
    if not begun(directory):
        return
    if settings.resume == "off":
        raise ConfigError(
            f"'{directory}' already holds a run and resume = \"off\". Choose another run.name, or resume=auto."
        )
    if (directory / leftovers.OFFLINE).exists():
        raise ConfigError(
            f"'{directory}' holds a run of kanabo sft or kanabo dpo. Choose another run.name; to begin with its "
            "weights, set model.path to the directory of one of its checkpoints."
        )
    stored = directory / "config.toml"
    if not stored.exists():
        return
    before, now = identity(read_stored(directory)), identity(settings)
    if preflight_dataset.stored(directory):  # the rows themselves are compared
        before, now = ({k: v for k, v in keys.items() if k not in preflight_dataset.PATHS} for keys in (before, now))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"'{directory}' holds the run of another recipe: there {key} is {before.get(key, 'not set')!r}, "
                f"here {now.get(key, 'not set')!r}. Choose another run.name, or set it back to continue that run."
            )


def identity(settings: RunConfig) -> dict[str, Any]:
    """What makes a run the run it is, by dotted key: a run that goes on must have the same.

    It is what a stored group is (its model, its task's place in the seeded order, its environment and size), what its
    scores are, and what a step is. How long to train, how fast, how often to evaluate or save, weights of rewards and
    time-outs may change.
    """
    tree = settings.model_dump(mode="json", exclude_none=True)
    several = {"policies": ", ".join(settings.policies)} if settings.policies else {}
    return several | dict(pair for pair in _leaves(tree, "") if IDENTITY.fullmatch(pair[0]))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, inner in node.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, node


def run_id(settings: RunConfig, directory: Path) -> str:
    """The run's name on the cluster and in Redis: two directories never share one, whatever their runs are called."""
    path = directory / "id"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f"{settings.run.name}-{secrets.token_hex(3)}")
        temporary.replace(path)
    return path.read_text()


def resume_point(settings: RunConfig, directory: Path) -> Path | None:
    """The checkpoint to continue from, if any. Raises ConfigError if a named one is none."""
    if settings.resume == "off":
        return None
    if settings.resume == "auto":
        found = checkpoint.usable(directory / "checkpoints")
        return found[-1] if found else None
    checkpoint.read(Path(settings.resume))
    return Path(settings.resume)


def limits(settings: RunConfig) -> Limits:
    """What the buffer must know of a recipe."""
    from cluster.buffer import Limits

    waits = any(r.missing == "wait" and r.blocking for r in settings.rewards)
    workers = settings.reward_workers
    return Limits(
        groups_per_step=settings.learner.groups_per_step,
        max_staleness=settings.learner.max_staleness,
        when_late=settings.learner.when_late,
        blocking=tuple(settings.blocking_rewards),
        non_blocking=tuple(n for n in settings.reward_names if n not in settings.blocking_rewards),
        members=tuple(settings.policies),
        lease_s=settings.rollout.lease_s,
        score_deadline_s=workers.max_wait_s if waits else workers.deadline_s,
        num_tasks=None,
    )
