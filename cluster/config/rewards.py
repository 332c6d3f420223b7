"""`[[rewards]]`, and who stands behind them: workers, judges, reward models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from cluster.config.base import Section, Use

MISSING = ("drop_rollout", "drop_group", "wait")
"""What a recipe may say of unknown scores, beside a number."""


class RewardSection(Use):
    name: str = ""
    """Name in metrics and records; the plug-in's own by default."""
    weight: float = 1.0
    """Its share of the reward that is trained on; 0 only records it, and compares it with what is trained on."""
    blocking: bool = True
    """Whether a group waits for its score. A score that is not waited for counts if it has arrived when the batch is
    assembled."""
    timeout_s: PositiveFloat = 30.0
    """Deadline of one call; what is unanswered by then is `failed`."""
    missing: Literal["drop_rollout", "drop_group", "wait"] | float = "drop_rollout"
    """What an unknown score means: its rollout is left out, its group is dropped, its group waits for it until
    `reward_workers.max_wait_s`, or it counts as this number (ONI, SSR-Zero: 0). The stored score stays unknown."""
    untrusted: bool = False
    """Run a plain function in the sandbox, because it evaluates what the policy wrote. The function then sees no file,
    network or variable of the run, and its arguments and result are what JSON has."""
    shape: Use | None = None
    """What is made of a known score before it is weighed (`missing` is not shaped); the stored score stays as it is."""

    @field_validator("missing", mode="before")
    @classmethod
    def _policy_or_number(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value not in MISSING):
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            raise ValueError(f"{shown}, where {', '.join(map(repr, MISSING))} or a number is expected.")
        return value

    @property
    def missing_value(self) -> float | None:
        """The number that stands for an unknown score; None if the recipe gives none."""
        return None if isinstance(self.missing, str) else self.missing


class RewardWorkersSection(Section):
    workers: PositiveInt = 1
    """Processes that score."""
    concurrent_groups: PositiveInt = 64
    """Groups that one has in hand."""
    deadline_s: PositiveFloat = 60.0
    """A stored group waits this long for its blocking scores."""
    max_wait_s: PositiveFloat = 600.0
    """A stored group waits this long for scores of rewards with `missing = "wait"`."""
    min_scored_rollouts: PositiveInt = 2
    """A group with fewer rollouts of known reward is dropped. 1 is for groups whose rollouts are not compared with each
    other (CoMAS)."""


class JudgeSection(Section):
    """`[judges.NAME]`: who answers when a reward asks the judge NAME."""

    kind: Literal["url", "vllm", "policy", "keyword"] = "url"
    """`url`: servers of your own; `vllm`: replicas the run starts; `policy`: the live policy judges itself;
    `keyword`: counts words, for trying out a recipe."""
    urls: tuple[str, ...] = ()
    """OpenAI-compatible base URLs, as a rule ending in /v1; each is a replica."""
    model: str = ""
    """`url`: the name it is served under, by default the first that is listed; `vllm`: what `model.path` may name, or
    the policy's own past: `initial`, `policy@N`, `RUN@N`. With another one stored groups are judged again."""
    revision: str = ""
    """Revision of the model's weights: under another one stored groups are judged again."""
    key_env: str = ""
    """Environment variable that holds the key."""
    replicas: PositiveInt = 1
    """`vllm`: servers to start; `python -m cluster.commands.scale RUN judge:NAME=3` changes it in a running job."""
    cpus: PositiveFloat = 1.0
    """`vllm`: CPUs that Ray reserves for one replica, and its threads where there is no GPU."""
    gpus: PositiveFloat = 1.0
    """`vllm`: GPUs of one replica where the cluster has any; several split the model, a part of one shares it."""
    start_s: PositiveFloat = 600.0
    """`vllm`: a replica that takes longer to come up is ended and placed again."""
    engine_share: float = Field(default=0.25, gt=0, lt=1)
    """`policy`: of an engine's `max_num_seqs`, what judging may take; the rest is left to rollouts."""
    max_in_flight: PositiveInt = 64
    """Requests at a time, over all replicas."""
    max_queue: PositiveInt = 4096
    """Requests that may wait; those beyond fail at once, see `order`."""
    order: Literal["newest", "oldest"] = "newest"
    """Which of the waiting requests goes first; of a full queue of newest-first the oldest is pushed out."""
    deadline_s: PositiveFloat = 25.0
    """Deadline of a request, waiting for a replica included; shorter than the reward's `timeout_s`, so that the score
    says why it is unknown."""
    in_flight_ttl_s: PositiveFloat = 120.0
    """A request in flight for longer is given up; until then it is asked again when nobody was there to answer it."""
    structured: Literal["off", "structured_outputs", "guided_choice"] = "off"
    """How a server is told to answer with a label only; `guided_choice` is for vLLM before 0.12."""
    omit: tuple[
        Literal[
            "max_tokens",
            "temperature",
            "seed",
            "logprobs",
            "top_logprobs",
            "structured_outputs",
            "guided_choice",
            "system",
        ],
        ...,
    ] = ()
    """`url`: fields of a request that the server does not take; `system`: its model has no such role, so instructions
    stand at the head of the user's message. A server that refuses one by name is asked again without it, so this is for
    servers that refuse without saying what."""
    canaries: str = ""
    """JSON lines of questions with known answers; a built-in set of attacks on judges by default."""
    canary_every: NonNegativeInt = 0
    """One of them per so many requests; 0: none."""
    options: dict[str, Any] = {}
    """`url`: further fields of a request; `vllm`: options of `vllm serve`; `keyword`: its arguments."""

    @model_validator(mode="after")
    def _reachable(self) -> JudgeSection:
        if self.kind == "url" and not self.urls:
            raise ValueError("a judge of kind 'url' needs urls = ['http://…/v1'].")
        if self.kind == "vllm" and not self.model:
            raise ValueError("a judge of kind 'vllm' needs a model.")
        return self


