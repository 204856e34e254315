"""The one task that owns all others of a client."""

import asyncio
from collections.abc import Callable

import anyio
import pytest

from kvorum.errors import ClientClosedError
from kvorum.etcd.supervisor import Supervisor


class Child:
    """A task that reports its state, and runs until it is cancelled."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.ended = anyio.Event()
        self.was_cancelled = False

    async def run(self) -> None:
        self.started.set()
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        finally:
            self.ended.set()


async def fail(error: Exception) -> None:
    raise error


def supervisors() -> list[asyncio.Task[object]]:
    """The tasks of supervisors that are still running."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "kvorum-supervisor"]


async def until(is_true: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds, or fail after a timeout."""
    with anyio.fail_after(5):
        while not is_true():  # there is no event for "that task is gone"
            await anyio.lowlevel.checkpoint()


# --- running --------------------------------------------------------------------------------------


async def test_a_child_runs_until_the_supervisor_is_closed() -> None:
    supervisor, child = Supervisor(), Child()
    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    await child.started.wait()
    assert not child.ended.is_set()

    await supervisor.aclose()

    assert child.ended.is_set()
    assert child.was_cancelled


async def test_a_child_gets_its_arguments_and_its_name() -> None:
    supervisor = Supervisor()
    seen: list[object] = []
    done = anyio.Event()

    async def run(number: int, text: str) -> None:
        task = asyncio.current_task()
        seen.extend([number, text, task.get_name() if task else None])
        done.set()

    await supervisor.start()
    supervisor.spawn(run, 1, "a", name="kvorum-child")
    await done.wait()

    await supervisor.aclose()

    assert seen == [1, "a", "kvorum-child"]


async def test_a_child_that_returns_ends_nothing_else() -> None:
    supervisor, child = Supervisor(), Child()
    returned = anyio.Event()

    async def run() -> None:
        returned.set()

    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    supervisor.spawn(run, name="short")
    await returned.wait()
    await child.started.wait()

    assert not child.ended.is_set()
    await supervisor.aclose()


async def test_all_children_are_gone_when_it_is_closed() -> None:
    """Also those that need a moment to clean up."""
    before = asyncio.all_tasks()
    supervisor = Supervisor()
    cleaned: list[int] = []

    async def run(number: int, started: anyio.Event) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                cleaned.append(number)

    await supervisor.start()
    for number in range(5):
        started = anyio.Event()
        supervisor.spawn(run, number, started, name=f"child-{number}")
        await started.wait()

    await supervisor.aclose()

    assert sorted(cleaned) == [0, 1, 2, 3, 4]
    assert asyncio.all_tasks() == before


async def test_a_child_may_spawn_another() -> None:
    supervisor, child = Supervisor(), Child()

    async def run() -> None:
        supervisor.spawn(child.run, name="grandchild")

    await supervisor.start()
    supervisor.spawn(run, name="child")
    await child.started.wait()

    await supervisor.aclose()

    assert child.was_cancelled


# --- not running ----------------------------------------------------------------------------------


async def test_nothing_can_be_spawned_before_the_start() -> None:
    with pytest.raises(ClientClosedError, match="not open"):
        Supervisor().spawn(Child().run, name="child")


async def test_nothing_can_be_spawned_after_the_end() -> None:
    supervisor = Supervisor()
    await supervisor.start()
    await supervisor.aclose()

    with pytest.raises(ClientClosedError, match="has been closed"):
        supervisor.spawn(Child().run, name="child")


async def test_nothing_can_be_spawned_while_it_is_being_closed() -> None:
    """A task spawned now would be cancelled before its first step, without a trace."""
    supervisor = Supervisor()
    refused: list[ClientClosedError] = []
    started = anyio.Event()

    async def run() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            try:
                supervisor.spawn(Child().run, name="too late")
            except ClientClosedError as error:
                refused.append(error)

    await supervisor.start()
    supervisor.spawn(run, name="child")
    await started.wait()

    await supervisor.aclose()

    assert [str(error) for error in refused] == ["the client has been closed"]


async def test_one_that_was_never_started_can_be_closed() -> None:
    await Supervisor().aclose()

    assert supervisors() == []


# --- closing --------------------------------------------------------------------------------------


async def test_closing_is_idempotent() -> None:
    supervisor, child = Supervisor(), Child()
    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    await child.started.wait()

    await supervisor.aclose()
    await supervisor.aclose()

    assert child.ended.is_set()


async def test_another_task_may_close_it_than_opened_it() -> None:
    """A web framework's startup and shutdown run in different tasks.

    Anyio's task groups would refuse.
    """
    supervisor, child = Supervisor(), Child()

    async def opening() -> None:
        await supervisor.start()
        supervisor.spawn(child.run, name="child")

    await asyncio.create_task(opening())
    await child.started.wait()

    await asyncio.create_task(supervisor.aclose())

    assert child.was_cancelled
    assert supervisors() == []


async def test_the_opening_task_may_be_gone() -> None:
    """Nor does a cancel scope around the opening reach the children."""
    supervisor, child = Supervisor(), Child()
    with anyio.CancelScope() as scope:
        await supervisor.start()
        supervisor.spawn(child.run, name="child")
        scope.cancel()
    await child.started.wait()

    assert not child.ended.is_set()
    await supervisor.aclose()


async def test_every_close_waits_until_all_tasks_have_ended() -> None:
    supervisor, child = Supervisor(), Child()
    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    await child.started.wait()
    had_ended: list[bool] = []

    async def close() -> None:
        await supervisor.aclose()
        had_ended.append(child.ended.is_set())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(close)

    assert had_ended == [True, True, True]


async def test_a_child_may_close_its_supervisor() -> None:
    supervisor = Supervisor()
    await supervisor.start()
    supervisor.spawn(supervisor.aclose, name="child")

    await until(lambda: supervisors() == [])

    await supervisor.aclose()


async def test_a_cancelled_close_continues_by_itself() -> None:
    """A cancelled wait leaves no task behind."""
    supervisor, child = Supervisor(), Child()
    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    await child.started.wait()

    with anyio.move_on_after(0) as scope:
        await supervisor.aclose()

    assert scope.cancelled_caught
    await until(lambda: supervisors() == [])
    assert child.was_cancelled
    await supervisor.aclose()


# --- a start that is cancelled --------------------------------------------------------------------


async def test_a_start_that_is_cancelled_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    supervisor = Supervisor()
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisors() != [])

    starting.cancel()
    await asyncio.wait([starting])

    assert starting.cancelled()
    await until(lambda: asyncio.all_tasks() == before)


async def test_after_a_start_that_was_cancelled_it_can_be_closed() -> None:
    """As `Client` does. The close is not cancelled with the start."""
    supervisor = Supervisor()
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisors() != [])
    starting.cancel()
    await asyncio.wait([starting])

    await supervisor.aclose()

    assert supervisors() == []


async def test_a_start_within_a_cancelled_scope_ends_with_the_scope() -> None:
    """The cancellation of that scope is raised, and no other.

    Else it would get past the scope's end.
    """
    supervisor = Supervisor()

    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await supervisor.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await supervisor.aclose()
            raise

    assert scope.cancelled_caught
    assert supervisors() == []


# --- errors of children ---------------------------------------------------------------------------


async def test_the_error_of_a_child_is_raised_by_the_close_and_only_once() -> None:
    supervisor = Supervisor()
    await supervisor.start()
    supervisor.spawn(fail, RuntimeError("boom"), name="child")
    await until(lambda: supervisors() == [])

    with pytest.raises(ExceptionGroup) as caught:
        await supervisor.aclose()
    await supervisor.aclose()

    assert [str(error) for error in caught.value.exceptions] == ["boom"]


async def test_the_error_of_a_child_ends_the_others() -> None:
    """It is a bug, which continuing without that task would hide."""
    supervisor, child = Supervisor(), Child()
    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    await child.started.wait()

    supervisor.spawn(fail, RuntimeError("boom"), name="failing")
    await child.ended.wait()

    assert child.was_cancelled
    with pytest.raises(ExceptionGroup):
        await supervisor.aclose()


async def test_nothing_can_be_spawned_after_the_error_of_a_child() -> None:
    supervisor = Supervisor()
    await supervisor.start()
    supervisor.spawn(fail, RuntimeError("boom"), name="child")
    await until(lambda: supervisors() == [])

    with pytest.raises(ClientClosedError):
        supervisor.spawn(Child().run, name="too late")
    with pytest.raises(ExceptionGroup):
        await supervisor.aclose()


async def test_of_several_closes_one_raises_the_error() -> None:
    supervisor = Supervisor()
    await supervisor.start()
    supervisor.spawn(fail, RuntimeError("boom"), name="child")
    outcomes = await asyncio.gather(
        supervisor.aclose(), supervisor.aclose(), return_exceptions=True
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ExceptionGroup", "NoneType"]


async def test_an_error_while_children_are_cancelled_is_raised_too() -> None:
    supervisor = Supervisor()
    started = anyio.Event()

    async def run() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise RuntimeError("while cleaning up")

    await supervisor.start()
    supervisor.spawn(run, name="child")
    await started.wait()

    with pytest.raises(ExceptionGroup) as caught:
        await supervisor.aclose()

    assert [str(error) for error in caught.value.exceptions] == ["while cleaning up"]


async def test_a_background_task_that_fails_is_logged_and_ends_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervisor, child = Supervisor(), Child()
    await supervisor.start()
    supervisor.spawn(child.run, name="child")
    supervisor.spawn_aside(fail, ZeroDivisionError("a mistake"), name="a question")
    supervisor.spawn_aside(fail, ClientClosedError.closed(None), name="at the end")
    with anyio.fail_after(5):
        await child.started.wait()
        while "a mistake" not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await anyio.sleep(0.01)

    assert not child.ended.is_set()
    assert supervisor.failure is None
    assert "a question" in caplog.text
    assert "at the end" not in caplog.text
    await supervisor.aclose()
    assert child.was_cancelled
