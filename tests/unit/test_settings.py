"""Where etcd is: from a URL, from the environment, by hand."""

import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.pretty import pretty_repr

from kvorum.errors import ConfigurationError
from kvorum.settings import EtcdSettings

SECRET = "s3cr3t"


# --- from a URL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "endpoints", "prefix"),
    [
        ("etcd://localhost", ("localhost:2379",), "kvorum"),
        ("etcd://localhost/", ("localhost:2379",), "kvorum"),
        ("etcd://localhost:1234", ("localhost:1234",), "kvorum"),
        ("etcd://localhost:1", ("localhost:1",), "kvorum"),
        ("etcd://localhost:65535", ("localhost:65535",), "kvorum"),
        ("etcd://10.0.0.1", ("10.0.0.1:2379",), "kvorum"),
        ("etcd://etcd_0.etcd.svc", ("etcd_0.etcd.svc:2379",), "kvorum"),
        ("etcd://a,b:2380,c", ("a:2379", "b:2380", "c:2379"), "kvorum"),
        ("etcd://[::1]", ("[::1]:2379",), "kvorum"),
        ("etcd://[fe80::1]:1234/lab", ("[fe80::1]:1234",), "lab"),
        ("etcd://[::1],[::2]:1234", ("[::1]:2379", "[::2]:1234"), "kvorum"),
        ("etcd://a:1,[::2]:1234", ("a:1", "[::2]:1234"), "kvorum"),
        ("etcd://localhost:2379/lab-resource-manager", ("localhost:2379",), "lab-resource-manager"),
        ("etcd://localhost/lab/", ("localhost:2379",), "lab"),
        ("etcd://localhost//lab//", ("localhost:2379",), "lab"),
        ("etcd://localhost/a/b/c", ("localhost:2379",), "a/b/c"),
        ("etcd://localhost/a%7Eb", ("localhost:2379",), "a~b"),
        ("etcd://localhost/a%2Fb", ("localhost:2379",), "a/b"),
        ("etcd://localhost/A_b.c-d~e", ("localhost:2379",), "A_b.c-d~e"),
        ("ETCD://localhost", ("localhost:2379",), "kvorum"),
    ],
)
def test_a_url_names_endpoints_and_prefix(
    url: str, endpoints: tuple[str, ...], prefix: str
) -> None:
    settings = EtcdSettings.from_url(url)

    assert settings == EtcdSettings(endpoints=endpoints, prefix=prefix)


def test_etcds_means_tls() -> None:
    assert EtcdSettings.from_url("etcds://localhost").tls is True
    assert EtcdSettings.from_url("etcd://localhost").tls is False


