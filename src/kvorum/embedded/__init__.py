"""A real etcd as a child process, for tests, demos and single-machine services.

Starting one needs no driver.
"""

from kvorum.embedded.member import ServerTls
from kvorum.embedded.server import EmbeddedEtcd

__all__ = ["EmbeddedEtcd", "ServerTls"]
