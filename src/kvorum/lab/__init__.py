"""The lab domain: lab workers, the labs on them, and their repositories.

It uses the public API alone.
"""

from kvorum.lab.aws import AwsEc2Config, EbsVolume, Ec2Status
from kvorum.lab.capacity import Capacity, InsufficientCapacityError, ResourceQuantity
from kvorum.lab.cml import CmlConfig, CmlStatus
from kvorum.lab.instance import DEFAULT_DURATION, MAX_DURATION, LabInstance, LabInstanceSpec
from kvorum.lab.instance_phase import LEGAL_INSTANCE_MOVES, PLACED_PHASES, LabInstancePhase
from kvorum.lab.instance_repository import LabInstanceRepository
from kvorum.lab.instance_status import LabInstanceStatus
from kvorum.lab.phase import (
    ACTIVE_PHASES,
    HOSTING_PHASES,
    LEGAL_MOVES,
    READY_PHASES,
    LabWorkerPhase,
)
from kvorum.lab.repository import LabWorkerRepository
from kvorum.lab.status import LabWorkerStatus
from kvorum.lab.worker import LAB_TRACK_LABEL, LabWorker, LabWorkerSpec

__all__ = [  # noqa: RUF022 - grouped by what they are about
    # Workers, and where they are kept
    "LAB_TRACK_LABEL",
    "AwsEc2Config",
    "CmlConfig",
    "CmlStatus",
    "EbsVolume",
    "Ec2Status",
    "LabWorker",
    "LabWorkerRepository",
    "LabWorkerSpec",
    "LabWorkerStatus",
    # The life of a worker
    "ACTIVE_PHASES",
    "HOSTING_PHASES",
    "LEGAL_MOVES",
    "READY_PHASES",
    "LabWorkerPhase",
    # The room of a worker for labs
    "Capacity",
    "InsufficientCapacityError",
    "ResourceQuantity",
    # Labs, and where they are kept
    "DEFAULT_DURATION",
    "MAX_DURATION",
    "LabInstance",
    "LabInstanceRepository",
    "LabInstanceSpec",
    "LabInstanceStatus",
    # The life of a lab
    "LEGAL_INSTANCE_MOVES",
    "PLACED_PHASES",
    "LabInstancePhase",
]
