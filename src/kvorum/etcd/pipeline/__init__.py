"""Concurrent calls are sent together: queue, batches, and what a cluster can be trusted with."""

from kvorum.etcd.pipeline.pipeline import HasPipeline, Pipeline

__all__ = [
    "HasPipeline",
    "Pipeline",
]
