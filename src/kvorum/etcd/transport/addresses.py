"""The addresses that members advertise."""

from collections.abc import Iterable

from kvorum.settings import is_endpoint


def addresses_of(urls: Iterable[str], *, tls: bool) -> list[str]:
    """Return the addresses among advertised URLs that this client can connect to.

    Only those of the client's scheme (TLS or not), no Unix sockets, and no wildcard address such as
    `0.0.0.0`.
    """
    scheme = "https://" if tls else "http://"
    found = [url.removeprefix(scheme).rstrip("/") for url in urls if url.startswith(scheme)]
    return [
        each for each in found if is_endpoint(each) and not each.startswith(("0.0.0.0:", "[::]:"))
    ]
