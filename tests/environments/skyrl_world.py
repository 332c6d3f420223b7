"""One of SkyRL's environments with Gymnasium's interface, run by the Python of .environments/skyrl."""

import skyrl_gym


class Gsm8k:
    """SkyRL's multi-turn GSM8K: seed + 1 apples, until the answer is right or three turns are over."""

    def reset(self, seed=0):
        question, answer = f"Ann has {seed} apples and buys one. How many has she?", str(seed + 1)
        extras = {"reward_spec": {"ground_truth": answer}, "max_turns": 3}
        self.env = skyrl_gym.make("gsm8k_multi_turn", extras=extras)
        messages, info = self.env.init([{"role": "user", "content": question}])
        return "\n".join(message["content"] for message in messages), info

    def step(self, action):
        told = self.env.step(action)
        text = "\n".join(message["content"] for message in told["observations"])
        return text, told["reward"], told["done"], False, told["metadata"]
