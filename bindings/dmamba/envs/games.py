"""Atari games: their names, and the constants of the human-normalised score.

    score = 100 (R - random) / (human - random)

The constants are those of Wang et al. (Dueling Network Architectures, 2016, arXiv 1511.06581),
which DQN Zoo and DreamerV2 list, too; rounded to whole numbers they are those of the Decision
Transformer's paper (Breakout 2 / 30). The human returns of Mnih et al. (2015) are others.

Nothing here needs ale-py; ``atari.py`` plays the games.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FRAMES_PER_STEP = 4  # the frame skip of the recordings, and of the papers
MAX_FRAMES = 108_000  # ALE's limit of an episode: half an hour of play

SOURCE = "Wang et al. 2016, arXiv 1511.06581"


@dataclass(frozen=True)
class Game:
    """One Atari game.

    Attributes:
        name: As in its gymnasium id.
        num_actions: Of the minimal set; None: only ale-py knows.
        score_min: Raw return that scores 0 (a random policy); None where no constants are known.
        score_max: Raw return that scores 100 (a human).
        max_episode_steps: ALE's time limit in steps of four frames.
        score_source: Where the two constants come from.
    """

    name: str
    num_actions: int | None = None
    score_min: float | None = None
    score_max: float | None = None
    max_episode_steps: int = MAX_FRAMES // FRAMES_PER_STEP
    score_source: str = SOURCE

    @property
    def gym_id(self) -> str:
        """The game's id in gymnasium."""
        return f"ALE/{self.name}-v5"


_SCORED = (
    Game("Assault", 7, 222.4, 742.0),
    Game("Asterix", 9, 210.0, 8503.3),
    Game("Breakout", 4, 1.7, 30.5),
    Game("Frostbite", 18, 65.2, 4334.7),
    Game("Gopher", 8, 257.6, 2412.5),
    Game("Pong", 6, -20.7, 14.6),
    Game("Qbert", 6, 163.9, 13455.0),
    Game("Seaquest", 18, 68.4, 42054.7),
)
# The other games of the DQN-replay recordings.
_UNSCORED = (
    "AirRaid Alien Amidar Asteroids Atlantis BankHeist BattleZone BeamRider Berzerk Bowling Boxing "
    "Carnival Centipede ChopperCommand CrazyClimber DemonAttack DoubleDunk ElevatorAction Enduro "
    "FishingDerby Freeway Gravitar Hero IceHockey Jamesbond JourneyEscape Kangaroo Krull "
    "KungFuMaster MontezumaRevenge MsPacman NameThisGame Phoenix Pitfall Pooyan PrivateEye "
    "Riverraid RoadRunner Robotank Skiing Solaris SpaceInvaders StarGunner Tennis TimePilot "
    "Tutankham UpNDown Venture VideoPinball WizardOfWor YarsRevenge Zaxxon"
).split()

_NAME = re.compile(r"(?P<ale>ALE/)?(?P<name>\w+?)(?:-v5)?")
# A recording's folder may be named down to its shards.
_SHARDS = re.compile(r"(?:[/\\]\d+)?(?:[/\\]replay_logs)?[/\\]?$")


def plain(name: str) -> str:
    """A game's name as all spellings share it: ``MsPacman``, ``ms_pacman`` give ``mspacman``."""
    found = _NAME.fullmatch(name)
    return (found["name"] if found else name).replace("_", "").lower()


GAMES: dict[str, Game] = {
    plain(game.name): game for game in (*_SCORED, *(Game(name) for name in _UNSCORED))
}


def find(name: str) -> Game | None:
    """Finds a game by its name, its gymnasium id, or the path of a recording.

    Any ``ALE/NAME-v5`` is taken for a game; in other texts only the names in ``GAMES`` are, and in
    a path only where it ends, before the folders of the shards.

    Example:
        >>> find("breakout").gym_id, find("data/MsPacman/1/replay_logs").name, find("Hopper-v4")
        ('ALE/Breakout-v5', 'MsPacman', None)
    """
    if found := _NAME.fullmatch(name):
        known = GAMES.get(plain(name))
        return known or (Game(found["name"]) if found["ale"] else None)
    last = re.split(r"[/\\]", _SHARDS.sub("", name))[-1]
    return GAMES.get(plain(last)) if _NAME.fullmatch(last) else None
