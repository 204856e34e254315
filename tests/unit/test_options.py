"""Options are checked where they are passed: observers, limits and waits."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.kinds import Task

import kvorum
from kvorum import ConfigurationError, MemoryStorageBackend, Observer, Repository
from kvorum.etcd.pipeline import QueueLimits, QuotaTiming
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport import ClusterTiming, TokenTiming, TransportPolicies
from kvorum.etcd.watch import WatchTiming
from kvorum.observer import SILENT, Call
from kvorum.repository import ContentionPolicy, UnreadableLimits, WatchPolicy
from kvorum.runtime import Limits

anything: Any = msgspec.UNSET  # of no type that an option takes


def all_limits() -> list[type[Limits]]:
    found, rest = [], list(Limits.__subclasses__())
    while rest:
        found.append(each := rest.pop())
        rest += each.__subclasses__()
    return found


@pytest.mark.parametrize("type_", all_limits(), ids=lambda type_: type_.__name__)
def test_each_limit_refuses_what_is_of_another_type(type_: type[Limits]) -> None:
    default = type_()
    for field in msgspec.structs.fields(type_):
        with pytest.raises(ConfigurationError, match=rf"{type_.__name__}\.{field.name} must be"):
            type_(**{field.name: anything})
        msgspec.structs.replace(default, **{field.name: getattr(default, field.name)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: ContentionPolicy(timeout=-1),
        lambda: ContentionPolicy(first_wait=math.nan),
        lambda: WatchTiming(check=-0.1),
        lambda: QuotaTiming(period=True),
        lambda: QueueLimits(slots=-1),
        lambda: UnreadableLimits(keys=-1),
        lambda: ClusterTiming(round=(1.0, -1.0)),
        lambda: Policies(close_timeout=-1),
    ],
)
def test_a_limit_below_0_or_without_a_value_is_refused(make: Callable[[], Limits]) -> None:
    with pytest.raises(ConfigurationError, match="0 or more, not"):
        make()


def test_what_tests_and_applications_use_is_taken() -> None:
    assert ContentionPolicy(timeout=1, first_wait=0).timeout == 1
    Policies(transport=TransportPolicies(tokens=TokenTiming(wall_clock=lambda: 0.0)))
    WatchTiming(password=math.inf)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"contention": 0.5}, "contention must be of type ContentionPolicy, not 0.5"),
        ({"contention": WatchPolicy()}, "contention must be of type ContentionPolicy"),
        ({"watching": UnreadableLimits()}, "watching must be of type WatchPolicy"),
        ({"watching": None}, "watching must be of type WatchPolicy, not None"),
    ],
)
def test_a_repository_refuses_what_is_no_policy(options: dict[str, Any], problem: str) -> None:
    client = kvorum.connect("memory://")
    with pytest.raises(ConfigurationError, match=problem):
        Repository(client, Task, **options)


@pytest.mark.parametrize("target", ["memory://", "etcd://localhost:2379", "embedded://"])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"policies": None}, "policies must be of type Policies, not None"),
        ({"settings": {}}, "settings must be of type EtcdSettings"),
        ({"observer": Observer}, r"observer must be an instance, Observer\(…\), not the class"),
        ({"observer": print}, "observer must be an instance of a subclass of kvorum.Observer, not"),
    ],
)
def test_connect_refuses_options_of_another_type(
    target: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        kvorum.connect(target, **options)


def test_no_observer_is_a_silent_one() -> None:
    kvorum.connect("etcd://localhost:2379", observer=None)
    kvorum.connect("memory://", observer=SILENT)


def test_a_backend_takes_neither_settings_nor_an_observer() -> None:
    backend = MemoryStorageBackend()
    for options in ({"settings": kvorum.EtcdSettings()}, {"observer": Observer()}):
        given = next(iter(options))
        with pytest.raises(ConfigurationError, match=f"cannot take the {given} any more"):
            kvorum.connect(backend, **options)


# --- subclasses of Observer, checked when they are defined ---


def plain(_self: Observer, _call: Call, _endpoint: str, _message: object) -> None: ...


async def coroutine(_self: Observer, _kind: str, _size: int) -> None: ...


async def too_few(_self: Observer, _call: Call) -> None: ...


@pytest.mark.parametrize(
    ("name", "method", "problem"),
    [
        ("before_request", plain, "must be defined by `async def`"),
        ("batch_sent", coroutine, "must be defined by `def`, not by `async def`"),
        ("before_request", too_few, "must take call, endpoint, message, by position"),
        ("before_requests", plain, "overrides no method .* rename it to before_request"),
        ("request_fail", plain, ".* rename it to request_failed"),
    ],
)
def test_a_method_that_would_not_be_called_is_refused(
    name: str, method: Callable[..., object], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"Mine\.{name} {problem}"):
        type("Mine", (Observer,), {name: method})


def test_other_methods_of_an_observer_are_its_own() -> None:
    def clear(_self: Observer) -> None: ...

    type("Mine", (Observer,), {"clear": clear, "_before_requests": clear})
