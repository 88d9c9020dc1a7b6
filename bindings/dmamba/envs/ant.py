"""Ant: a four-legged robot; an episode ends when it leaves the healthy height range.

gymnasium's Ant-v4 observes 27 values. D4RL's recordings hold 111, contact forces included: a model
trained on those does not fit this environment, and the evaluation says so. The paper has no recipe.
"""

from dmamba.envs.environment import Environment

# Score constants: d4rl/infos.py, the same for v0 to v2.
ANT = Environment(
    name="ant",
    gym_id="Ant-v4",
    state_dim=27,
    act_dim=8,
    score_min=-325.6,
    score_max=3879.7,
)
