"""The identity of a cluster and its highest revision seen, from the headers of its answers.

1. A cluster is its id, not an address. The first answer sets it. A server with another id serves
   other data: its answers are rejected.
2. An answer older than one already seen is rejected. A linearizable read that was sent when
   revision F was known, and answers with less, comes from a member that is behind (etcd before
   3.4.42, 3.5.28 and 3.6.9: issue 20418), or from a store that was restored. So does a put that
   answers with F or less.

Every answer to a call raises the floor: the revision in its header is committed. But only the
answer to a linearizable read proves what is "now". The responses of watches do not raise it: after
a restore, a watch must see the store's revision to report it (`FutureRevisionError`). With a raised
floor it would wait for an answer to be accepted instead.
"""

import logging
from enum import Enum
from typing import Final

from kvorum.etcd.transport import _rpc as rpc

_log = logging.getLogger(__name__)

_OF_KEYS: Final = (rpc.RangeResponse, rpc.TxnResponse, rpc.PutResponse, rpc.DeleteRangeResponse)


class Doubt(Enum):
    """Why an answer is rejected."""

    FOREIGN = "it is of another cluster"
    STALE = "it is older than one before it"


class Floor:
    """What the answers have shown so far.

    Attributes:
        cluster_id: of the cluster; 0 before the first answer.
        revision: the highest one seen.
    """

    __slots__ = ("_told", "cluster_id", "revision")

    def __init__(self) -> None:
        self.cluster_id: int = 0
        self.revision: int = 0
        self._told: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<Floor of cluster {self.cluster_id:x} [revision {self.revision}]>"

    def is_foreign(self, header: rpc.ResponseHeader) -> bool:
        """Return whether a header is of another cluster. It is not if a proxy omits the id."""
        return header.cluster_id not in {self.cluster_id, 0} and self.cluster_id != 0

    def doubt(self, answer: "rpc.Answer", known: int) -> Doubt | None:
        """Check an answer with an unexpected header, and learn from it if it is right.

        Args:
            answer: the answer.
            known: the floor when its request was sent.
        """
        header = answer.header
        if self.is_foreign(header):
            return Doubt.FOREIGN
        self.cluster_id = self.cluster_id or header.cluster_id
        revision = header.revision
        # A write makes a revision of its own, which must be higher.
        least = known + 1 if _has_written(answer) else known
        if revision and isinstance(answer, _OF_KEYS) and revision < least:
            return Doubt.STALE
        self.revision = max(self.revision, revision)
        return None

    def foreign_message(self, address: str, header: rpc.ResponseHeader) -> str:
        """Return the message about a server of another cluster; log it once for each."""
        text = (
            f"it belongs to another cluster: id {header.cluster_id:x}, expected"
            f" {self.cluster_id:x}; ignored until the id matches"
        )
        if (address, header.cluster_id) not in self._told:
            self._told.add((address, header.cluster_id))
            _log.error("etcd at %s is not used: %s", address, text)
        return text


def _has_written(answer: "rpc.Answer") -> bool:
    """Return whether the request has changed a key. A transaction may have changed nothing."""
    if not isinstance(answer, rpc.TxnResponse):
        return isinstance(answer, rpc.PutResponse)
    return any(
        step.HasField("response_put")
        or step.response_delete_range.deleted > 0
        or _has_written(step.response_txn)
        for step in answer.responses
    )
