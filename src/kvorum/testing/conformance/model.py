"""A simple reference model of a store."""

from collections.abc import Sequence

from kvorum.storage import Change, Entry, Operation


class Model:
    """A simple reference model of a store: a dict for each revision."""

    def __init__(self, revision: int) -> None:
        self.revision: int = revision
        self.entries: dict[str, Entry] = {}
        self.history: list[tuple[int, dict[str, Entry], list[Change]]] = []

    def expected(self, key: str, choice: str) -> int:
        """Turn a choice into a mod_revision: the current one, an old one, or none."""
        current = self.entries[key].mod_revision if key in self.entries else 0
        return {"current": current, "none": 0, "stale": max(current - 1, 1)}[choice]

    def holds(self, operation: Operation) -> bool:
        current = self.entries.get(operation.key)
        return operation.expected is None or operation.expected == (
            current.mod_revision if current else 0
        )

    def apply(self, revision: int, operations: Sequence[Operation]) -> None:
        before = dict(self.entries)
        for operation in operations:
            old = self.entries.get(operation.key)
            if not operation.writes:
                continue
            if operation.value is None:
                self.entries.pop(operation.key, None)
                continue
            created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
            self.entries[operation.key] = Entry(
                operation.key, operation.value, revision, created, version
            )
        changes = [
            Change(key, revision, self.entries.get(key), before.get(key))
            for key in sorted(before.keys() | self.entries.keys())
            if self.entries.get(key) != before.get(key)
        ]
        if changes:
            assert revision > self.revision
            self.revision = revision
            self.history.append((revision, dict(self.entries), changes))
