"""Where the next page of a list starts: opaque text, bound to the list that it came from.

    base64url(check ‖ msgpack [form, list, revision, last key])

The check only detects text that was cut off or mistyped. It needs no secret: a forged continuation
gives nothing that a list with the same arguments would not give.
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
    """Where the next page of a list starts.

    Attributes:
        form: the version of this format.
        query: the digest of the list's arguments.
        revision: the revision of all pages; 0 to resume at the current one.
        after: the last key that was read.
    """

    form: int = FORM
    query: bytes
    revision: int
    after: bytes

    @classmethod
    def at(cls, query: bytes, revision: int, key: str) -> Self:
        """Make one for the page after a key."""
        return cls(query=query, revision=revision, after=key.encode(errors="surrogateescape"))

    @property
    def key(self) -> str:
        """The last key that was read, as text."""
        return self.after.decode(errors="surrogateescape")

    def __str__(self) -> str:
        payload = msgspec.msgpack.encode(self)
        return base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, *, query: bytes, subject: str) -> Self:
        """Parse what `str` returned.

        Args:
            text: the continuation.
            query: the digest of the list that it was passed to.
            subject: what is listed, for messages.

        Raises:
            InvalidResourceError: it is not a continuation, was changed, or belongs to another list.
        """
        problem = "continue_from is not a continuation from `list`, or was cut off or changed"
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            payload = data[_CHECK_SIZE:]
            if data[:_CHECK_SIZE] != _check(payload):
                raise InvalidResourceError(subject, problem)
            found = msgspec.msgpack.decode(payload, type=cls)
        except (binascii.Error, ValueError, TypeError, msgspec.MsgspecError) as exc:
            raise InvalidResourceError(subject, problem) from exc
        if str(found) != text:  # base64 has more than one spelling of the last bits
            raise InvalidResourceError(subject, problem)
        if found.form != FORM:
            raise InvalidResourceError(
                subject,
                f"continue_from is of form {found.form}, this version of Kvorum reads {FORM}: "
                "list from the start",
            )
        if found.query != query:
            raise InvalidResourceError(
                subject,
                "continue_from belongs to another list: kind, namespace, labels and fields must be "
                "the same",
            )
        return found


def _check(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_CHECK_SIZE, person=b"kvorum-list").digest()
