"""Reward models that learn from judges' labels during the run (ONI, arXiv:2410.23022), apart from everybody else.

reward worker: oni ── submit captions ─► label table ── take ─► labeller ─► judge
     ▲   score with the published model      │ news
     └── follower ◄── announcement ◄── reward_model: train, compare on held-out labels, publish
"""
