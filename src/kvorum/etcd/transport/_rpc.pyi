# The types of the driver's messages, as far as Kvorum uses them. aetcd ships none. Source of the
# fields: etcd's api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto, the subset that 3.4 and 3.5
# share.

import enum
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Generic, Self, TypeVar

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)

class StatusCode(enum.Enum):
    OK = ...
    CANCELLED = ...
    UNKNOWN = ...
    INVALID_ARGUMENT = ...
    DEADLINE_EXCEEDED = ...
    NOT_FOUND = ...
    ALREADY_EXISTS = ...
    PERMISSION_DENIED = ...
    UNAUTHENTICATED = ...
    RESOURCE_EXHAUSTED = ...
    FAILED_PRECONDITION = ...
    ABORTED = ...
    OUT_OF_RANGE = ...
    UNIMPLEMENTED = ...
    INTERNAL = ...
    UNAVAILABLE = ...
    DATA_LOSS = ...

class AioRpcError(Exception):
    def code(self) -> StatusCode: ...
    def details(self) -> str | None: ...
    def debug_error_string(self) -> str: ...

class UsageError(Exception): ...
class InternalError(Exception): ...
class _Eof: ...

class Unary(Generic[_Request, _Response]):
    def __call__(
        self,
        request: _Request,
        *,
        timeout: float,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> Awaitable[_Response]: ...

class Stream(Generic[_Request, _Response]):
    async def write(self, request: _Request) -> None: ...
    async def read(self) -> _Response | _Eof: ...
    def cancel(self) -> bool: ...

class Message:  # of protobuf
    def ByteSize(self) -> int: ...  # noqa: N802
    def CopyFrom(self, other: Self) -> None: ...  # noqa: N802

_Part = TypeVar("_Part")

class Repeated(Generic[_Part]):  # to make parts in place is much faster than to copy them there
    def add(self) -> _Part: ...
    def __iter__(self) -> Iterator[_Part]: ...

class ResponseHeader:
    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    def __init__(self, *, cluster_id: int = ..., revision: int = ...) -> None: ...

class Answer:  # each of etcd's has one
    header: ResponseHeader

class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        version: int = ...,
    ) -> None: ...

class RangeRequest(Message):
    key: bytes
    revision: int
    keys_only: bool
    count_only: bool
    def __init__(
        self,
        *,
        key: bytes,
        range_end: bytes = ...,
        limit: int = ...,
        revision: int = ...,
        keys_only: bool = ...,
        count_only: bool = ...,
    ) -> None: ...

class RangeResponse(Answer):
    kvs: Sequence[KeyValue]
    more: bool
    count: int
    def __init__(self, *, kvs: Iterable[KeyValue] = ...) -> None: ...

class PutRequest(Message):
    key: bytes
    value: bytes
    lease: int
    ignore_lease: bool
    def __init__(self, *, key: bytes = ..., value: bytes = ...) -> None: ...

class PutResponse(Answer): ...

class DeleteRangeRequest(Message):
    key: bytes
    prev_kv: bool
    def __init__(self, *, key: bytes, range_end: bytes = ..., prev_kv: bool = ...) -> None: ...

class DeleteRangeResponse(Answer):
    deleted: int
    prev_kvs: Sequence[KeyValue]

class Compare:
    EQUAL: int
    GREATER: int
    MOD: int
    VALUE: int
    VERSION: int
    result: int
    target: int
    key: bytes
    mod_revision: int
    value: bytes
    version: int

class RequestOp:
    request_range: RangeRequest
    request_put: PutRequest
    request_delete_range: DeleteRangeRequest
    request_txn: TxnRequest
    def HasField(self, name: str, /) -> bool: ...  # noqa: N802 - protobuf's name

class ResponseOp:
    response_range: RangeResponse
    response_put: PutResponse
    response_delete_range: DeleteRangeResponse
    response_txn: TxnResponse
    def HasField(self, name: str) -> bool: ...  # noqa: N802 - protobuf calls it so
    def __init__(self, *, response_range: RangeResponse = ...) -> None: ...

class TxnRequest(Message):
    compare: Repeated[Compare]
    success: Repeated[RequestOp]
    failure: Repeated[RequestOp]
    def __init__(self) -> None: ...

class TxnResponse(Answer):
    succeeded: bool
    responses: Sequence[ResponseOp]
    def __init__(self, *, succeeded: bool = ..., responses: Iterable[ResponseOp] = ...) -> None: ...

class LeaseGrantRequest(Message):
    def __init__(self, *, TTL: int, ID: int = ...) -> None: ...  # noqa: N803 - protobuf's names

class LeaseGrantResponse(Answer):
    ID: int
    TTL: int
    error: str

class LeaseRevokeRequest(Message):
    def __init__(self, *, ID: int) -> None: ...  # noqa: N803

class LeaseRevokeResponse(Answer): ...

class LeaseTimeToLiveRequest(Message):
    def __init__(self, *, ID: int, keys: bool = ...) -> None: ...  # noqa: N803

class LeaseTimeToLiveResponse(Answer):
    TTL: int
    keys: Sequence[bytes]

