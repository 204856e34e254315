"""Entries to resources, with errors in the words of the caller."""

from typing import Generic, TypeVar

from kvorum.encoding import Codec
from kvorum.errors import CorruptResourceError
from kvorum.resources import AnyResource, split_key
from kvorum.storage import Entry, HasBackend

R = TypeVar("R", bound=AnyResource)


class Decoder(Generic[R]):
    """Decodes the entries of one kind."""

    def __init__(self, client: HasBackend, codec: Codec[R]) -> None:
        self._client = client
        self._codec = codec

    def decode(self, entry: Entry, *, revision: int | None = None) -> R:
        """Return the resource in an entry, at the entry's revision or another.

        Raises:
            CorruptResourceError: the value is not a resource of this kind. The error names the key
                as etcdctl takes it, and the name and namespace as `delete` takes them.
        """
        try:
            return self._codec.decode(entry, revision=revision)
        except CorruptResourceError as exc:
            namespace, name = split_key(self._codec.kind, exc.key)
            key = self._client.backend.location(exc.key)
            raise CorruptResourceError(
                key, exc.revision, exc.reason, name=name, namespace=namespace
            ) from exc.__cause__
