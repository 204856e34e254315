"""What is known of the cluster from the headers of its answers: which one it is, and how far it has come.

1. A cluster is its id, not an address. The first answer tells it. A server that answers with
   another one serves other data: nothing that it says is believed.
2. No answer older than one already seen is believed. A linearizable read that was sent when
   revision F was known, and answers with less, comes from a member that is behind (etcd before
   3.4.42, 3.5.28 and 3.6.9: issue 20418), or from a store that was put back. So does a put that
   answers with F or less.

Any answer to a call raises the floor: the revision in its header is committed. But only the answer
to a linearizable read proves what is "now". The responses of watches do not raise it: when a store
was put back, a watch has to hear how far that has come to say so (`FutureRevisionError`), and would
wait for an answer to be believed instead.
"""

import logging
from enum import Enum
from typing import Final

from kvorum.etcd.transport import _rpc as rpc

_log = logging.getLogger(__name__)

_OF_KEYS: Final = (rpc.RangeResponse, rpc.TxnResponse, rpc.PutResponse, rpc.DeleteRangeResponse)


class Doubt(Enum):
    """Why an answer is not to be believed."""

    FOREIGN = "it is of another cluster"
    STALE = "it is older than one before it"


class Floor:
    """What the answers have told so far.

    Attributes:
        cluster_id: of the cluster; 0 before the first answer.
        revision: the highest that was seen.
    """

    __slots__ = ("_told", "cluster_id", "revision")

    def __init__(self) -> None:
        self.cluster_id: int = 0
        self.revision: int = 0
        self._told: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<Floor of cluster {self.cluster_id:x} [revision {self.revision}]>"

    def is_foreign(self, header: rpc.ResponseHeader) -> bool:
        """Tell whether a header is of another cluster. A proxy may leave the id out.

        That says nothing.
        """
        return header.cluster_id not in {self.cluster_id, 0} and self.cluster_id != 0

    def doubt(self, answer: "rpc.Answer", known: int) -> Doubt | None:
        """Look closer at an answer whose header is not what was expected, and learn from it if it is right.

        Args:
            answer: the answer.
            known: the floor when its request was sent.
        """
        header = answer.header
        if self.is_foreign(header):
            return Doubt.FOREIGN
        self.cluster_id = self.cluster_id or header.cluster_id
        revision = header.revision
        # What has written makes a revision of its own, so it must be above.
        least = known + 1 if _has_written(answer) else known
        if revision and isinstance(answer, _OF_KEYS) and revision < least:
            return Doubt.STALE
        self.revision = max(self.revision, revision)
        return None

    def words_for_foreign(self, address: str, header: rpc.ResponseHeader) -> str:
        """Say that a server is of another cluster; the log says it once for each."""
        text = (
            f"it belongs to another cluster: its id is {header.cluster_id:x}, not {self.cluster_id:x}, which answered "
            "first; it is not used until it answers with that"
        )
        if (address, header.cluster_id) not in self._told:
            self._told.add((address, header.cluster_id))
            _log.error("etcd at %s is not used: %s", address, text)
        return text


def _has_written(answer: "rpc.Answer") -> bool:
    """Tell whether an answer is to something that has changed a key.

    A transaction may have changed nothing.
    """
    if not isinstance(answer, rpc.TxnResponse):
        return isinstance(answer, rpc.PutResponse)
    return any(
        step.HasField("response_put")
        or step.response_delete_range.deleted > 0
        or _has_written(step.response_txn)
        for step in answer.responses
    )
