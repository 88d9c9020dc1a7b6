"""HalfCheetah: a two-legged robot in the plane; every episode lasts until the time limit."""

from dmamba.envs.environment import Environment

# Score constants: d4rl/infos.py, the same for v0 to v2. Recipe: Ota, arXiv 2403.19925, and code.
HALFCHEETAH = Environment(
    name="halfcheetah",
    gym_id="HalfCheetah-v4",
    state_dim=17,
    act_dim=6,
    score_min=-280.178953,
    score_max=12135.0,
    rtg_scale=1000.0,
    targets=(6000.0, 12000.0, 24000.0, 120000.0, 240000.0),
)
