"""Write docs/methods.md and a page for each family of methods: `python -m rewards.methods_reference`.

A page names the code of each published method. Lines are counted from the sources that `METHODS` names.
"""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
PLACE = ROOT / "docs" / "methods"
HEAD = """# Published methods

Every method is a plug-in or a handful of pure functions; formula, shapes and what we had to guess are in the docstring.
A recipe is in `deploy/recipes/methods/` and starts with `python -m cluster.run deploy/recipes/methods/NAME.toml`. The
numbers of each method's own acceptance check are asserted in its test. What each recipe did in a real run is in
[recipes_verified.md](recipes_verified.md).

This page and those of the families are made by `python -m rewards.methods_reference`.

| family | methods |
|---|---|
"""
COLUMNS = """
| method | source | kind | code | lines | recipe | test |
|---|---|---|---|---|---|---|
"""
FAMILY_FOOT = """
Lines are those of the classes and functions named, docstrings included. A dash in place of a recipe means that the
functions are there and something they need is not: see [all families](../methods.md). The page is made by
`python -m rewards.methods_reference`.
"""
FOOT = r"""
What is not wired in, and what it would take:

- **DNO's replay**, **SPO's queue**: pairs of earlier steps, the last N rollouts of a task, kept across groups.
- **SPO's exact step**: a policy over a list of responses; `dno` with `label = "margin"` is its regression form.
- **TP-GRPO**: its rounds of fifty steps on rollouts of one version, judged at leisure; `learner.max_staleness` and
  `reward_workers.deadline_s` bound both here.
- **SPA-RL**, **LaRe**, **imitation**, **perceptual rewards** have the papers' losses and rewards, and small models in
  place of theirs: a convolution over characters, factors written by hand, the run's own successes as demonstrations,
  hashed words. Turns are compared with their group's where SPA-RL has PPO.
- **Tree preferences**: the paper's depth, branching and borders of segments are unverified; the advantage of nodes is
  ours. **ReST-MCTS\***: its value model reads the logits of the last place, ours the last hidden state or characters.
- **AlphaLLM**: prompts are not synthesised; fast roll-outs are the policy's own, where the paper has a smaller model.
- **SPC**: one round against the first model; later rounds, which pool the games of earlier ones, are runs of their own.
  The check of errors by completions is our reading. **Anyprefer**: a component of the paper by a second-hand
  description; accepted pairs are trained behind the prompt that they were sampled with.
- **OPRL**: a second model of the policy's size, under a learner of its own; here it learns on one core.
- **Judges in training** (RM-R1, Think-RM, SPCT): rules, labels and the order of responses are the papers'; the traces
  that they distil first are yours, by `kanabo sft` or `[learner.demonstrations]`. Think-RM's and SPCT's rules are the
  options `rule = "strength"` and `rule = "list"` of the reward in `rm_r1`. SPCT's rejective fine-tuning, which leaves
  out what the judge gets right three times of three, is not wired in; groups of equal rewards train nothing here.
- **POLAR**'s pre-training on a pool of policies, and its released weights: the fine-tuning on ranked triples is here,
  with a small model that begins from nothing. **Domain knowledge**: a verifier prefers where the paper has 940 labels
  of people, and the rubrics are yours. **SPCT's meta RM** weighs votes where the paper keeps the better half.
- **AMFT**'s paper is under dispute, and no figure of it is a target; its look-ahead by gradients is not measured.
- **SRUM** is for images; spans and steps of text are our analogue.
- **Self-PRM**'s judge goes through the steps of long solutions; the recipe's tiny model marks a line as a whole.
  ProcessBench, on which the paper measures judges, is a data set of yours: `eval/NAME/verdict_f1` is its figure.
- **SCIR**'s prompt and weights are ours: the paper's are not known to us. Pairs about which the policy's judges
  differ have no gradient of DPO, and are not left out of the batch.
- **RewardMATH**'s own set of problems, each with one right and nine wrong solutions: the monitor `one_to_many` takes
  the run's rollouts instead, as many as a group has.
"""


class Family(NamedTuple):
    name: str
    """Name of the family's page, docs/methods/NAME.md."""
    title: str
    about: str
    kinds: tuple[str, ...]


