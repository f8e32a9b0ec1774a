"""Settings from the environment, durations, addresses."""

import math

import pytest

from sizewise.core.errors import UsageError
from sizewise.serve.settings import Settings, is_loopback, parse_duration, parse_host


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("90", 90.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("+10s", 10.0),
        (0, 0.0),
        ("0", 0.0),
        (2.5, 2.5),
        (-1, None),
        ("-1", None),
        ("-5m", None),
        (10**12, None),
    ],
)
def test_durations(value: object, seconds: float | None) -> None:
    assert parse_duration(value) == (pytest.approx(seconds) if seconds is not None else None)


@pytest.mark.parametrize(
    "value",
    [
        "5 parsecs",
        "",
        "m",
        "1e3",
        "5m3",
        "--5m",
        "\N{ARABIC-INDIC DIGIT FIVE}m",
        True,
        None,
        [],
        {},
        math.nan,
        math.inf,
        "9" * 99,
    ],
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(UsageError, match="no duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 11434),
        ("127.0.0.1:1234", "127.0.0.1", 1234),
        (":99", "127.0.0.1", 99),
        ("0.0.0.0", "0.0.0.0", 11434),
        ("http://model.example", "model.example", 80),
        ("https://model.example:8/", "model.example", 8),
        ("[::1]:5", "::1", 5),
        ("::1", "::1", 11434),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_host(text) == (host, port)


@pytest.mark.parametrize("text", ["example.com:x", "ftp://x", "h:99999"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="OLLAMA_HOST"):
        parse_host(text)


def test_the_environment() -> None:
    env = {
        "OLLAMA_HOST": "0.0.0.0:1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_CONTEXT_LENGTH": "4096",
        "OLLAMA_ORIGINS": "app://a, https://*.b",
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_MAX_LOADED_MODELS": "3",
        "OLLAMA_MAX_QUEUE": "0",
        "OLLAMA_LOAD_TIMEOUT": "30s",
        "OLLAMA_DEBUG": "1",
        "SIZEWISE_API_KEY": "one",
        "SIZEWISE_API_KEYS": "two, three",
        "OLLAMA_API_KEY": "one",
    }
    settings = Settings.from_env(env)
    assert (settings.host, settings.port, settings.loopback) == ("0.0.0.0", 1, False)
    assert (settings.keep_alive_s, settings.context, settings.parallel, settings.max_loaded) == (None, 4096, 2, 3)
    assert (settings.max_queue, settings.load_timeout_s, settings.dev) == (0, 30.0, True)
    assert settings.api_keys == ("one", "two", "three")
    assert settings.origins == ("app://a", "https://*.b")
    assert Settings.from_env({}) == Settings()


@pytest.mark.parametrize(
    "name", ["OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_QUEUE", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "SIZEWISE_GRACE"]
)
def test_a_bad_variable_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Settings.from_env({name: "many"})


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", ""))
