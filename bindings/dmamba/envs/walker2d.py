"""Walker2d: a two-legged walker in the plane; an episode ends when it falls."""

from dmamba.envs.environment import Environment

# Score constants: d4rl/infos.py, the same for v0 to v2. Recipe: Ota, arXiv 2403.19925, and code.
WALKER2D = Environment(
    name="walker2d",
    gym_id="Walker2d-v4",
    state_dim=17,
    act_dim=6,
    score_min=1.629008,
    score_max=4592.3,
    rtg_scale=1000.0,
    targets=(2500.0, 5000.0, 10000.0, 50000.0, 100000.0),
)
