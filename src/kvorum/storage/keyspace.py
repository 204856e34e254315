"""A backend's part of a store's keys: all keys under one prefix, as keys relative to it."""

import fnmatch
import re
from typing import Final

from kvorum.arguments import short_repr
from kvorum.errors import InvalidResourceError
from kvorum.resources import prefix_end

MAX_KEY_SIZE: Final = 1_500


class KeySpace:
    """The keys that start with `/<prefix>/`.

    Other programs may have put keys of any bytes there. Such keys become text with surrogates (PEP
    383), and the same bytes again on the way back.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix: str = f"/{prefix.strip('/')}/" if prefix.strip("/") else "/"
        self._bytes = self.prefix.encode()

    def full(self, key: str) -> bytes:
        """Return the store's full key for a key that may be written.

        Raises:
            InvalidResourceError: it is empty, too long, or not text. Nothing was sent.
        """
        full = self._encoded(key)
        if not key or len(full) > MAX_KEY_SIZE:
            problem = (
                f"the key has {len(full)} bytes, at most {MAX_KEY_SIZE} are allowed"
                if key
                else "the key is empty"
            )
            raise InvalidResourceError(self.prefix + key[:100], problem)
        return full

    def stored(self, key: str, revision: int | None = 1) -> bytes:
        """Return the store's full key for a key of any length, if it was read from the store.

        Other programs may have written longer keys, or an empty one. A revision at which the key
        was read shows that it exists; without one (None or 0) it is checked like `full` does.

        Raises:
            InvalidResourceError: it is not text. Nothing was sent.
        """
        return self._encoded(key) if revision else self.full(key)

    def relative(self, full: bytes) -> str:
        """Return the port's key for a full key."""
        return full[len(self._bytes) :].decode(errors="surrogateescape")

    def range(self, prefix: str) -> tuple[bytes, bytes]:
        """Return start and end (exclusive) of the range of keys that start with `prefix`."""
        start = self._encoded(prefix)
        return start, prefix_end(start)

    def _encoded(self, text: str) -> bytes:
        try:
            return self._bytes + text.encode(errors="surrogateescape")
        except UnicodeEncodeError as exc:
            raise InvalidResourceError(
                self.prefix + ascii(text), "the key cannot be encoded as UTF-8"
            ) from exc
        # Checked after the fact, since this runs for each call.
        except (AttributeError, TypeError) as exc:
            raise InvalidResourceError(
                self.prefix, f"a key must be text, not {short_repr(text)}"
            ) from exc


class KeyPattern:
    """A shell pattern for keys: `*` (which crosses slashes), `?` and `[…]`.

    Attributes:
        prefix: of all matching keys: the pattern up to its first special character.

    Raises:
        InvalidResourceError: it is not text.
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise InvalidResourceError("keys", f"a pattern must be text, not {short_repr(pattern)}")
        self.prefix: str = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        self._pattern = re.compile(fnmatch.translate(pattern))

    def matches(self, key: str) -> bool:
        """Return whether the whole key matches."""
        return self._pattern.match(key) is not None
