"""Reports from a client while it works: for telemetry, and for tests.

Pass an `Observer` to `connect`; the client calls its methods at the moments they name.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from kvorum.errors import KvorumError


class Call(NamedTuple):
    """What a request is for, in the words that error messages use.

    Attributes:
        operation: for example `put`.
        subject: the key, prefix or lease, as etcd knows it.
        writes: whether it may change something.
        revision: the revision that a read asked for; 0 if none.
    """

    operation: str
    subject: str
    writes: bool = False
    revision: int = 0


class Observer:
    """Receives reports from a client. Each method does nothing; override those you need.

    A coroutine method is awaited at the point it names. While it waits, that request waits, until
    its deadline at most: then a request is not sent, and an answer is lost. What it raises, the
    request raises, and does not retry; except that a test can speak for the server, with a
    `KvorumError` or an error of the driver, which are treated as the outcome of the request. What
    was done cannot be refused any more, so an `UnavailableError` about an answer loses it: the
    outcome of a write is unknown then. Telemetry must return quickly and catch its own errors.

    The other methods must not block and must not raise.

    All methods run on the event loop of the client. Later versions may add methods. An `endpoint`
    is `host:port`. Keys and prefixes are passed; values, passwords and tokens are only in messages.
    """

    # --- requests -----------------------------------------------------------------------------

    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        """Run before a request is sent. Retries and background requests are reported, too.

        Args:
            call: what the request is for.
            endpoint: where it is about to go.
            message: the request of the driver. Its type may change between versions.
        """

    async def after_request(self, call: Call, endpoint: str, answer: object, /) -> None:
        """Run when the answer has arrived, before the client uses it.

        Args:
            call: what the request was for.
            endpoint: where it went.
            answer: the response of the driver. Its type may change between versions.
        """

    def request_failed(self, call: Call, endpoint: str, error: KvorumError, /) -> None:
        """Report a request that was refused, was not sent, or lost its answer.

        A request whose task was cancelled is not reported.
        """

    # --- servers and users --------------------------------------------------------------------

    def server_taken(self, endpoint: str, version: tuple[int, int, int], /) -> None:
        """Report a server that answered, on a new connection, and is ready for calls."""

    def server_left(self, endpoint: str, successor: str, /) -> None:
        """Report that calls go to another server from now on."""

    def server_found(self, endpoint: str, /) -> None:
        """Report a member that discovery has added."""

    def server_forgotten(self, endpoint: str, /) -> None:
        """Report a server that the client dropped: the cluster has no such member any more."""

    def members_read(self, versions: Sequence[tuple[int, int, int] | None], /) -> None:
        """Report the versions of all members of the cluster.

        Args:
            versions: one for each member, None where it is unknown; empty if the list of members is
                unknown.
        """

    async def after_authentication(self, endpoint: str, /) -> None:
        """Run when a server has renewed the user's token, or turned out to check no users."""

    # --- batches ------------------------------------------------------------------------------

    def batch_planned(self, kind: str, size: int, waiting: int, /) -> None:
        """Report how many calls the next request takes along.

        Args:
            kind: `reads` or `writes`.
            size: how many calls the request carries.
            waiting: how many calls stay in the queue.
        """

    def batch_sent(self, kind: str, size: int, /) -> None:
        """Report a request that carried so many calls and was answered."""

    def batch_failed(self, kind: str, size: int, error: KvorumError, /) -> None:
        """Report a request that carried so many calls and failed.

        Calls that had no effect are retried: in smaller batches if one of them was refused, else
        each alone.
        """

    # --- watches ------------------------------------------------------------------------------

    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        """Run before a stream of changes is created on a server: for a watch, or for one change.

        Args:
            subject: the key or prefix, as etcd knows it.
            endpoint: where it is about to be created.
            revision: the first revision that the server is asked for.
            message: the request of the driver. Its type may change between versions.
        """

    def watch_opened(self, subject: str, endpoint: str, revision: int, /) -> None:
        """Report a watch that is open: it delivers all changes after a revision.

        Args:
            subject: the key or prefix, as etcd knows it.
            endpoint: where it was created.
            revision: the revision.
        """

    def watch_resumed(self, subject: str, endpoint: str, revision: int, /) -> None:
        """Report a watch that continues on a new stream, after that revision."""

    def watch_interrupted(self, subject: str, endpoint: str, error: KvorumError, /) -> None:
        """Report a watch that has lost its stream. It resumes, or raises the error."""

    def watch_received(self, subject: str, endpoint: str, message: object, /) -> None:
        """Report a response that a watch has received, before its changes are buffered.

        Args:
            subject: the key or prefix, as etcd knows it.
            endpoint: the server that sent it.
            message: the response of the driver. Its type may change between versions.
        """

    def watch_buffered(self, subject: str, changes: int, /) -> None:
        """Report how many changes wait for the consumer of a watch, after each response."""


SILENT: Final = Observer()  # for a client that has none
