"""Hopper: a one-legged robot in the plane; an episode ends when it falls."""

from dmamba.envs.environment import Environment

# Score constants: d4rl/infos.py, the same for v0 to v2. Recipe: Ota, arXiv 2403.19925, and code.
HOPPER = Environment(
    name="hopper",
    gym_id="Hopper-v4",
    state_dim=11,
    act_dim=3,
    score_min=-20.272305,
    score_max=3234.3,
    rtg_scale=1000.0,
    targets=(1800.0, 3600.0, 7200.0, 36000.0, 72000.0),
)
