"""Where a resource lies: (kind, namespace, name) to key and back, and the range of keys under a prefix.

Keys here are relative to the backend's prefix, as `kvorum.storage` wants them:
`lab-workers/worker-001`, or `lab-instances/team-a/lab-7` for a namespaced kind. The same text names
a resource in messages.
"""

from kvorum.arguments import problem_of_text
from kvorum.errors import InvalidResourceError
from kvorum.resources.model import Kind
from kvorum.resources.names import problems_of_label, problems_of_subdomain


def resource_key(kind: Kind, name: str, namespace: str | None = None) -> str:
    """Return the key of a resource.

    Raises:
        InvalidResourceError: the name or namespace breaks the rules, a namespaced kind was given no
            namespace, or another kind was given one.
    """
    problems = problems_of_subdomain(name)
    if problems:
        subject = kind.plural if problem_of_text("name", name) else f"{kind.plural}/{name}"
        raise InvalidResourceError(subject, problems)
    return (
        kind_prefix(kind, namespace if namespace is not None or not kind.namespaced else "") + name
    )


def kind_prefix(kind: Kind, namespace: str | None = None) -> str:
    """Return what the keys of a kind (or of one namespace of it) start with; it ends in `/`, so no other kind fits.

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
    """Return (namespace, name) of a key under `kind_prefix(kind)`; without a check: the key came from the store.

    The namespace is None if the kind has none, or if the key has none where it should.
    """
    rest = key.removeprefix(f"{kind.plural}/")
    if not kind.namespaced or "/" not in rest:
        return None, rest
    namespace, _, name = rest.partition("/")
    return namespace, name


def stray_key(kind: Kind, name: str, namespace: str | None) -> str:
    """Return the key that `split_key` has split, of whatever somebody put under the kind's prefix.

    The name can be empty: `pods/ns/` is a key as others are.

    Raises:
        InvalidResourceError: it is no text.
    """
    if problem := problem_of_text("name", name):
        raise InvalidResourceError(kind.plural, problem)
    return f"{kind.plural}/{name}" if namespace is None else f"{kind.plural}/{namespace}/{name}"


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key behind all keys that start with `prefix`, as etcd's `range_end` wants it.

    The last byte that is not 0xff goes up by one; with none (or an empty prefix) the range has no
    end, which etcd writes as a zero byte. (etcd: `clientv3.GetPrefixRangeEnd`.)
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
