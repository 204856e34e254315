"""A real etcd as a child process, for tests, demos and single-machine services.

Starting one needs no driver.
"""

from kvorum.embedded.binary import LOSES_DATA, EtcdBinary
from kvorum.embedded.member import EtcdMember, ServerTls, member_command
from kvorum.embedded.process_group import ProcessGroup
from kvorum.embedded.server import EmbeddedEtcd

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # A server
    "EmbeddedEtcd",
    "ServerTls",
    # Its parts, for a member beside those of a server
    "EtcdBinary",
    "EtcdMember",
    "ProcessGroup",
    "member_command",
    "LOSES_DATA",
]