FAMILIES = (
    Family("policy_gradients", "Advantages and losses",
           "An advantage estimator credits rollouts or tokens, and a loss turns advantages into a gradient.",
           ("loss", "critic", "advantage")),
    Family("preferences", "Pairs and loss terms",
           "A selector makes pairs of a group's rollouts, and a loss term trains on them.",
           ("loss term", "selector", "functions")),
    Family("rewards", "Rewards and judges",
           "A reward scores a group: by a rule, by votes, by the policy itself or by a judge.",
           ("reward", "task source", "vote")),
    Family("shaping", "Shaping", "A shaper transforms the scores of one reward when a batch is assembled.",
           ("shaper",)),
    Family("reward_models", "Reward models that learn during the run",
           "The run collects labels, trains a model on them and scores with its newest version.", ("reward model",)),
    Family("environments", "Environments and several policies",
           "What a policy acts in, and what several policies or agents do together.",
           ("environment", "meeting", "several policies")),
    Family("controllers", "Controllers and experience replay",
           "A controller changes settings between steps; experience replay trains on good rollouts once more.",
           ("controller", "experience replay")),
    Family("monitors", "Monitors", "A monitor reads a run's metrics and raises an alarm; it moves no gradient.",
           ("monitor",)),
)  # fmt: skip


class Method(NamedTuple):
    name: str
    source: str
    kind: str
    code: tuple[str, ...]
    """`module:name`, the first being the plug-in if there is one."""
    recipe: str
    """In deploy/recipes/methods, without its ending; empty where there is none."""
    test: str
    """In tests/rewards, or in tests where it begins with `learner/` or `actors/`."""

    @property
    def test_file(self) -> Path:
        elsewhere = self.test.startswith(("actors/", "learner/"))
        return ROOT / "tests" / (self.test if elsewhere else f"rewards/{self.test}")


