"""What disturbs a server: a proxy, scripted faults, and an operator's actions."""

from kvorum.testing.faults.operator import PATIENCE, Operator, OperatorError
from kvorum.testing.faults.proxy import FaultProxy, ProxyStatistics
from kvorum.testing.faults.script import FAULTS, FaultScript, Step

__all__ = [
    "FAULTS",
    "PATIENCE",
    "FaultProxy",
    "FaultScript",
    "Operator",
    "OperatorError",
    "ProxyStatistics",
    "Step",
]
