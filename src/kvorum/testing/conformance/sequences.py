"""Random sequences of writes, compared with a model of what they should do."""

import anyio.from_thread
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvorum.errors import AlreadyExistsError, ConflictError, NotFoundError
from kvorum.storage import Change, Operation, StorageBackend
from kvorum.testing.conformance.model import Model
from kvorum.testing.conformance.probes import revision_of, take

_KEYS = ["a", "a/b", "b", "\udcff"]
_key = st.sampled_from(_KEYS)
_value = st.binary(max_size=3)
_choice = st.sampled_from(["current", "current", "none", "stale"])
_step = st.one_of(
    st.tuples(st.just("set"), _key, _value, _choice),
    st.tuples(st.just("create"), _key, _value, _choice),
    st.tuples(st.just("swap"), _key, _value, _choice),
    st.tuples(
        st.just("delete"), _key, _value, st.sampled_from(["any", "current", "none", "stale"])
    ),
    st.tuples(
        st.just("commit"),
        st.lists(st.tuples(_key, _value, _choice, st.integers(0, 4)), min_size=1, max_size=4),
    ),
)


def _commit_of(model: Model, parts: list[tuple[str, bytes, str, int]]) -> list[Operation]:
    """Make the operations of a commit, one for each key; the first one writes."""
    operations: dict[str, Operation] = {}
    for key, value, choice, which in parts:
        expected = model.expected(key, choice)
        made = [
            Operation.put(key, value),
            Operation.create(key, value),
            Operation.swap(key, value, expected=expected, lease=None if expected else 0),
            Operation.delete(key, expected=expected or None),
            Operation.check(key, expected=expected),
        ]
        operations.setdefault(key, made[which if operations else which % 4])
    return list(operations.values())


async def _run_step(backend: StorageBackend, model: Model, step: tuple[object, ...]) -> None:
    match step:
        case ("set", str(key), bytes(value), _):
            model.apply(await backend.set(key, value), [Operation.put(key, value)])
        case ("create", str(key), bytes(value), _):
            if key in model.entries:
                with pytest.raises(AlreadyExistsError):
                    await backend.create(key, value)
            else:
                model.apply(await backend.create(key, value), [Operation.create(key, value)])
        case ("swap", str(key), bytes(value), str(choice)):
            operation = Operation.swap(key, value, expected=model.expected(key, choice))
            assert operation.expected is not None
            if model.holds(operation):
                made = await backend.compare_and_swap(key, value, expected=operation.expected)
                model.apply(made, [operation])
            else:
                with pytest.raises(ConflictError) as caught:
                    await backend.compare_and_swap(key, value, expected=operation.expected)
                assert caught.value.current == model.entries.get(key)
        case ("delete", str(key), _, str(choice)):
            await _run_delete(
                backend, model, key, None if choice == "any" else model.expected(key, choice)
            )
        case ("commit", list(parts)):
            await _run_commit(backend, model, _commit_of(model, parts))


async def _run_delete(
    backend: StorageBackend, model: Model, key: str, expected: int | None
) -> None:
    operation = Operation.delete(key, expected=expected)
    if not model.holds(operation):
        with pytest.raises(ConflictError) as caught:
            await backend.delete(key, expected=expected)
        assert caught.value.current == model.entries.get(key)
    elif key not in model.entries:
        with pytest.raises(NotFoundError):
            await backend.delete(key, expected=expected)
    else:
        change = await backend.delete(key, expected=expected)
        assert change == Change(key, change.revision, None, model.entries[key])
        model.apply(change.revision, [operation])


async def _run_commit(backend: StorageBackend, model: Model, operations: list[Operation]) -> None:
    failing = [operation for operation in operations if not model.holds(operation)]
    if failing:
        with pytest.raises(ConflictError) as caught:
            await backend.commit(operations)
        assert caught.value.subject == failing[0].key
        assert caught.value.current == model.entries.get(failing[0].key)
    else:
        model.apply(await backend.commit(operations), operations)


async def _check_against(backend: StorageBackend, model: Model, start: int) -> None:
    page = await backend.list("")
    in_order = sorted(
        model.entries.values(), key=lambda entry: entry.key.encode(errors="surrogateescape")
    )
    assert page.entries == in_order
    assert await backend.count("") == len(in_order)
    for revision, entries, _ in model.history[-3:]:
        for key in _KEYS:
            assert await backend.get(key, revision=revision) == entries.get(key)
    async with backend.watch("", since=start) as watch:
        for revision, _, changes in model.history:
            ((*shown,),) = await take(watch, 1)
            assert sorted(shown, key=lambda change: change.key) == changes
            assert watch.revision == revision


async def _run_sequence(backend: StorageBackend, steps: list[tuple[object, ...]]) -> None:
    for entry in (await backend.list("")).entries:
        await backend.delete(entry.key)
    start = await revision_of(backend)
    model = Model(start)
    for step in steps:
        await _run_step(backend, model, step)
    await _check_against(backend, model, start)


class SequencesConformance:
    """Tests of sequences of operations."""

    async def test_a_random_sequence_of_writes_does_what_a_plain_model_does(
        self, backend: StorageBackend
    ) -> None:
        """Compare results, errors, the final state, earlier revisions, and what a watch shows.

        Hypothesis runs in a thread, so that all sequences share one store: each one removes what
        the one before left.
        """

        @settings(
            max_examples=60,
            deadline=None,
            # Not shrunk: a faulty store may fail by not answering, each time after a timeout.
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(st.lists(_step, max_size=15))
        def check(steps: list[tuple[object, ...]]) -> None:
            anyio.from_thread.run(_run_sequence, backend, steps)

        await anyio.to_thread.run_sync(check)