class StatusRequest(Message): ...

class StatusResponse(Answer):
    version: str
    leader: int
    isLearner: bool  # noqa: N815 - protobuf's names
    dbSize: int  # noqa: N815 - protobuf's names
    dbSizeInUse: int  # noqa: N815 - protobuf's names
    raftIndex: int  # noqa: N815 - protobuf's names
    raftAppliedIndex: int  # noqa: N815 - protobuf's names
    raftTerm: int  # noqa: N815 - protobuf's names
    errors: Sequence[str]

class AlarmRequest(Message): ...

class AlarmMember:
    memberID: int  # noqa: N815 - protobuf's names
    alarm: int

class AlarmResponse(Answer):
    alarms: Sequence[AlarmMember]

class WatchCreateRequest(Message):
    key: bytes
    range_end: bytes
    start_revision: int
    fragment: bool
    def __init__(
        self,
        *,
        key: bytes,
        range_end: bytes,
        start_revision: int,
        prev_kv: bool,
        progress_notify: bool = ...,
        fragment: bool = ...,
    ) -> None: ...

class WatchRequest(Message):
    def __init__(self, *, create_request: WatchCreateRequest) -> None: ...

class Event:
    type: int
    kv: KeyValue
    prev_kv: KeyValue
    def __init__(self, *, type: int = ..., kv: KeyValue = ...) -> None: ...  # noqa: A002 - the field's name

class WatchResponse(Answer):
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    fragment: bool
    events: Sequence[Event]
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
        created: bool = ...,
        events: Iterable[Event] = ...,
        fragment: bool = ...,
    ) -> None: ...

class MemberListRequest(Message):
    def __init__(self, *, linearizable: bool = ...) -> None: ...

class Member:
    ID: int
    name: str
    clientURLs: Sequence[str]  # noqa: N815
    peerURLs: Sequence[str]  # noqa: N815
    isLearner: bool  # noqa: N815

class MemberListResponse(Answer):
    members: Sequence[Member]

class CompactionRequest(Message):
    revision: int
    def __init__(self, *, revision: int, physical: bool = ...) -> None: ...

class CompactionResponse(Answer): ...

class DefragmentRequest(Message):
    def __init__(self) -> None: ...

class DefragmentResponse(Answer): ...

class HashKVRequest(Message):
    def __init__(self, *, revision: int) -> None: ...

class HashKVResponse(Answer):
    hash: int
    compact_revision: int

class AuthenticateRequest(Message):
    def __init__(self, *, name: str, password: str) -> None: ...

class AuthenticateResponse(Answer):
    token: str

class ChannelConnectivity(enum.Enum):
    IDLE = ...
    CONNECTING = ...
    READY = ...
    TRANSIENT_FAILURE = ...
    SHUTDOWN = ...

class ChannelCredentials: ...

class Channel:
    def get_state(self) -> ChannelConnectivity: ...
    async def close(self, grace: float | None = ...) -> None: ...

def ssl_channel_credentials(
    root_certificates: bytes | None, private_key: bytes | None, certificate_chain: bytes | None
) -> ChannelCredentials: ...
def insecure_channel(target: str, *, options: Sequence[tuple[str, int | str]]) -> Channel: ...
def secure_channel(
    target: str, credentials: ChannelCredentials, *, options: Sequence[tuple[str, int | str]]
) -> Channel: ...

class KVStub:
    def __init__(self, channel: Channel) -> None: ...
    Range: Unary[RangeRequest, RangeResponse]
    Put: Unary[PutRequest, PutResponse]
    DeleteRange: Unary[DeleteRangeRequest, DeleteRangeResponse]
    Txn: Unary[TxnRequest, TxnResponse]
    Compact: Unary[CompactionRequest, CompactionResponse]

class LeaseStub:
    def __init__(self, channel: Channel) -> None: ...
    LeaseGrant: Unary[LeaseGrantRequest, LeaseGrantResponse]
    LeaseRevoke: Unary[LeaseRevokeRequest, LeaseRevokeResponse]
    LeaseTimeToLive: Unary[LeaseTimeToLiveRequest, LeaseTimeToLiveResponse]

class MaintenanceStub:
    def __init__(self, channel: Channel) -> None: ...
    Status: Unary[StatusRequest, StatusResponse]
    Alarm: Unary[AlarmRequest, AlarmResponse]
    Defragment: Unary[DefragmentRequest, DefragmentResponse]
    HashKV: Unary[HashKVRequest, HashKVResponse]

class ClusterStub:
    def __init__(self, channel: Channel) -> None: ...
    MemberList: Unary[MemberListRequest, MemberListResponse]

class AuthStub:
    def __init__(self, channel: Channel) -> None: ...
    Authenticate: Unary[AuthenticateRequest, AuthenticateResponse]

class WatchStub:
    def __init__(self, channel: Channel) -> None: ...
    def Watch(  # noqa: N802
        self, *, metadata: Sequence[tuple[str, str]]
    ) -> Stream[WatchRequest, WatchResponse]: ...