def test_what_a_url_does_not_say_comes_from_the_base() -> None:
    base = EtcdSettings(endpoints=("a:1",), prefix="lab", timeout=9, user="root", password=SECRET)

    settings = EtcdSettings.from_url("etcd://b", base=base)

    assert settings == EtcdSettings(
        endpoints=("b:2379",), prefix="lab", timeout=9, user="root", password=SECRET
    )


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "does not start with etcd://"),
        ("localhost", "does not start with etcd://"),
        ("localhost:2379", "does not start with etcd://"),
        ("//localhost", "does not start with etcd://"),
        ("http://localhost", "does not start with etcd://"),
        ("etcd:localhost", "names no host"),
        ("etcd://", "names no host"),
        ("etcd:///prefix", "names no host"),
        ("etcd://localhost:0", "'localhost:0' is not host:port"),
        ("etcd://localhost:65536", "'localhost:65536' is not host:port"),
        ("etcd://localhost:-1", "'localhost:-1' is not host:port"),
        ("etcd://localhost:x", "'localhost:x' is not host:port"),
        ("etcd://localhost:", "'localhost:' is not host:port"),
        ("etcd://a,", "'' is not host:port"),
        ("etcd://a,,b", "'' is not host:port"),
        ("etcd://a;b", "'a;b' is not host:port"),
        ("etcd://lo calhost", "'lo calhost' is not host:port"),
        ("etcd://::1", "'::1' is not host:port"),
        ("etcd://localhost/a b", "prefix 'a b'"),
        ("etcd://localhost/a%20b", "prefix 'a b'"),
        ("etcd://localhost/a%00b", "prefix 'a\\x00b'"),
        ("etcd://localhost/a//b", "prefix 'a//b'"),
        ("etcd://localhost/%zz", "prefix '%zz'"),
        ("etcd://localhost/" + "a" * 513, "at most 512 characters"),
        ("etcd://localhost?timeout=3", "has more than"),
        ("etcd://localhost#fragment", "has more than"),
        ("etcd://root@localhost", "has more than"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        EtcdSettings.from_url(url)


@pytest.mark.parametrize(
    "url", ["etcd://[::1", "etcd://::1]", "etcd://[zz]:2379", "etcd://ho\u2100st"]
)
def test_a_url_that_python_cannot_read_is_a_configuration_error_too(url: str) -> None:
    """`urlsplit` raises a bare ValueError for these; no such thing gets out."""
    with pytest.raises(ConfigurationError):
        EtcdSettings.from_url(url)


@given(st.text(max_size=30) | st.text("etcds:/[],@?#%0a.", max_size=15).map("etcd://".__add__))
def test_junk_is_a_configuration_error_and_nothing_else(junk: str) -> None:
    try:
        settings = EtcdSettings.from_url(junk)
    except ConfigurationError:
        return

    assert all(re.fullmatch(r".+:\d+", endpoint) for endpoint in settings.endpoints)


@pytest.mark.parametrize(
    "url",
    [
        f"etcd://root:{SECRET}@localhost",
        f"etcds://root:{SECRET}@localhost/prefix",
        f"http://root:{SECRET}@localhost",
        f"etcd://root:{SECRET}@a,root:{SECRET}@b",
        f"etcd://root:x@{SECRET}@localhost",
        f"etcd://root:{SECRET}/x@localhost",
        f"etcd://root:x/{SECRET}@localhost",
        f"etcd:root:{SECRET}@localhost",
        f"root:{SECRET}@localhost:2379",
        f"etcd:/root:{SECRET}@localhost",
        f"etcd://localhost?user=root&password={SECRET}",
        f"etcd://localhost#{SECRET}",
        f"http://localhost?password={SECRET}",
    ],
)
def test_a_password_in_a_url_never_gets_into_a_message(url: str) -> None:
    """Messages go to logs. People try to put a password into a URL, and mistype that."""
    with pytest.raises(ConfigurationError) as caught:
        EtcdSettings.from_url(url)

    assert SECRET not in str(caught.value)


# --- from the environment -------------------------------------------------------------------------


def test_an_empty_environment_gives_the_defaults() -> None:
    assert EtcdSettings.from_env({}) == EtcdSettings()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ETCD_HOST": "etcd.local"}, EtcdSettings(endpoints=("etcd.local:2379",))),
        ({"ETCD_PORT": "1234"}, EtcdSettings(endpoints=("localhost:1234",))),
        ({"ETCD_HOST": "a", "ETCD_PORT": "1234"}, EtcdSettings(endpoints=("a:1234",))),
        ({"ETCD_HOST": "[::1]"}, EtcdSettings(endpoints=("[::1]:2379",))),
        ({"ETCD_PREFIX": "lab"}, EtcdSettings(prefix="lab")),
        ({"ETCD_PREFIX": "/lab/a/"}, EtcdSettings(prefix="lab/a")),
        ({"ETCD_TIMEOUT": "2.5"}, EtcdSettings(timeout=2.5)),
        ({"ETCD_TIMEOUT": " 3 "}, EtcdSettings(timeout=3.0)),
        ({"ETCD_PIPELINE": "off"}, EtcdSettings(pipeline=False)),
        ({"ETCD_PIPELINE": " On "}, EtcdSettings(pipeline=True)),
        ({"ETCD_CACERT": "/ca.pem"}, EtcdSettings(cacert="/ca.pem", tls=True)),
        ({"ETCD_CERT": "/c.pem", "ETCD_KEY": "/k.pem"}, EtcdSettings(cert="/c.pem", key="/k.pem")),
        (
            {"ETCD_USER": "root", "ETCD_PASSWORD": SECRET},
            EtcdSettings(user="root", password=SECRET),
        ),
        ({"ETCD_ENDPOINTS": "a"}, EtcdSettings(endpoints=("a:2379",))),
        ({"ETCD_ENDPOINTS": "a:1,b , c:3,"}, EtcdSettings(endpoints=("a:1", "b:2379", "c:3"))),
        ({"ETCD_ENDPOINTS": "http://a:1,http://b/"}, EtcdSettings(endpoints=("a:1", "b:2379"))),
        ({"ETCD_ENDPOINTS": "https://a:1"}, EtcdSettings(endpoints=("a:1",), tls=True)),
        ({"ETCD_ENDPOINTS": "etcd://a:1"}, EtcdSettings(endpoints=("a:1",))),
        ({"ETCD_ENDPOINTS": "etcds://a:1"}, EtcdSettings(endpoints=("a:1",), tls=True)),
        ({"ETCD_ENDPOINTS": "[::1]:1,[::2]"}, EtcdSettings(endpoints=("[::1]:1", "[::2]:2379"))),
    ],
)
def test_each_variable_is_read(environ: dict[str, str], expected: EtcdSettings) -> None:
    assert EtcdSettings.from_env(environ) == expected


def test_endpoints_go_before_host_and_port() -> None:
    environ = {"ETCD_ENDPOINTS": "a:1", "ETCD_HOST": "b", "ETCD_PORT": "2"}

    assert EtcdSettings.from_env(environ).endpoints == ("a:1",)


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_empty_variables_count_as_not_set(empty: str) -> None:
    """docker-compose and Helm pass unset variables as empty ones."""
    names = (
        "HOST",
        "PORT",
        "PREFIX",
        "TIMEOUT",
        "ENDPOINTS",
        "CACERT",
        "CERT",
        "KEY",
        "USER",
        "PASSWORD",
    )

    assert EtcdSettings.from_env({f"ETCD_{name}": empty for name in names}) == EtcdSettings()


