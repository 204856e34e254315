"""The keys of resources: (kind, namespace, name) to key and back, and ranges of keys.

Keys are relative to the backend's prefix, as `kvorum.storage` expects them:
`lab-workers/worker-001`, or `lab-instances/team-a/lab-7` for a namespaced kind. Messages use the
same text to name a resource.
"""

from kvorum.arguments import problem_of_text
from kvorum.errors import InvalidResourceError
from kvorum.resources.model import Kind
from kvorum.resources.names import problems_of_label, problems_of_subdomain


def resource_key(kind: Kind, name: str, namespace: str | None = None) -> str:
    """Return the key of a resource.

    Raises:
        InvalidResourceError: the name or namespace breaks the rules, a namespaced kind got no
            namespace, or another kind got one.
    """
    problems = problems_of_subdomain(name)
    if problems:
        subject = kind.plural if problem_of_text("name", name) else f"{kind.plural}/{name}"
        raise InvalidResourceError(subject, problems)
    return (
        kind_prefix(kind, namespace if namespace is not None or not kind.namespaced else "") + name
    )


def kind_prefix(kind: Kind, namespace: str | None = None) -> str:
    """Return the prefix of the keys of a kind, or of one of its namespaces.

    It ends in `/`, so no other kind's keys start with it.

    Raises:
        InvalidResourceError: the namespace breaks the rules, or the kind has no namespaces.
    """
    if namespace is None:
        return f"{kind.plural}/"
    if not kind.namespaced:
        raise InvalidResourceError(
            kind.plural, f"{kind.name} has no namespaces, but {namespace!r} was given"
        )
    problems = problems_of_label(namespace) if namespace else ["a namespace is needed"]
    if problems:
        raise InvalidResourceError(kind.plural, problems)
    return f"{kind.plural}/{namespace}/"


def split_key(kind: Kind, key: str) -> tuple[str | None, str]:
    """Return (namespace, name) of a key under `kind_prefix(kind)`.

    Nothing is checked, since the key came from the store. The namespace is None if the kind has
    none, or if the key lacks it.
    """
    rest = key.removeprefix(f"{kind.plural}/")
    if not kind.namespaced or "/" not in rest:
        return None, rest
    namespace, _, name = rest.partition("/")
    return namespace, name


def stray_key(kind: Kind, name: str, namespace: str | None) -> str:
    """Return the key that `split_key` has split, valid or not.

    The name can be empty: `pods/ns/` is a key like any other.

    Raises:
        InvalidResourceError: the name is not text.
    """
    if problem := problem_of_text("name", name):
        raise InvalidResourceError(kind.plural, problem)
    return f"{kind.plural}/{name}" if namespace is None else f"{kind.plural}/{namespace}/{name}"


def prefix_end(prefix: bytes) -> bytes:
    """Return the end (exclusive) of the range of keys that start with `prefix`, for `range_end`.

    That is the prefix with its last byte below 0xff incremented, and the bytes after it cut off. If
    there is no such byte the range has no end, which etcd encodes as a zero byte. (etcd:
    `clientv3.GetPrefixRangeEnd`.)
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
