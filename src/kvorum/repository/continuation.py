"""Where a list goes on: opaque text, bound to the list that it came from.

    base64url(check ‖ msgpack [form, list, revision, last key])

The check only tells what was cut off or mistyped. It is no secret and need not be: whoever forges
one gets what a list with the same arguments would have given anyway.
"""

import base64
import binascii
from hashlib import blake2b
from typing import Final, Self

import msgspec

from kvorum.errors import InvalidResourceError

FORM: Final = 1
_CHECK_SIZE: Final = 8


class Continuation(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Where a list goes on.

    Attributes:
        query: the digest of what was asked for.
        revision: the revision that all pages are at; 0 to go on at whatever it is by then.
        after: the last key that was looked at.
    """

    form: int = FORM
    query: bytes
    revision: int
    after: bytes

    @classmethod
    def at(cls, query: bytes, revision: int, key: str) -> Self:
        """Make one that goes on after a key."""
        return cls(query=query, revision=revision, after=key.encode(errors="surrogateescape"))

    @property
    def key(self) -> str:
        """The last key that was looked at, as text."""
        return self.after.decode(errors="surrogateescape")

    def __str__(self) -> str:
        payload = msgspec.msgpack.encode(self)
        return base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, *, query: bytes, subject: str) -> Self:
        """Read what `str` wrote.

        Args:
            text: the continuation.
            query: the digest of the list that is to go on with it.
            subject: what is listed, for messages.

        Raises:
            InvalidResourceError: it is none, was changed, or belongs to another list.
        """
        problem = "continue_from is no continuation that `list` returned, or was cut off or changed"
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            payload = data[_CHECK_SIZE:]
            if data[:_CHECK_SIZE] != _check(payload):
                raise InvalidResourceError(subject, problem)
            found = msgspec.msgpack.decode(payload, type=cls)
        except (binascii.Error, ValueError, TypeError, msgspec.MsgspecError) as exc:
            raise InvalidResourceError(subject, problem) from exc
        if str(found) != text:  # base64 has more than one way to spell the last bits
            raise InvalidResourceError(subject, problem)
        if found.form != FORM:
            problem = f"continue_from is of form {found.form}, this version of Kvorum reads {FORM}: list from the start"
            raise InvalidResourceError(subject, problem)
        if found.query != query:
            problem = "continue_from belongs to another list: kind, namespace, labels and fields must be the same"
            raise InvalidResourceError(subject, problem)
        return found


def _check(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_CHECK_SIZE, person=b"kvorum-list").digest()
