"""Calls as values: what each one sends, alone or in a batch, and how it reads its answer.

A call concerns one key. It knows its request, the method that takes it, and what its caller gets;
so the queue and the sender need not ask of which kind a call is.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from enum import Enum
from itertools import chain
from typing import ClassVar, Final, Generic, Protocol, TypeAlias, TypeVar

import msgspec
from typing_extensions import override

from kvorum.etcd.entries import first_of
from kvorum.etcd.transport import Call, Channel, Method
from kvorum.etcd.transport import _rpc as rpc

Request = TypeVar("Request", bound="rpc.Message")
Response = TypeVar("Response", bound="rpc.Answer")
Result_co = TypeVar("Result_co", covariant=True)

# What the caller of a read, a put and a transaction gets: the key, the revision, and what etcd
# answered with the revision of that.
TxnResult: TypeAlias = tuple[rpc.TxnResponse, int]
Result: TypeAlias = rpc.KeyValue | int | TxnResult | None

_OVERHEAD: Final = 64  # bytes that an operation adds to a request besides key and value, at most


class Unanswered(Enum):
    """Why a call got neither an answer nor an error from its batch."""

    SEND_ALONE = "the batch had no effect: send the call alone"
    SUPERSEDED = "the key is past the revision that the call expects: only a read is left to do"
    EXPIRED = "the deadline has passed"
    CLOSED = "the client was closed before the call was sent"


# What its caller gets, or raises: an error of Kvorum's, or of an observer.
Outcome: TypeAlias = Result | Exception | Unanswered
A = TypeVar("A", bound=Result)  # of a call whose result the type checker follows


class Send(Protocol):
    """How a call is sent: `Connection.send` or `Connection.once`."""

    def __call__(
        self, method: Method[Request, Response], request: Request, call: Call, deadline: float, /
    ) -> Coroutine[object, None, Response]:
        """Send a request by a method of a channel; return the response."""
        ...


class PendingCall(msgspec.Struct, Generic[Result_co], eq=False):
    """A call that waits to be sent, or was sent and waits for its answer.

    Attributes:
        key: the key that it reads, or compares and writes; it touches no other.
        deadline: until when its caller waits, on the event loop's clock.
        value_size: bytes of the value that it writes.
        expected: the mod_revision above 0 that the key has to be at; 0 if it does not depend on
            one.
        goes_alone: whether it goes in no batch, since a similar one was refused recently.
        is_sent: whether it was sent. From then on it may be applied, even if its caller gives up.
        outcome: its result. The sender sets it; it is cancelled with the caller.
    """

    is_write: ClassVar[bool] = True  # whether it may write the key

    key: bytes
    deadline: float
    value_size: int = 0
    expected: int = 0
    goes_alone: bool = False
    is_sent: bool = False
    outcome: asyncio.Future[Outcome] | None = None

    def __repr__(self) -> str:  # without the value
        return f"<{type(self).__name__} of {self.subject}>"

    @property
    def subject(self) -> str:
        """The key, for messages."""
        return self.key.decode(errors="backslashreplace")

    @property
    def size(self) -> int:
        """About how many bytes it adds to a request."""
        return 3 * len(self.key) + self.value_size + _OVERHEAD

    @property
    def is_done(self) -> bool:
        """Whether it has an outcome, or its caller gave up."""
        return self.outcome is not None and self.outcome.done()

    def settle(self, outcome: Outcome) -> None:
        """Hand its caller an outcome, unless it has one or gave up."""
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(outcome)

    # --- by kind ---

    @property
    def description(self) -> Call:
        """What it does, for error messages."""
        raise NotImplementedError

    @property
    def needs_space(self) -> bool:
        """Whether a store without room refuses it."""
        raise NotImplementedError

    @property
    def leases(self) -> Sequence[int]:
        """The leases that it puts its key on."""
        return ()

    async def send(self, by: Send, deadline: float) -> Result_co:
        """Send it in a request of its own; return its caller's result.

        Args:
            by: how.
            deadline: until when, on the event loop's clock.
        """
        raise NotImplementedError

    def add_to(self, steps: "rpc.Repeated[rpc.RequestOp]") -> None:
        """Add its operation to those of a batch."""
        raise NotImplementedError

    def answer_in_batch(self, response: rpc.ResponseOp, revision: int) -> Result_co:
        """Return its caller's result.

        Args:
            response: what etcd answered to its operation.
            revision: the one of the whole batch.
        """
        raise NotImplementedError

    def answer_when_superseded(self, found: rpc.KeyValue | None) -> Result_co:
        """Return what etcd would answer now that the key is past the revision it expects.

        Only calls that expect one have such an answer.

        Args:
            found: the key as it is; None if it does not exist.
        """
        raise NotImplementedError


class ReadCall(PendingCall[rpc.KeyValue | None]):
    """A linearizable read of a key. The caller gets the key; None if it does not exist."""

    is_write: ClassVar[bool] = False

    @property
    def request(self) -> rpc.RangeRequest:
        """The request that it is when sent alone; made then, since most reads are batched."""
        return rpc.RangeRequest(key=self.key)

    @staticmethod
    def stub(channel: Channel) -> rpc.Unary[rpc.RangeRequest, rpc.RangeResponse]:
        """Return the method of etcd that takes the request."""
        return channel.kv.Range

    @staticmethod
    def answer_of(response: rpc.RangeResponse) -> rpc.KeyValue | None:
        """Return the caller's result, when sent alone."""
        return first_of(response)

    @property
    @override
    def description(self) -> Call:
        return Call("read", self.subject)

    @property
    @override
    def needs_space(self) -> bool:
        return False

    @override
    async def send(self, by: Send, deadline: float) -> rpc.KeyValue | None:
        return self.answer_of(await by(self.stub, self.request, self.description, deadline))

    @override
    def add_to(self, steps: "rpc.Repeated[rpc.RequestOp]") -> None:
        steps.add().request_range.key = self.key

    @override
    def answer_in_batch(self, response: rpc.ResponseOp, revision: int) -> rpc.KeyValue | None:
        return first_of(response.response_range)


