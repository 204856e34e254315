"""Scenes: long-running operations on clusters with clients at work, judged by the history."""

from collections.abc import Mapping
from typing import Final

from kvorum.testing.scenes import (
    another_cluster,
    backup,
    crowd,
    leaders,
    learner,
    quota,
    rolling,
    slow_link,
    starting,
    users,
)
from kvorum.testing.scenes.scene import Scene, SceneVerdict, play_scene
from kvorum.testing.scenes.stage import SceneLimits, Stage, UnplayableError

SCENES: Final[Mapping[str, Scene]] = {
    "quota": Scene(quota.play, arguments=(f"--quota-backend-bytes={quota.QUOTA}",)),
    "slow-link": Scene(slow_link.play),
    "leaders": Scene(leaders.play, members=3),
    "rolling-restart": Scene(rolling.play, members=3),
    "users": Scene(users.play, members=3, arguments=users.ARGUMENTS),
    "crowd": Scene(crowd.play, members=3, arguments=users.ARGUMENTS),
    "rolling-upgrade": Scene(crowd.play_upgrade, members=3, arguments=users.ARGUMENTS),
    "learner": Scene(learner.play, members=3, arguments=learner.ARGUMENTS),
    "another-cluster": Scene(another_cluster.play),
    "backup": Scene(backup.play, is_judged=False),
    "backup-bumped": Scene(backup.play_bumped, is_judged=False),
    "starting": Scene(starting.play),
}
"""All scenes, by name."""

__all__ = [
    "SCENES",
    "Scene",
    "SceneLimits",
    "SceneVerdict",
    "Stage",
    "UnplayableError",
    "play_scene",
]