def test_variables_of_etcd_itself_are_none_of_ours() -> None:
    """etcd reads `ETCD_*` as well: a container of both has more than ours."""
    assert (
        EtcdSettings.from_env({"ETCD_DATA_DIR": "/data", "ETCD_TLS": "yes", "ETCD_PAGE_SIZE": "x"})
        == EtcdSettings()
    )


@pytest.mark.parametrize("text", ["null", "None", "true", "123", "1e5", "[]"])
def test_a_password_is_text_whatever_it_looks_like(text: str) -> None:
    assert EtcdSettings.from_env({"ETCD_PASSWORD": text}).password == text


def test_without_an_argument_the_process_environment_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", "from-the-process:1")

    assert EtcdSettings.from_env().endpoints == ("from-the-process:1",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ETCD_TIMEOUT", "soon"),
        ("ETCD_PIPELINE", "perhaps"),
        ("ETCD_TIMEOUT", "0"),
        ("ETCD_TIMEOUT", "-1"),
        ("ETCD_TIMEOUT", "nan"),
        ("ETCD_PREFIX", "a b"),
        ("ETCD_PREFIX", "/"),
        ("ETCD_PORT", "http"),
        ("ETCD_PORT", "0"),
        ("ETCD_PORT", "70000"),
        ("ETCD_HOST", "a b"),
        ("ETCD_HOST", "::1"),
        ("ETCD_HOST", "a:1"),
        ("ETCD_ENDPOINTS", "a:b"),
        ("ETCD_ENDPOINTS", "ftp://a"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(name: str, value: str) -> None:
    """The operator sees the variable, not the field of a struct."""
    with pytest.raises(ConfigurationError, match=rf"\b{name}\b"):
        EtcdSettings.from_env({name: value})


def test_a_password_among_the_endpoints_never_gets_into_a_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        EtcdSettings.from_env({"ETCD_ENDPOINTS": f"http://root:{SECRET}@localhost:2379"})

    assert SECRET not in str(caught.value)


def test_a_password_never_gets_into_the_message_about_another_variable() -> None:
    with pytest.raises(ConfigurationError) as caught:
        EtcdSettings.from_env({"ETCD_PASSWORD": SECRET, "ETCD_TIMEOUT": "soon"})

    assert SECRET not in str(caught.value)


# --- by hand --------------------------------------------------------------------------------------


def test_the_defaults_are_a_local_etcd() -> None:
    settings = EtcdSettings()

    assert settings.endpoints == ("localhost:2379",)
    assert settings.prefix == "kvorum"
    assert settings.tls is False


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: EtcdSettings(endpoints=()), "there is no endpoint"),
        (lambda: EtcdSettings(endpoints=("localhost",)), "'localhost' is not host:port"),
        (lambda: EtcdSettings(endpoints=("::1:2379",)), "'::1:2379' is not host:port"),
        (lambda: EtcdSettings(prefix=""), "prefix ''"),
        (lambda: EtcdSettings(prefix="/lab"), "prefix '/lab'"),
        (lambda: EtcdSettings(prefix="lab\n"), "prefix 'lab\\n'"),
        (lambda: EtcdSettings(timeout=0), "timeout must be greater than 0, not 0"),
        (lambda: EtcdSettings(timeout=float("nan")), "timeout must be greater than 0, not nan"),
        (lambda: EtcdSettings(max_value_size=-1), "max_value_size must be greater than 0, not -1"),
        (lambda: EtcdSettings(page_size=0), "page_size must be greater than 0, not 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    make: Callable[[], EtcdSettings], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        make()


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        EtcdSettings(endpoints=("a", "b"), prefix="", timeout=0, page_size=0)

    assert all(
        part in str(caught.value) for part in ("'a'", "'b'", "prefix", "timeout", "page_size")
    )


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        EtcdSettings().prefix = "other"  # type: ignore[misc]  # that is what is refused


# --- no secrets -----------------------------------------------------------------------------------


def test_a_password_shows_in_no_repr() -> None:
    settings = EtcdSettings(user="root", password=SECRET)
    console = Console(width=300)
    with console.capture() as capture:
        console.print(settings)

    for shown in (
        repr(settings),
        str(settings),
        f"{settings}",
        pretty_repr(settings),
        capture.get(),
    ):
        assert SECRET not in shown
        assert "root" in shown


def test_a_repr_tells_whether_there_is_a_password() -> None:
    assert "password=None" in repr(EtcdSettings())
    assert "password='***'" in repr(EtcdSettings(password=SECRET))


def test_replacing_a_field_keeps_the_password_and_hides_it() -> None:
    settings = msgspec.structs.replace(EtcdSettings(password=SECRET), prefix="lab")

    assert settings.password == SECRET
    assert SECRET not in repr(settings)