class PutCall(PendingCall[int], kw_only=True):
    """A write of a key whatever its state. The caller gets the revision.

    Attributes:
        request: what it sends, alone or in a batch.
    """

    request: rpc.PutRequest

    @staticmethod
    def stub(channel: Channel) -> rpc.Unary[rpc.PutRequest, rpc.PutResponse]:
        """Return the method of etcd that takes the request."""
        return channel.kv.Put

    @staticmethod
    def answer_of(response: rpc.PutResponse) -> int:
        """Return the caller's result, when sent alone."""
        return response.header.revision

    @property
    @override
    def description(self) -> Call:
        return Call("put", self.subject, writes=True)

    @property
    @override
    def needs_space(self) -> bool:
        return True

    @property
    @override
    def leases(self) -> Sequence[int]:
        lease = self.request.lease
        return (lease,) if lease else ()

    @override
    async def send(self, by: Send, deadline: float) -> int:
        return self.answer_of(await by(self.stub, self.request, self.description, deadline))

    @override
    def add_to(self, steps: "rpc.Repeated[rpc.RequestOp]") -> None:
        # At the top level, where etcd counts it against its quota.
        steps.add().request_put.CopyFrom(self.request)

    @override
    def answer_in_batch(self, response: rpc.ResponseOp, revision: int) -> int:
        return revision


class TxnCall(PendingCall[TxnResult], kw_only=True):
    """A transaction about one key. The caller gets etcd's answer, and the revision of it.

    Attributes:
        request: what it sends, alone or in a batch.
    """

    request: rpc.TxnRequest

    @staticmethod
    def stub(channel: Channel) -> rpc.Unary[rpc.TxnRequest, rpc.TxnResponse]:
        """Return the method of etcd that takes the request."""
        return channel.kv.Txn

    @staticmethod
    def answer_of(response: rpc.TxnResponse) -> TxnResult:
        """Return the caller's result, when sent alone."""
        return response, response.header.revision

    @property
    @override
    def description(self) -> Call:
        return Call("transaction", self.subject, writes=True)

    @property
    @override
    def needs_space(self) -> bool:
        steps = chain(self.request.success, self.request.failure)
        return any(step.HasField("request_put") or step.HasField("request_txn") for step in steps)

    @property
    @override
    def leases(self) -> Sequence[int]:
        steps = chain(self.request.success, self.request.failure)
        found = [step.request_put.lease for step in steps if step.HasField("request_put")]
        return [lease for lease in found if lease]

    @override
    async def send(self, by: Send, deadline: float) -> TxnResult:
        return self.answer_of(await by(self.stub, self.request, self.description, deadline))

    @override
    def add_to(self, steps: "rpc.Repeated[rpc.RequestOp]") -> None:
        steps.add().request_txn.CopyFrom(self.request)

    @override
    def answer_in_batch(self, response: rpc.ResponseOp, revision: int) -> TxnResult:
        return response.response_txn, revision

    @override
    def answer_when_superseded(self, found: rpc.KeyValue | None) -> TxnResult:
        return refusal(found), 0


# The kinds of calls that wait together. `PendingCall` is covariant in its result.
AnyCall: TypeAlias = PendingCall[Result]


def known_revision(result: Result) -> int:
    """Return the revision at which the key of an answered write is known to be; 0 if unknown.

    A write that was applied is at its own. One that was refused may say what it found.
    """
    if isinstance(result, int):
        return result
    if not isinstance(result, tuple):
        return 0
    said, revision = result
    if said.succeeded:
        return revision
    found = first_of(said.responses[0].response_range) if said.responses else None
    return found.mod_revision if found is not None else 0


def refusal(found: rpc.KeyValue | None) -> rpc.TxnResponse:
    """Return what etcd answers to a compare-and-swap that it refuses: the key as it is."""
    kvs = [] if found is None else [found]
    return rpc.TxnResponse(responses=[rpc.ResponseOp(response_range=rpc.RangeResponse(kvs=kvs))])