class GeneratorSection(Section):
    """`[generators.NAME]`: a model that is asked and never trained. Its rollouts stand in every group behind the
    policy's own, under the name of its section; selectors such as `temporal` and `large_margin` read that. They were
    sampled by other weights than are trained, so they are for losses on pairs: `learner.loss.coef` is 0."""

    model: str
    """An alias: `initial`, `previous`, `previous@2`, `policy@N`, `RUN@N` or `RUN@latest` for a checkpoint in another
    run's directory, `RUN@initial` for what that run began with; or a directory. An alias that comes to stand for other
    weights is followed."""
    rollouts: PositiveInt = 1
    """Episodes that it adds to a group."""


class ScorerSection(Section):
    """`[scorers.NAME]`: a model that reads rollouts, told every token, for rewards that ask for log-probs or whole
    distributions. A process of its own: neither engines nor learner wait for it."""

    model: str = "policy"
    """`policy`: the live one, at the newest version published, which its scores name; or an alias: `initial`, the run's
    first weights, `previous`, its newest checkpoint, followed as it moves, `previous@2`, the one before that, and so
    on, `policy@N`, `RUN@N`, a directory. Of several policies, the one that the recipe's own sections describe, whoever
    wrote what it reads."""
    replicas: PositiveInt = 1
    """Processes; `python -m cluster.commands.scale RUN scorer:NAME=3` changes it in a running job."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the scorer's weights."""
    cpus: PositiveFloat = 1.0
    """CPUs that Ray reserves for one replica, and its threads where there is no GPU."""
    gpus: PositiveFloat = 1.0
    """GPUs of one replica where the cluster has any; a part of one shares it."""
    batch_tokens: PositiveInt = 4096
    """Tokens that are read together, padding included. The logits of those that are scored are in memory at once."""
    max_queue: PositiveInt = 4096
    """Passages that may wait at one replica; those beyond are refused and tried again until the deadline."""
    deadline_s: PositiveFloat = 25.0
    """Deadline of a request, waiting included; shorter than the reward's `timeout_s`, so that the score says why it is
    unknown."""


class RewardModelSection(Use):
    """A reward model that learns from labels during the run; rewards use `[reward_models.NAME]` by `model = "NAME"`."""

    use: str = "classification"
    """`retrieval`, `classification`, `ranking`, `bradley_terry`, or `package.module:Class`."""
    judge: str = "judge"
    """Name of the judge that labels: its section is `[judges.NAME]`. Empty where the reward that uses the model gives
    its labels, such as outcomes."""
    goal: str = "default"
    """What counts as good news: `default`, `combat`, `gold`, or a sentence of your own."""
    batch_size: PositiveInt = 100
    """Captions per request to the labeller's judge."""
    max_in_flight: PositiveInt = 4
    """Requests at once."""
    max_attempts: PositiveInt = 2
    """Times that an unreadable caption is asked about."""
    max_backlog: PositiveInt = 10_000
    """Captions that wait to be labelled; the oldest leave first."""
    order: Literal["newest", "oldest"] = "newest"
    """Which of them are labelled first."""
    in_flight_ttl_s: PositiveFloat = 120.0
    """A caption that was sent and not labelled for so long is sent again."""
    held_out_frac: float = Field(default=0.1, gt=0, lt=1)
    """Labels that are never learnt from, by hash of the caption."""
    min_held_out: PositiveInt = 50
    """With fewer held-out labels nothing is published."""
    min_agreement: float = Field(default=0.6, ge=0, le=1)
    """With held-out labels, both classes counting the same; a version that reaches less is not published."""
    publish_every_s: PositiveFloat = 10.0
    """A new version has stored groups scored again, so not more often than this."""
