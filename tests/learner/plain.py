"""A plain on-policy loop: sample, score, one gradient step, one sequence at a time. What all of learner/ must equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from cluster.config import LearnerSection
from cluster.types import Group, Rollout
from learner.advantages.estimators import GroupAdvantage
from tests.learner.groups import group

TEMPERATURE = 0.8
LUCKY = 7


def rewards_of(found: Group) -> np.ndarray:
    """How many of the sampled tokens are even, with some luck: any reward will do."""
    return np.array([(r.tokens[r.loss_mask] % 2 == 0).mean() + (LUCKY in r.tokens) for r in found.rollouts])


@torch.no_grad()
def sample(model, num_prompt: int, num_response: int, generator: torch.Generator) -> Rollout:
    tokens = torch.randint(0, model.config.vocab_size, (num_prompt,), generator=generator)
    logprobs = torch.zeros(num_prompt)
    for _ in range(num_response):
        log_softmax = (model(input_ids=tokens[None]).logits[0, -1] / TEMPERATURE).log_softmax(-1)
        chosen = torch.multinomial(log_softmax.exp(), 1, generator=generator)
        tokens, logprobs = torch.cat([tokens, chosen]), torch.cat([logprobs, log_softmax[chosen]])
    mask = np.arange(len(tokens)) >= num_prompt
    arrays = tokens.numpy().astype(np.int32), mask, logprobs.numpy()
    return Rollout(*arrays, text="", turns=(), spans=(), finish="stop", temperature=TEMPERATURE)


def plain_loop(
    model_dir: Path, section: LearnerSection, steps: int
) -> tuple[list[list[Group]], dict[str, torch.Tensor]]:
    """REINFORCE with group advantages; returns what it sampled in each step, and its weights at the end."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if section.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=section.schedule.lr)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=section.schedule.lr, betas=section.betas, eps=section.eps, weight_decay=0.0
        )
    generator, sampled = torch.Generator().manual_seed(0), []
    for step in range(steps):
        groups = []
        for seq in range(section.groups_per_step):
            lengths = torch.randint(2, 9, (4,), generator=generator).tolist()
            rollouts = [sample(model, 3 + seq, n, generator) for n in lengths]
            groups.append(group(step * section.groups_per_step + seq, rollouts, step=step))
        num_tokens = sum(r.num_tokens for g in groups for r in g.rollouts)
        for found in groups:
            for rollout, advantage in zip(found.rollouts, GroupAdvantage().standard(rewards_of(found)), strict=True):
                tokens = torch.from_numpy(rollout.tokens.astype(np.int64))
                log_softmax = (model(input_ids=tokens[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
                logprobs = log_softmax.gather(-1, tokens[1:, None])[:, 0]
                (-advantage * logprobs[torch.from_numpy(rollout.loss_mask[1:])].sum() / num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        sampled.append(groups)
    return sampled, {name: p.detach().clone() for name, p in model.named_parameters()}


def plain_ppo(
    model_dir: Path, section: LearnerSection, steps: list[tuple[list[Group], list[np.ndarray]]]
) -> dict[str, torch.Tensor]:
    """PPO written down plainly, a rollout at a time: value head, GAE, whitening, both clips; the weights at the end."""
    assert section.value is not None
    value, lr = section.value, section.schedule.lr
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    frozen = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    weight = torch.zeros(model.config.hidden_size, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD(
        [{"params": list(model.parameters()), "lr": lr}, {"params": [weight, bias], "lr": value.lr or lr}]
    )

    def look(policy, rollout: Rollout):
        tokens = torch.from_numpy(rollout.tokens.astype(np.int64))
        out = policy(input_ids=tokens[None], output_hidden_states=True)
        chosen = torch.from_numpy(np.flatnonzero(rollout.loss_mask[1:]) + 1)
        log_softmax = (out.logits[0] / rollout.temperature).log_softmax(-1)
        values = out.hidden_states[-1][0] @ weight + bias
        return log_softmax[chosen - 1, tokens[chosen]], values[chosen - 1], values[-1], chosen

    for groups, rewards in steps:
        pairs = [(r, x) for g, xs in zip(groups, rewards, strict=True) for r, x in zip(g.rollouts, xs, strict=True)]
        old, advantages, returns = [], [], []
        with torch.no_grad():
            for rollout, reward in pairs:
                logprobs, values, last, _ = look(model, rollout)
                earned = -value.reward_kl_coef * (logprobs - look(frozen, rollout)[0])
                earned[-1] += reward
                after = last if value.bootstrap_truncated and rollout.truncated else torch.zeros(())
                credit = [torch.zeros(())]
                for t in reversed(range(len(earned))):
                    error = earned[t] + value.gamma * after - values[t]
                    credit.append(error + value.gamma * value.lam * credit[-1])
                    after = values[t]
                old.append(values)
                advantages.append(torch.stack(credit[:0:-1]))
                returns.append(advantages[-1] + values)
        flat = torch.cat(advantages)
        loss = torch.zeros(())
        for (rollout, _), before, credit, goal in zip(pairs, old, advantages, returns, strict=True):
            logprobs, values, _, chosen = look(model, rollout)
            ratio = (logprobs - torch.from_numpy(rollout.logprobs)[chosen]).exp()
            white = (credit - flat.mean()) / flat.std()
            loss = loss - torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white).sum()
            near = before + (values - before).clamp(-0.3, 0.3)
            loss = loss + value.coef * torch.maximum((values - goal) ** 2, (near - goal) ** 2).sum() / 2
        (loss / len(flat)).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), weight, bias], section.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    head = {"value_head.weight": weight.detach()[None], "value_head.bias": bias.detach()}
    return {name: p.detach().clone() for name, p in model.named_parameters()} | head
