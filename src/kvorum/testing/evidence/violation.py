"""What a checker finds."""

from enum import StrEnum

import msgspec

from kvorum.testing.evidence.history import Call


class Rule(StrEnum):
    """What was broken."""

    LOST_WRITE = "lost write"  # a call is done, and nothing happened
    INVENTED_WRITE = "invented write"  # something happened that nobody wanted
    APPLIED_TWICE = "applied twice"
    WRONG_VALUE = "wrong value"
    WRONG_CHANGE = "wrong change"  # a call was told otherwise than it was
    BROKEN_EXPECTATION = (
        "broken expectation"  # written over something else than expected: a lost update
    )
    # each checked what the other one wrote, in one revision: no order explains both
    WRITE_SKEW = "write skew"
    FALSE_REFUSAL = "false refusal"  # refused for no reason, or in spite of being applied
    REAL_TIME = "real-time order"
    STALE_READ = "stale read"
    INVENTED_READ = "invented read"  # a state that never was
    WRONG_SNAPSHOT = "wrong snapshot"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"  # neither right nor wrong: the search for an order was given up
    LEASE_ENDED_EARLY = "lease ended early"  # a key was gone before its lease can have ended
    LEASE_OUTLIVED = "lease outlived"  # a key is there whose lease was revoked
    MEMBERS_DIFFER = "members differ"  # they hold different things, and always will
    NEEDLESS_DOUBT = (
        "needless doubt"  # an outcome is called unknown although the answer was a definite refusal
    )
    OUTAGE = "outage"  # a client does not go on although the cluster does
    # of watches
    LOST_EVENT = "lost event"
    INVENTED_EVENT = "invented event"
    DUPLICATE_EVENT = "duplicate event"
    EVENT_ORDER = "event order"
    SPLIT_REVISION = "split revision"
    WRONG_EVENT = "wrong event"  # added for modified, say
    WRONG_PREVIOUS = "wrong previous value"
    WRONG_BOOKMARK = "wrong bookmark"
    WRONG_RESUMPTION = "wrong resumption"


class Violation(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        rule: what was broken.
        message: by what, and how.
        call: the call that shows it, if it is one.
    """

    rule: Rule
    message: str
    call: Call | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"