SELECTORS, PREFERENCES, REGULARISERS = (
    "rewards.aggregation.selectors",
    "learner.losses.sequence_losses.preference",
    "learner.losses.sequence_losses.regularizers",
)
SHAPING, MONITORS, MEASURE = "rewards.aggregation.shaping", "rewards.monitors", "rewards.judges.statistics"
LEARNED = "rewards.learned"
METHODS = (
    Method("PAR", "2502.18770", "shaper", (f"{SHAPING}.par:Par", f"{SHAPING}.par:preference_reward"), "par",
           "shaping/test_shaping.py"),
    Method("PAR's rivals", "2502.18770", "shaper",
           (f"{SHAPING}.rivals:Centred", f"{SHAPING}.rivals:LogSigmoidCentred"), "rivals", "shaping/test_shaping.py"),
    Method("PAR's rivals: running statistics", "2502.18770", "shaper",
           (f"{SHAPING}.running:RunningScores", f"{SHAPING}.running:Running"), "rivals",
           "shaping/test_shaping.py"),
    Method("MM-UPT, TTRL", "2505.22453", "reward", ("rewards.builtin.majority:Majority",), "mm_upt",
           "methods/test_majority.py"),
    Method("SSR-Zero", "2505.16637", "reward, template",
           ("rewards.builtin.ssr_zero:SsrZero", "rewards.judges.templates.assessment:Assessment"), "ssr_zero",
           "methods/test_ssr_zero.py"),
    Method("SPIRAL", "2506.24119", "environment, advantage",
           ("actors.environments.games:Games", "learner.advantages.estimators:RoleBaseline",
           "learner.advantages.estimators:role_advantages"),
           "spiral", "learner/test_roles.py"),
    Method("SPEAR", "2509.22601", "experience replay, reward, controller, loss",
           ("learner.batch.experience_replay:Spear", "rewards.builtin.events:Events",
           "learner.controllers.schedules:Cosine",
            "learner.losses.policy_losses:left_out"), "spear", "learner/test_experience_replay.py"),
    Method("B-STaR", "2412.17256", "controller, selector",
           ("learner.controllers.bstar:BStar", "learner.controllers.bstar:balance_of",
            f"{SELECTORS}.threshold:Threshold"),
           "b_star", "learner/test_controllers.py"),
    Method("SCoRe", "2409.12917", "environment, reward, shaper, loss, controller",
           ("actors.environments.attempts:Attempts", "rewards.builtin.attempts:Attempts",
            f"{SHAPING}.progress:Progress", "learner.losses.policy_losses:TurnwiseReinforce",
            "learner.losses.policy_losses:penalised",
            "learner.controllers.schedules:Stages"), "score", "shaping/test_progress.py"),
    Method("RLCCF", "2508.12338", "reward, several policies",
           ("rewards.builtin.crowd:Crowd", "rewards.builtin.crowd:weighted_votes", "rewards.builtin.crowd:consistency",
            "rewards.builtin.crowd:CrowdShare", "rewards.builtin.crowd:CrowdAgreement"), "rlccf",
           "methods/test_crowd.py"),
    Method("CoMAS", "2510.08529", "meeting, reward, several policies",
           ("actors.environments.comas:CoMas", "rewards.builtin.comas:CoMasReward",
            "rewards.builtin.comas:interaction_rewards", f"{MONITORS}.band:Band"), "comas", "methods/test_comas.py"),
    Method("SPO", "2401.04056", "reward", (f"{MEASURE}:win_rates",), "spo",
           "methods/test_pairs.py"),
    Method("SPO: exact step, queue", "2401.04056", "functions",
           ("rewards.aggregation.preferences:self_play_update", "rewards.aggregation.preferences:rate_against"), "",
           "methods/test_pairs.py"),
    Method("Think-RM", "2505.16265", "reward",
           ("rewards.judges.templates.strength:PairwiseStrength",
           "rewards.aggregation.preferences:strength_advantages"), "think_rm",
           "methods/test_pairs.py"),
    Method("RM-R1: the judge's training", "2505.02387", "task source, reward",
           ("actors.tasks.verdicts:Verdicts", "rewards.builtin.verdict:VerdictReward",
            "rewards.builtin.verdict:pair_verdict"), "rm_r1", "methods/test_verdict.py"),
    Method("Think-RM: the judge's training", "2505.16265", "task source, reward",
           ("actors.tasks.verdicts:Verdicts", "rewards.builtin.verdict:strength_reward"), "",
           "methods/test_verdict.py"),
    Method("SPCT (DeepSeek-GRM): the judge's training", "2504.02495", "task source, reward",
           ("actors.tasks.verdicts:Verdicts", "rewards.builtin.verdict:list_reward",
            "rewards.builtin.verdict:ranks_best"), "", "methods/test_verdict.py"),
    Method("DPO", "2305.18290", "loss term, selector", (f"{PREFERENCES}:Dpo", f"{SELECTORS}.pairs:BestWorst"), "dpo",
           "learner/test_terms.py"),
    Method("DPO beside a policy gradient", "2305.18290", "loss term, selector",
           (f"{PREFERENCES}:Dpo", f"{SELECTORS}.pairs:BestWorst"), "gradient_and_pairs", "learner/test_terms.py"),
    Method("IPO", "2310.12036", "loss term", (f"{PREFERENCES}:Ipo",), "ipo", "learner/test_terms.py"),
    Method("DNO", "2404.03715", "selector, loss term",
           (f"{SELECTORS}.pairs:LargeMargin", "rewards.aggregation.preferences:large_margin_pairs",
           f"{PREFERENCES}:Dpo"), "dno",
           "selectors/test_selectors.py"),
    Method("DNO: replay of old pairs", "2404.03715", "functions", ("rewards.aggregation.preferences:replay_caps",), "",
           "methods/test_pairs.py"),
    Method("SELM", "2405.19332", "loss term, selector",
           (f"{REGULARISERS}:Selm", f"{SELECTORS}.pairs:Likeliest"), "selm", "learner/test_terms.py"),
    Method("T-REG", "2412.02685", "loss term, reward, selector",
           (f"{REGULARISERS}:TReg", "rewards.builtin.token_contrast:TokenContrast",
            f"{SELECTORS}.pairs:TokenWeights"), "t_reg", "methods/test_token_contrast.py"),
    Method("CREAM", "2410.12735", "reward, selector",
           ("rewards.builtin.implicit:Implicit", f"{SELECTORS}.consistency:Consistency",
            f"{SELECTORS}.consistency:consistency"), "cream", "methods/test_implicit.py"),
    Method("Temporal Self-Rewarding", "2508.06026", "selector",
           (f"{SELECTORS}.temporal:Temporal", f"{SELECTORS}.temporal:temporal_pair"), "temporal",
           "selectors/test_selectors.py"),
    Method("SCIR", "2502.08922", "loss term, selector",
           ("learner.losses.sequence_losses.scir:Scir", "learner.losses.sequence_losses.scir:judged",
            "learner.losses.sequence_losses.scir:symmetric_kl", f"{SELECTORS}.pairs:Neighbours"), "scir",
           "learner/test_asking.py"),
    Method("LaSeR", "2510.14943", "loss term",
           ("learner.losses.sequence_losses.laser:LaSeR", "learner.losses.sequence_losses.laser:verification_loss"),
           "laser", "learner/test_terms.py"),
    Method("DAPO", "2503.14476", "loss", ("learner.losses.policy_losses:Dapo",), "dapo", "learner/test_update.py"),
    Method("GSPO", "2507.18071", "loss", ("learner.losses.policy_losses:Gspo",), "gspo",
           "learner/test_losses.py"),
    Method("CISPO", "2506.13585", "loss", ("learner.losses.policy_losses:Cispo",
           "learner.losses.policy_losses:bounded_importance_loss"),
           "cispo", "learner/test_losses.py"),
    Method("Dr. GRPO", "2503.20783", "advantage, loss", ("learner.advantages.estimators:DrGrpo",), "dr_grpo",
           "learner/test_update.py"),
    Method("RLOO", "2402.14740", "advantage", ("learner.advantages.estimators:LeaveOneOut",), "rloo",
           "learner/test_advantages.py"),
    Method("REINFORCE++", "2501.03262", "advantage", ("learner.advantages.estimators:ReinforcePlusPlus",),
           "reinforce_plus_plus",
           "learner/test_advantages.py"),
    Method("PPO", "1707.06347", "critic", ("learner.engine.value_head:ValueHead",
           "learner.losses.value_loss:generalized_advantages"), "ppo",
           "learner/test_critic.py"),
    Method("Best of N, trained on", "2308.08998", "selector, loss term",
           (f"{SELECTORS}.pairs:Best", f"{REGULARISERS}:Nll"), "", "selectors/test_selectors.py"),
    Method("Self-Rewarded Efficiency RL", "2506.15647", "shaper",
           (f"{SHAPING}.brevity:Concise", f"{SHAPING}.brevity:concise_rewards"), "concise",
           "shaping/test_brevity.py"),
    Method("GRPO-λ, switched within a group", "2505.18086", "shaper",
           (f"{SHAPING}.brevity:LengthSwitch", f"{SHAPING}.brevity:brief_rewards"), "length_switch",
           "shaping/test_brevity.py"),
    Method("GRPO-λ", "2505.18086", "shaper",
           (f"{SHAPING}.brevity:StepLengthSwitch", f"{SHAPING}.brevity:switched_rewards"), "step_length_switch",
           "shaping/test_brevity.py"),
    Method("Clip and Delta", "2410.15115", "shaper, advantage",
           (f"{SHAPING}.steps:ClipDelta", f"{SHAPING}.steps:clipped_steps", f"{SHAPING}.steps:step_deltas",
            "learner.advantages.estimators:TokenReturns"), "clip_delta", "shaping/test_steps.py"),
    Method("TP-GRPO", "2507.23317", "reward, advantage",
           ("rewards.builtin.steps:Thoughts", "learner.advantages.estimators:ThoughtCredit"), "tp_grpo",
           "learner/test_credit.py"),
    Method("Co-Reward", "2508.00410", "reward",
           ("rewards.builtin.co_reward:CoReward", "rewards.builtin.co_reward:cross_labels",
            "rewards.builtin.co_reward:VariantAgreement"), "co_reward", "methods/test_co_reward.py"),
    Method("Self-Certainty, Borda voting", "2502.18581", "reward, selector",
           ("rewards.builtin.self_certainty:SelfCertainty", f"{SELECTORS}.votes:Borda",
            f"{SELECTORS}.votes:borda_votes"), "self_certainty", "methods/test_self_certainty.py"),
    Method("Self-PRM, Self-REF", "2505.11227", "vote, reward",
           ("rewards.aggregation.voting:self_prm_winner", "rewards.aggregation.voting:verdicts",
            "rewards.builtin.self_prm:SelfPrm"), "self_prm", "test_voting.py"),
    Method("Self-Aligned Reward", "2509.05489", "reward",
           ("rewards.builtin.self_aligned:SelfAligned", "rewards.builtin.self_aligned:self_aligned"), "self_aligned",
           "methods/test_self_aligned.py"),
    Method("RLSP", "2502.06773", "reward, template",
           ("rewards.builtin.rlsp:Rlsp", "rewards.builtin.rlsp:explored", "rewards.judges.templates.effort:Effort"),
           "rlsp", "methods/test_rlsp.py"),
    Method("Effective reward specification", "2412.07177", "controller",
           ("learner.controllers.lagrangian:Lagrangian", "learner.controllers.lagrangian:multipliers",
            "learner.controllers.lagrangian:weights"), "lagrangian", "learner/test_controllers.py"),
    Method("On-policy distillation", "2306.13649", "reward, advantage",
           ("rewards.builtin.teacher:Teacher", "rewards.builtin.teacher:teacher_ratio",
            "learner.advantages.estimators:TokenRewards"), "teacher", "methods/test_teacher.py"),
    Method("FLR", "2409.13948", "reward",
           ("rewards.builtin.follow_up:FollowUp", "rewards.builtin.follow_up:follow_up_reward"), "follow_up",
           "methods/test_follow_up.py"),
    Method("SLIM: several normalised rewards", "2402.00823", "advantage",
           ("learner.advantages.estimators:MultiAdvantage", "learner.advantages.estimators:normalized"), "slim",
           "learner/test_credit.py"),
    Method("Collapse guard", "", "monitor",
           (f"{MONITORS}.collapse:CollapseGuard", "rewards.builtin.agreement:AnswerEntropy"), "mm_upt",
           "monitors/test_collapse.py"),
    Method("Collapse guard on a real collapse", "", "monitor",
           (f"{MONITORS}.collapse:CollapseGuard", "rewards.monitors.anchor_tasks:agreement"), "collapse",
           "monitors/test_collapse.py"),
    Method("Bradley-Terry reward model, Secrets II", "2401.06080", "reward, reward model",
           (f"{LEARNED}.reward_model:LearnedReward", f"{LEARNED}.bradley_terry:BradleyTerry",
            f"{LEARNED}.preferences:preference_loss", f"{LEARNED}.preferences:corrected_labels",
            f"{LEARNED}.preferences:spread"), "reward_model", "learned/test_bradley_terry.py"),
    Method("Cooper", "2508.05613", "reward, reward model",
           (f"{LEARNED}.cooper:Cooper", f"{LEARNED}.cooper:Spoiler"), "cooper",
           "learned/test_reward_models.py"),
    Method("SPA-RL", "2505.20732", "reward, reward model",
           (f"{LEARNED}.step_rewards:SpaRl", f"{LEARNED}.step_rewards:fused", f"{LEARNED}.step_models:Progress",
            f"{LEARNED}.step_models:progress_loss"), "spa_rl", "learned/test_step_models.py"),
    Method("HERON, within a group", "2309.02632", "reward",
           (f"{LEARNED}.heron:Heron", f"{LEARNED}.heron:decided", f"{LEARNED}.heron:win_rates"), "heron",
           "learned/test_heron.py"),
    Method("HERON", "2309.02632", "reward, reward model",
           (f"{LEARNED}.heron:HeronModel", f"{LEARNED}.heron:decided"), "heron_model", "learned/test_heron.py"),
    Method("ExploRS", "2503.21949", "advantage",
           ("learner.advantages.steps:ExploRS", "learner.advantages.steps:count_bonus",
            "learner.advantages.steps:shaping_update"), "explors", "learner/test_step_advantages.py"),
    Method("CALM", "2409.12798", "reward",
           ("rewards.builtin.subgoals:Subgoals", "rewards.builtin.subgoals:read_labels",
            "rewards.builtin.subgoals:pays", "rewards.builtin.subgoals:f1"), "calm", "methods/test_subgoals.py"),
    Method("OPRL (iStar)", "2509.19199", "reward, reward model, advantage",
           (f"{LEARNED}.implicit_steps:Oprl", f"{LEARNED}.implicit_steps:ImplicitSteps",
            f"{LEARNED}.implicit_steps:implicit_loss", "learner.advantages.steps:EpisodeAndStep"), "oprl",
           "learned/test_implicit_steps.py"),
    Method("Tree preferences", "2402.10184", "environment, selector, reward, advantage",
           ("actors.environments.tree:ResponseTree", f"{SELECTORS}.leaf_pairs:LeafPairs",
            f"{SELECTORS}.leaf_pairs:leaf_pairs", f"{LEARNED}.reward_model:TreeReward",
            "learner.advantages.trees:TreeAdvantage"), "tree_preferences", "methods/test_trees.py"),
    Method("ReST-MCTS*", "2406.03816", "environment, reward, reward model",
           ("actors.environments.mcts_star:MctsStar", "actors.environments.tree_statistics:uct",
            "actors.environments.tree_statistics:weighted_value", f"{LEARNED}.quality_values:quality_values",
            f"{LEARNED}.quality_values:QualityValue", f"{LEARNED}.quality_values:TreeValue",
            f"{LEARNED}.quality_values:ReStMcts"), "rest_mcts", "methods/test_trees.py"),
    Method("AlphaLLM", "2404.12253", "environment",
           ("actors.environments.alpha_search:AlphaSearch", "actors.environments.alpha_search:node_reward",
            "actors.environments.tree_statistics:importance", "actors.environments.tree_statistics:allowance",
            "actors.environments.tree_statistics:edit_distance"), "alpha_llm", "actors/test_mcts.py"),
    Method("Anyprefer", "2504.19276", "environment, selector",
           ("actors.environments.anyprefer:Anyprefer", "actors.environments.anyprefer:best_and_worst",
            f"{SELECTORS}.pairs:BestWorst"), "anyprefer", "actors/test_anyprefer.py"),
    Method("SPC", "2504.19162", "meeting, reward, loss term, several policies",
           ("actors.environments.sneaky_critic:SneakyCritic", "actors.environments.sneaky_critic:is_valid",
            "rewards.builtin.spc:Spc", "rewards.builtin.spc:critic_accuracy",
            "learner.losses.sequence_losses.sequence_clip:SequenceClip"), "spc", "learner/test_sequence_clip.py"),
    Method("LaRe", "2412.11120", "reward, reward model",
           (f"{LEARNED}.step_rewards:LaRe", f"{LEARNED}.step_rewards:checked_factors",
            f"{LEARNED}.step_models:ReturnDecomposition", f"{LEARNED}.step_models:decomposition_loss"), "lare",
           "learned/test_step_models.py"),
    Method("Lipschitz imitation, by own successes", "2006.16785", "reward, reward model",
           (f"{LEARNED}.step_rewards:ImitationReward", f"{LEARNED}.step_models:Imitation",
            f"{LEARNED}.step_models:gradient_penalty", f"{LEARNED}.step_models:imitation_reward"), "imitation",
           "learned/test_step_models.py"),
    Method("Perceptual rewards, for text", "1612.06699", "reward, reward model",
           (f"{LEARNED}.step_rewards:PerceptualReward", f"{LEARNED}.step_models:Segments",
            f"{LEARNED}.step_models:split", f"{LEARNED}.step_models:increments"), "perceptual",
           "learned/test_step_models.py"),
    Method("Domain knowledge: features", "2402.15473", "reward, reward model",
           (f"{LEARNED}.features:FeatureReward", f"{LEARNED}.features:FeatureModel"), "features",
           "learned/test_learned_readers.py"),
    Method("POLAR", "2507.05197", "reward, reward model",
           (f"{LEARNED}.polar:Polar", f"{LEARNED}.polar:trajectories"), "polar", "learned/test_learned_readers.py"),
    Method("SPCT (DeepSeek-GRM): the meta RM", "2504.02495", "reward, reward model",
           (f"{LEARNED}.meta_rm:MetaRm", f"{LEARNED}.meta_rm:Correctness"), "meta_rm",
           "learned/test_learned_readers.py"),
    Method("AMFT", "2508.06944", "controller",
           ("learner.controllers.amft:Amft", "learner.controllers.amft:balanced"), "amft", "learner/test_amft.py"),
    Method("SRUM, for text", "2510.12784", "selector, loss term",
           (f"{SELECTORS}.srum:Srum", f"{SELECTORS}.srum:score_map", f"{REGULARISERS}:WeightedNll"), "srum",
           "selectors/test_srum.py"),
    Method("Over-optimisation", "2406.02900", "monitor", (f"{MONITORS}.overoptimisation:OverOptimisation",),
           "over_optimisation", "monitors/test_statistics.py"),
    Method("STARC", "2309.15257", "monitor",
           (f"{MONITORS}.starc:Starc", f"{MONITORS}.starc:canonical", f"{MONITORS}.starc:group_distance"), "monitors",
           "monitors/test_measuring.py"),
    Method("Policy cliff", "2507.20150", "monitor",
           (f"{MONITORS}.cliff:PolicyCliff", f"{MONITORS}.cliff:softmax_distance", f"{MONITORS}.cliff:fragile_frac"),
           "monitors", "monitors/test_measuring.py"),
    Method("RewardMATH", "2410.01729", "monitor",
           (f"{MONITORS}.rewardmath:OneToMany", f"{MONITORS}.rewardmath:rank_of_right"), "monitors",
           "monitors/test_measuring.py"),
)  # fmt: skip


