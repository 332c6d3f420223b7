"""Keys that users of other tools and of earlier versions type, and their names here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

FOREIGN_KEYS = {
    # sampling
    "n_samples_per_prompt": "rollout.group_size",
    "num_generations": "rollout.group_size",
    "n": "rollout.group_size",
    "max_response_length": "rollout.max_tokens",
    "max_completion_length": "rollout.max_tokens",
    "max_new_tokens": "rollout.max_tokens",
    "generate_max_len": "rollout.max_tokens",
    "max_prompt_length": "engine.max_model_len",
    "prompt_max_len": "engine.max_model_len",
    "vllm_num_engines": "rollout.workers",
    "tensor_parallel_size": "engine.tensor_parallel",
    "tensor_model_parallel_size": "engine.tensor_parallel",
    "vllm_tensor_parallel_size": "engine.tensor_parallel",
    "gpu_memory_utilization": "engine.gpu_memory_frac",
    "vllm_gpu_memory_utilization": "engine.gpu_memory_frac",
    # model and data
    "model_name_or_path": "model.path",
    "pretrain": "model.path",
    "train_files": "tasks.options.path",
    "dataset_name": "tasks.options.path",
    "prompt_data": "tasks.options.path",
    "val_files": "tasks.options.evaluation_path",
    "eval_dataset": "tasks.options.evaluation_path",
    "input_key": "tasks.options.prompt_key",
    "label_key": "tasks.options.answer_key",
    "dataset_split": "tasks.options.split",
    # learning
    "train_batch_size": "learner.groups_per_step",
    "rollout_batch_size": "learner.groups_per_step",
    "per_device_train_batch_size": "learner.groups_per_step",
    "micro_batch_size": "learner.micro_tokens",
    "micro_train_batch_size": "learner.micro_tokens",
    "ppo_max_token_len_per_gpu": "learner.micro_tokens",
    "ppo_mini_batch_size": "learner.updates_per_batch",
    "mini_batch_size": "learner.updates_per_batch",
    "num_mini_batches": "learner.updates_per_batch",
    "ppo_epochs": "learner.passes_per_batch",
    "num_iterations": "learner.passes_per_batch",
    "num_ppo_epochs": "learner.passes_per_batch",
    "max_epochs": "learner.passes_per_batch",
    "max_steps": "learner.steps",
    "total_training_steps": "learner.steps",
    "n_gpus_per_node": "learner.ranks",
    "advantage_estimator": "learner.advantage.use",
    "adv_estimator": "learner.advantage.use",
    "gae_lambda": "learner.value.lam",
    "lam": "learner.value.lam",
    "lambd": "learner.value.lam",
    "gamma": "learner.value.gamma",
    "vf_coef": "learner.value.coef",
    "value_clip": "learner.value.clip",
    "cliprange_value": "learner.value.clip",
    "critic_learning_rate": "learner.value.lr",
    "use_kl_in_reward": "learner.value.reward_kl_coef",
    "critic": "learner.value",
    "eps_clip": "learner.loss.options.clip_low",
    "clip_ratio": "learner.loss.options.clip_low",
    "clip_ratio_low": "learner.loss.options.clip_low",
    "epsilon": "learner.loss.options.clip_low",
    "eps_clip_high": "learner.loss.options.clip_high",
    "clip_ratio_high": "learner.loss.options.clip_high",
    "epsilon_high": "learner.loss.options.clip_high",
    "kl_coef": "learner.loss.kl_coef",
    "init_kl_coef": "learner.loss.kl_coef",
    "kl_loss_coef": "learner.loss.kl_coef",
    "beta": "learner.loss.kl_coef",
    "entropy_coeff": "learner.loss.entropy_coef",
    "learning_rate": "learner.schedule.lr",
    "actor_learning_rate": "learner.schedule.lr",
    "lr": "learner.schedule.lr",
    "max_grad_norm": "learner.clip_grad_norm",
    "lora_rank": "learner.lora.rank",
    "lora_r": "learner.lora.rank",
    "lora_alpha": "learner.lora.alpha",
    "lora_dropout": "learner.lora.dropout",
    "lora_target_modules": "learner.lora.target_modules",
    # rewards
    "reward_funcs": "rewards[0].use",
    "custom_reward_function": "rewards[0].use",
    "remote_rm_url": "rewards[0].use",
    # the run
    "experiment_name": "run.name",
    "run_name": "run.name",
    "output_dir": "run.dir",
    "save_path": "run.dir",
    "default_local_dir": "run.dir",
    "eval_interval": "evaluation.every_steps",
    "eval_steps": "evaluation.every_steps",
    "test_freq": "evaluation.every_steps",
    "save_interval": "checkpoint.every_steps",
    "save_steps": "checkpoint.every_steps",
    "save_freq": "checkpoint.every_steps",
}


RENAMED_KEYS = {
    "distilled": "reward_models",
    "elastic": "autoscaling",
    "learner.rehearsal": "learner.experience_replay",
    "learner.terms": "learner.sequence_losses",
    "reward_workers.min_valid": "reward_workers.min_scored_rollouts",
    "rewards.*.on_missing": "rewards.*.missing",
    "rewards.*.when": "rewards.*.blocking",
    "rollout.views": "rollout.prompt_variants",
    "run.grace_s": "run.shutdown_timeout_s",
    "run.silent_s": "run.heartbeat_timeout_s",
    "run.stall_s": "run.progress_timeout_s",
    "selectors.*.options.signal": "selectors.*.options.reward",
    "tasks.options.heldout_path": "tasks.options.evaluation_path",
    "tasks.options.heldout_split": "tasks.options.evaluation_split",
    "tasks.options.num_heldout": "tasks.options.num_evaluation",
    "tasks.options.views": "tasks.options.prompt_variants",
    "tracking.kept_groups": "tracking.archived_groups",
    "weights.max_drift_nats": "weights.max_logprob_diff_nats",
}
"""Keys of version 0.1 that have another name now; `*` is any place of a list. The last part alone changes."""
RENAMED_VALUES: dict[str, dict[Any, Any]] = {
    "rewards.*.when": {"admit": True, "late": False},
    "rewards.*.use": {"view_agreement": "variant_agreement"},
}
"""Values of those keys, and of keys that kept their name, that are written in another way now."""

RENAMED_METRICS = {"heldout": "eval", "distilled": "reward_model", "parity_": "logprob_diff_", "cut_s": "assemble_s"}
"""Parts of metrics' names of version 0.1: two areas, the beginning of three of `policy`, one of `learner`."""
_OLD_METRIC = re.compile(r"(?<![^/])(?:(?:heldout|distilled)(?=/)|(?<=\bpolicy/)parity_|(?<=\blearner/)cut_s$)")


