"""The limits and waits of everything that a session owns, in one value.

Each part declares its own in a frozen struct: the transport all of them in one module, the others
beside the code that they limit. A test that needs another limit passes another value, and patches
nothing.
"""

from typing import Final

from kvorum.etcd.outcomes import SearchLimits
from kvorum.etcd.pipeline import QueueLimits, QuotaTiming, RefusalLimits
from kvorum.etcd.transport import TransportPolicies
from kvorum.etcd.watch import WatchTiming
from kvorum.runtime import Limits


class Policies(Limits, frozen=True, kw_only=True):
    """Limits and waits. The defaults are what applications use.

    Attributes:
        close_timeout: seconds that closing a client may take. An embedded server may have to be
            killed first; everything else closes within milliseconds.
        transport: of servers, tokens, members and streams.
        queue: of each of the pipeline's two queues.
        quota: of the pipeline's questions about alarms.
        refusals: of the pipeline's memory of calls that were refused.
        watches: of watches.
        searches: of searches for the outcome of a write.
    """

    close_timeout: float = 15.0
    transport: TransportPolicies = TransportPolicies()
    queue: QueueLimits = QueueLimits()
    quota: QuotaTiming = QuotaTiming()
    refusals: RefusalLimits = RefusalLimits()
    watches: WatchTiming = WatchTiming()
    searches: SearchLimits = SearchLimits()


DEFAULT_POLICIES: Final = Policies()
