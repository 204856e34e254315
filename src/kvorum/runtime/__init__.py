"""What all calls are made with: their owner, their limits, their retries."""

from kvorum.runtime.gather import gather
from kvorum.runtime.limits import Limits
from kvorum.runtime.owner import Owner
from kvorum.runtime.retries import raised_alone

__all__ = ["Limits", "Owner", "gather", "raised_alone"]