def new_metric(name: str) -> str:
    """Return what a metric of version 0.1 is called now, such as `policy/logprob_diff_mean_nats`."""
    return _OLD_METRIC.sub(lambda found: RENAMED_METRICS[found[0]], name)


def new_name(key: str) -> str:
    """Return what a key such as `rewards[0].when` is called now, under a policy too; "" if it has not changed."""
    old = re.sub(r"\[\d+\]", ".*", key).split(".")
    old = old[2:] if old[0] == "policies" else old
    return RENAMED_KEYS.get(".".join(old), "").rpartition(".")[2]


def new_option(option: str) -> str:
    """Return what an option of a plug-in is called now, such as `evaluation_path`; "" if it has not changed."""
    return next((new_name(key) for key in RENAMED_KEYS if key.endswith(f".options.{option}")), "")


def renamed(key: str, value: Any) -> str:
    """Return the sentence that tells a user the new name of `key`, and its new value; "" if the key has not changed."""
    name = new_name(key)
    if not name:
        return ""
    new = f"{key.rpartition('.')[0]}.{name}".lstrip(".")
    values = RENAMED_VALUES.get(re.sub(r"\[\d+\]", ".*", key), {})
    if isinstance(value, str) and value in values:
        return f"'{key}' is now '{new}': write {name} = {str(values[value]).lower()} for {value!r}."
    return f"'{key}' is now '{new}'. Rename the key."


def with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe that a run directory of an earlier version holds, under the keys of this version."""
    for old in RENAMED_KEYS:
        for section in _sections(tree, old.split(".")[:-1]):
            key, new = old.rpartition(".")[2], RENAMED_KEYS[old].rpartition(".")[2]
            if key in section:
                value = section.pop(key)
                section.setdefault(new, _new_value(old, value))
    for policy in _dict(tree.get("policies")).values():
        if isinstance(policy, dict):
            with_new_names(policy)
    for reward in _sections(tree, ["rewards", "*"]):
        if "use" in reward:
            reward["use"] = _new_value("rewards.*.use", reward["use"])
    return tree


def _new_value(key: str, value: Any) -> Any:
    return RENAMED_VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def _sections(tree: Any, path: list[str]) -> list[dict[str, Any]]:
    """Return the dicts at `path` below `tree`; `*` stands for every place of a list."""
    found: list[Any] = [tree]
    for part in path:
        found = [
            inner
            for node in found
            for inner in (node if part == "*" and isinstance(node, list) else [_dict(node).get(part)])
        ]
    return [node for node in found if isinstance(node, dict)]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def translated(key: str, value: Any = None) -> str:
    """`"Kanabo calls it 'rollout.group_size'. "`, for a key or for one in the tree below it; or nothing."""
    for name in (key, *_below(value)):
        if name in FOREIGN_KEYS:
            return f"Kanabo calls {'it' if name == key else repr(name)} '{FOREIGN_KEYS[name]}'. "
    return ""


def _below(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _below(inner)