def family_of(method: Method) -> Family:
    """Return the family whose page has the method: that of its first kind, unless it learns or is of several policies.

    Raises ValueError for a kind of no family.
    """
    kinds = method.kind.split(", ")
    kind = next((k for k in ("reward model", "several policies") if k in kinds), kinds[0])
    for family in FAMILIES:
        if kind in family.kinds:
            return family
    raise ValueError(f"the kind '{kind}' of {method.name} is of no family; add it to one of FAMILIES.")


def pages() -> dict[Path, str]:
    """Return every page by its place: docs/methods.md, which names the families, and a page for each of them."""
    members = {family: [m for m in METHODS if family_of(m) == family] for family in FAMILIES}
    listed = "".join(
        f"| [{family.title}](methods/{family.name}.md) | {'; '.join(m.name for m in methods)} |\n"
        for family, methods in members.items()
    )
    return {PAGE: HEAD + listed + FOOT} | {
        PLACE / f"{family.name}.md": _family_page(family, methods) for family, methods in members.items()
    }


def _family_page(family: Family, methods: list[Method]) -> str:
    table = "".join(f"{row}\n" for row in map(_row, methods))
    parts = "".join(f"\n## {m.name}\n\n{_about(m)}\n" for m in methods)
    return f"# {family.title}\n\n{family.about}\n{COLUMNS}{table}{FAMILY_FOOT}{parts}"


def _row(method: Method) -> str:
    found = [pkgutil.resolve_name(name) for name in method.code]
    lines = sum(len(inspect.getsourcelines(f)[0]) for f in found)
    source = f"[{method.source}](https://arxiv.org/abs/{method.source})" if method.source else "ours"
    code = "; ".join(f"`{_file(f)}` {f.__name__}" for f in found)
    recipe = f"`{method.recipe}`" if method.recipe else "–"
    test = method.test_file.relative_to(ROOT).as_posix()
    return f"| {method.name} | {source} | {method.kind} | {code} | {lines} | {recipe} | `{test}` |"


def _about(method: Method) -> str:
    """Return what the docstrings of a method's code say in their first paragraphs, one item each."""
    found = [pkgutil.resolve_name(name) for name in method.code]
    said = [(f.__name__, (inspect.getdoc(f) or "").split("\n\n")[0]) for f in found]
    return "\n".join(f"- `{name}`: {' '.join(text.split())}" for name, text in said if text)


def _file(found: object) -> str:
    path = Path(str(inspect.getsourcefile(found)))  # pyright: ignore[reportArgumentType]
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, "utf-8")
