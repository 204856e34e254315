"""The lab domain: lab workers, and the repository that finds them. Built on Kvorum's public API alone."""

from kvorum.lab.aws import AwsEc2Config, EbsVolume, Ec2Status
from kvorum.lab.capacity import Capacity, InsufficientCapacityError, ResourceQuantity
from kvorum.lab.cml import CmlConfig, CmlStatus
from kvorum.lab.phase import ACTIVE_PHASES, HOSTING_PHASES, LEGAL_MOVES, READY_PHASES, LabWorkerPhase
from kvorum.lab.repository import LabWorkerRepository
from kvorum.lab.status import LabWorkerStatus
from kvorum.lab.worker import LAB_TRACK_LABEL, LabWorker, LabWorkerSpec

__all__ = [  # noqa: RUF022 - grouped by what they are about
    # The resource, and where it is kept
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
    # Its life
    "ACTIVE_PHASES",
    "HOSTING_PHASES",
    "LEGAL_MOVES",
    "READY_PHASES",
    "LabWorkerPhase",
    # Its room for labs
    "Capacity",
    "InsufficientCapacityError",
    "ResourceQuantity",
]
