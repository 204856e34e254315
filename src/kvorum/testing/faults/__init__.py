"""Fault injection: a proxy, scripted faults, and an operator's actions."""

from kvorum.testing.faults.operator import WAIT_LIMIT, Operator, OperatorError
from kvorum.testing.faults.proxy import FaultProxy, ProxyStatistics
from kvorum.testing.faults.script import FAULTS, FaultScript, Step

__all__ = [
    "FAULTS",
    "WAIT_LIMIT",
    "FaultProxy",
    "FaultScript",
    "Operator",
    "OperatorError",
    "ProxyStatistics",
    "Step",
]
