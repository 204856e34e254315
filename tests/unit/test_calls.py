"""A call gets the same result whether it is sent alone or in a batch."""

import asyncio
from typing import Any

import pytest

from kvorum.etcd.pipeline.batch import answers_to_writes, request_of_writes, split_by_space
from kvorum.etcd.pipeline.calls import (
    AnyCall,
    PutCall,
    ReadCall,
    TxnCall,
    known_revision,
    refusal,
)
from kvorum.etcd.transport import _rpc as rpc

KEY = b"/lab/a"
FOUND = rpc.KeyValue(key=KEY, mod_revision=7)


def put() -> PutCall:
    return PutCall(KEY, 0.0, 1, request=rpc.PutRequest(key=KEY, value=b"1"))


def swap() -> TxnCall:
    request = rpc.TxnRequest()
    request.success.add().request_put.key = KEY
    request.failure.add().request_range.key = KEY
    return TxnCall(KEY, 0.0, 1, 7, request=request)


def delete() -> TxnCall:
    request = rpc.TxnRequest()
    request.success.add().request_delete_range.key = KEY
    return TxnCall(KEY, 0.0, request=request)


def answered(*, revision: int, response: Any = None) -> rpc.TxnResponse:
    """What etcd answers to a batch of one operation."""
    responses = [response if response is not None else rpc.ResponseOp()]
    answer = rpc.TxnResponse(succeeded=True, responses=responses)
    answer.header.revision = revision
    return answer


def test_a_put_gets_the_revision() -> None:
    alone = rpc.PutResponse()
    alone.header.revision = 9

    assert put().answer_of(alone) == 9
    assert answers_to_writes({KEY: [put()]}, answered(revision=9)) == [9]


def test_a_transaction_gets_its_own_answer_and_the_revision() -> None:
    own = rpc.TxnResponse(succeeded=True)
    nested = rpc.ResponseOp()
    nested.response_txn.CopyFrom(own)  # type: ignore[attr-defined]  # tests build answers, the library reads them

    assert swap().answer_of(answered(revision=9)) == (answered(revision=9), 9)
    assert answers_to_writes({KEY: [swap()]}, answered(revision=9, response=nested)) == [(own, 9)]


@pytest.mark.parametrize("kvs", [[], [FOUND]])
def test_a_read_gets_the_key_or_none(kvs: list[rpc.KeyValue]) -> None:
    call, answer = ReadCall(KEY, 0.0), rpc.RangeResponse(kvs=kvs)

    assert call.answer_of(answer) == (kvs[0] if kvs else None)
    assert call.answer_in_batch(rpc.ResponseOp(response_range=answer), 0) == call.answer_of(answer)


def test_each_write_adds_its_request_to_a_batch() -> None:
    request = request_of_writes({b"a": [put()], b"b": [swap()]}, probe=False)

    first, second = request.success
    assert first.request_put == put().request
    assert second.request_txn == swap().request


def test_a_swap_that_is_superseded_is_answered_as_etcd_would_refuse_it() -> None:
    answer, revision = swap().answer_when_superseded(FOUND)

    assert not answer.succeeded
    assert answer == refusal(FOUND)
    assert revision == 0


def test_only_deletions_need_no_room() -> None:
    calls: dict[bytes, list[AnyCall]] = {b"a": [put()], b"b": [swap()], b"c": [delete()]}

    needs_no_space, others = split_by_space(calls)
    assert list(needs_no_space) == [b"c"]
    assert list(others) == [b"a", b"b"]


def test_the_result_of_a_write_tells_the_revision_of_its_key() -> None:
    assert known_revision(9) == 9
    assert known_revision((rpc.TxnResponse(succeeded=True), 9)) == 9
    assert known_revision((refusal(FOUND), 9)) == 7
    assert known_revision((refusal(None), 9)) == 0
    assert known_revision(None) == 0


async def test_a_call_sends_its_own_request_by_its_own_method() -> None:
    sent = []

    async def send(method: Any, request: Any, call: Any, deadline: float, /) -> Any:
        await asyncio.sleep(0)
        sent.append((method, request, call.operation, call.subject, deadline))
        return rpc.PutResponse() if request == put().request else rpc.RangeResponse()

    assert await put().send(send, 5.0) == 0
    assert await ReadCall(KEY, 0.0).send(send, 6.0) is None
    assert sent == [
        (PutCall.stub, put().request, "put", "/lab/a", 5.0),
        (ReadCall.stub, rpc.RangeRequest(key=KEY), "read", "/lab/a", 6.0),
    ]


def test_a_call_that_waits_does_not_show_its_value() -> None:
    call = PutCall(b"/a", 0.0, request=rpc.PutRequest(key=b"/a", value=b"a secret"))

    assert repr(call) == "<PutCall of /a>"
