"""Concurrent calls are sent together: queue, batches, and what a cluster can be trusted with."""

from kvorum.etcd.pipeline.pipeline import Pipeline
from kvorum.etcd.pipeline.queue_policy import QueueLimits
from kvorum.etcd.pipeline.quota import QuotaTiming
from kvorum.etcd.pipeline.refusals import RefusalLimits

__all__ = [
    "Pipeline",
    "QueueLimits",
    "QuotaTiming",
    "RefusalLimits",
]
