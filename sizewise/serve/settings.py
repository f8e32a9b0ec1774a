"""How the server runs. The environment variables are those of Ollama; this is the only place that reads them."""

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sizewise.core.errors import UsageError

DEFAULT_PORT = 11434
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER, _UNIT = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", "ns|us|µs|ms|s|m|h"
_PART = re.compile(f"({_NUMBER})({_UNIT})")
_DURATION = re.compile(f"([+-]?)(?:({_NUMBER})|((?:{_NUMBER}(?:{_UNIT}))+))")
_FOREVER_S = 100 * 365 * 86400.0  # longer than this is for ever


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # beyond those of this machine, as the browser sends them; * stands for anything
    hosts: tuple[str, ...] = ()  # names of this server, beyond those of the loopback interface
    keep_alive_s: float | None = 300.0  # None = for ever
    context: int | None = None  # None: as much as the model has, at most 8192
    parallel: int = 4  # requests that one model answers at the same time
    max_loaded: int | None = None  # None: as many as fit into memory
    max_queue: int = 512  # requests that wait
    load_timeout_s: float = 300.0
    threads: int | None = None
    body_limit: int = 64 * 2**20
    body_timeout_s: float = 25.0
    grace_s: float = 30.0
    dev: bool = False

    def __post_init__(self) -> None:
        counts = {"parallel": self.parallel, "max_loaded": self.max_loaded, "context": self.context}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; expected at least 1")
        if not 0 <= self.port <= 65535 or self.max_queue < 0:
            raise UsageError(f"port {self.port} or queue {self.max_queue} is out of range")

    @property
    def loopback(self) -> bool:
        """True where only programs on this machine can connect."""
        return is_loopback(self.host)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment.

        Raises:
            UsageError: a variable holds what it cannot; the message names it.
        """
        env = os.environ if environ is None else environ
        host, port = parse_host(env.get("OLLAMA_HOST", ""))
        keys = [env.get("SIZEWISE_API_KEY", ""), *_list(env, "SIZEWISE_API_KEYS"), env.get("OLLAMA_API_KEY", "")]
        return cls(
            host=host,
            port=port,
            api_keys=tuple(dict.fromkeys(key.strip() for key in keys if key.strip())),
            origins=tuple(_list(env, "OLLAMA_ORIGINS")),
            hosts=tuple(name.lower() for name in _list(env, "SIZEWISE_HOSTS")),
            keep_alive_s=_duration(env, "OLLAMA_KEEP_ALIVE", 300.0),
            context=_whole(env, "OLLAMA_CONTEXT_LENGTH", zero_is_unset=True),
            parallel=_whole(env, "OLLAMA_NUM_PARALLEL", zero_is_unset=True) or 4,
            max_loaded=_whole(env, "OLLAMA_MAX_LOADED_MODELS", zero_is_unset=True),
            max_queue=_whole(env, "OLLAMA_MAX_QUEUE") if env.get("OLLAMA_MAX_QUEUE") else 512,  # type: ignore[arg-type]
            load_timeout_s=_duration(env, "OLLAMA_LOAD_TIMEOUT", 300.0) or math.inf,
            body_timeout_s=_duration(env, "SIZEWISE_BODY_TIMEOUT", 25.0) or math.inf,
            grace_s=_duration(env, "SIZEWISE_GRACE", 30.0) or 0.0,
            dev=env.get("OLLAMA_DEBUG", "").lower() in ("1", "2", "true", "yes"),
        )


def parse_host(text: str) -> tuple[str, int]:
    """Host and port of `OLLAMA_HOST`: `host`, `host:port`, `:port`, `[::1]:port`, or any of them after `http://`.

    Raises:
        UsageError: it has none of these forms.
    """
    text = text.strip()
    if not text:
        return LOOPBACK_NAMES[1], DEFAULT_PORT
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in ("http", "https"):
        raise UsageError(f"OLLAMA_HOST is {text!r}: expected host:port or http://host:port")
    if not separator and text.count(":") > 1 and not text.startswith("["):
        rest = f"[{text}]"  # a bare IPv6 address
    try:
        split = urlsplit(f"//{rest if separator or rest else text}")
        port = split.port
    except ValueError as error:
        raise UsageError(f"OLLAMA_HOST is {text!r}: {error}") from error
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    return split.hostname or LOOPBACK_NAMES[1], default if port is None else port


def is_loopback(host: str) -> bool:
    """True for a name or address of the loopback interface."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_duration(value: object) -> float | None:
    """Seconds of a `keep_alive`: a number, or a text such as "5m", "1h30m", "90". Negative: None, for ever.

    Raises:
        UsageError: it is no duration.
    """
    wrong = UsageError(f"{value!r:.60} is no duration: expected seconds, or a text such as '5m' or '1h30m'")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    seconds = _seconds(value.strip()) if isinstance(value, str) else float(value)
    if seconds is None or not math.isfinite(seconds):
        raise wrong
    return None if seconds < 0 or seconds > _FOREVER_S else seconds


def _seconds(text: str) -> float | None:
    found = _DURATION.fullmatch(text) if len(text) < 60 else None
    if found is None:
        return None
    sign, plain, parts = found.groups()
    seconds = float(plain) if plain else sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(parts))
    return -seconds if sign == "-" else seconds


def _list(env: Mapping[str, str], name: str) -> list[str]:
    return [part.strip() for part in env.get(name, "").split(",") if part.strip()]


def _duration(env: Mapping[str, str], name: str, default: float) -> float | None:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        return parse_duration(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _whole(env: Mapping[str, str], name: str, *, zero_is_unset: bool = False) -> int | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise UsageError(f"{name} is {text!r:.40}: expected a whole number")
    return (int(text) or None) if zero_is_unset else int(text)
