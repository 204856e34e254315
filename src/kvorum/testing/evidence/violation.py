"""The findings of the checkers."""

from enum import StrEnum

import msgspec

from kvorum.testing.evidence.history import Call


class Rule(StrEnum):
    """The rule that was broken."""

    LOST_WRITE = "lost write"  # a call is done, but its write is missing
    INVENTED_WRITE = "invented write"  # a change that no call requested
    APPLIED_TWICE = "applied twice"
    WRONG_VALUE = "wrong value"
    WRONG_CHANGE = "wrong change"  # a call was told of a different change
    BROKEN_EXPECTATION = (
        "broken expectation"  # a lost update: the previous state was not the expected one
    )
    # Each call checked what the other one wrote, in one revision: no order explains both.
    WRITE_SKEW = "write skew"
    FALSE_REFUSAL = "false refusal"  # refused without a reason, or although it was applied
    REAL_TIME = "real-time order"
    STALE_READ = "stale read"
    INVENTED_READ = "invented read"  # a state that never existed
    WRONG_SNAPSHOT = "wrong snapshot"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"  # the search for an order was given up
    LEASE_ENDED_EARLY = "lease ended early"  # a key was gone before its lease can have expired
    LEASE_OUTLIVED = "lease outlived"  # a key exists although its lease was revoked
    MEMBERS_DIFFER = "members differ"  # members hold different data permanently
    NEEDLESS_DOUBT = "needless doubt"  # an outcome is unknown although etcd rejected the request
    OUTAGE = "outage"  # a client does not recover although the cluster has
    # watches
    LOST_EVENT = "lost event"
    INVENTED_EVENT = "invented event"
    DUPLICATE_EVENT = "duplicate event"
    EVENT_ORDER = "event order"
    SPLIT_REVISION = "split revision"
    WRONG_EVENT = "wrong event"  # for example added instead of modified
    WRONG_PREVIOUS = "wrong previous value"
    WRONG_BOOKMARK = "wrong bookmark"
    WRONG_RESUMPTION = "wrong resumption"


class Violation(msgspec.Struct, frozen=True):
    """One finding of a checker.

    Attributes:
        rule: the rule that was broken.
        message: what broke it, and how.
        call: the call that shows it, if there is one.
    """

    rule: Rule
    message: str
    call: Call | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"
