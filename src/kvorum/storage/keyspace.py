"""A backend's share of a store's keys: everything under one prefix, seen by keys relative to it."""

import fnmatch
import re
from typing import Final

from kvorum.arguments import shown
from kvorum.errors import InvalidResourceError
from kvorum.resources import prefix_end

MAX_KEY_SIZE: Final = 1_500


class KeySpace:
    """The keys that start with `/<prefix>/`.

    Other programs may have put keys of any bytes there. They come and go as text with surrogates
    (PEP 383), so nothing is lost on the way.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix: str = f"/{prefix.strip('/')}/" if prefix.strip("/") else "/"
        self._bytes = self.prefix.encode()

    def full(self, key: str) -> bytes:
        """Return a key that may be written, as the store knows it.

        Raises:
            InvalidResourceError: it is empty, too long, or no text. Nothing was sent.
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
        """Return a key that came from the store, of any length: others may have put longer ones, or an empty one.

        A revision at which the key was seen tells that it did. Without one, None or 0, it is
        checked as `full` does.

        Raises:
            InvalidResourceError: it is no text. Nothing was sent.
        """
        return self._encoded(key) if revision else self.full(key)

    def relative(self, full: bytes) -> str:
        """Return a key as the port knows it."""
        return full[len(self._bytes) :].decode(errors="surrogateescape")

    def range(self, prefix: str) -> tuple[bytes, bytes]:
        """Return the first key that may start with `prefix`, and the first one behind all that do."""
        start = self._encoded(prefix)
        return start, prefix_end(start)

    def _encoded(self, text: str) -> bytes:
        try:
            return self._bytes + text.encode(errors="surrogateescape")
        except UnicodeEncodeError as exc:
            raise InvalidResourceError(
                self.prefix + ascii(text), "the key is no text that UTF-8 can spell"
            ) from exc
        except (
            AttributeError,
            TypeError,
        ) as exc:  # asked after the fact: this is done for each call
            raise InvalidResourceError(
                self.prefix, f"a key must be text, not {shown(text)}"
            ) from exc


class KeyPattern:
    """A pattern of the shell: `*`, `?` and `[…]`, where `*` crosses slashes. All else stands for itself.

    Attributes:
        prefix: what all keys that match start with: the pattern up to its first special character.

    Raises:
        InvalidResourceError: it is no text.
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise InvalidResourceError("keys", f"a pattern must be text, not {shown(pattern)}")
        self.prefix: str = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        self._pattern = re.compile(fnmatch.translate(pattern))

    def matches(self, key: str) -> bool:
        """Tell whether the whole key matches."""
        return self._pattern.match(key) is not None
