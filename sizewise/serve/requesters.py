"""Who may ask: by the name they call us (Host), the page they come from (Origin), their key, and how they send JSON."""

import base64
import binascii
import hashlib
import hmac
import re
import socket
from fnmatch import translate
from urllib.parse import urlsplit

from sizewise.serve.errors import HttpError
from sizewise.serve.settings import Settings

Headers = list[tuple[bytes, bytes]]
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
_METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
_FORM = b"application/x-www-form-urlencoded"
_OF_BROWSERS = frozenset((b"origin", b"referer", b"cookie", b"sec-fetch-site"))


class Requesters:
    """The checks of one server."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._origins = [re.compile(translate(origin.lower().rstrip("/"))) for origin in settings.origins]
        self._hosts = _LOOPBACK | set(settings.hosts)
        if not settings.loopback:
            self._hosts |= _own_names(settings.host)

    def check_host(self, headers: Headers) -> None:
        """Refuse names that are not ours: a page elsewhere may have its name lead to this machine (DNS rebinding).

        Raises:
            HttpError: 403.
        """
        told = [value for name, value in headers if name == b"host"]
        found = _HOST.fullmatch(told[0].decode("latin-1").lower()) if len(told) == 1 else None
        if found is None or found.group(1) not in self._hosts:
            raise HttpError(403, "this Host is not served here; SIZEWISE_HOSTS adds names")

    def cors(self, headers: Headers) -> Headers:
        """The headers that let a page of an allowed origin read the answer; none where no page asks.

        Raises:
            HttpError: 403, the page is a stranger's.
        """
        told = [value for name, value in headers if name == b"origin"]
        if not told:
            return []
        if len(told) > 1 or not self._welcome(told[0].decode("latin-1"), headers):
            raise HttpError(403, "this Origin is not allowed; OLLAMA_ORIGINS adds some")
        exposed = b"X-Sizewise-Warning, Retry-After"
        return [
            (b"access-control-allow-origin", told[0]),
            (b"access-control-expose-headers", exposed),
            (b"vary", b"Origin"),
        ]

    def preflight(self, headers: Headers) -> Headers:
        """What an allowed page may send: whatever headers it asks for, since its origin was checked."""
        wanted = next((value for name, value in headers if name == b"access-control-request-headers"), b"")
        safe = b", ".join(part.strip() for part in wanted.split(b",") if re.fullmatch(rb"[\w-]{1,64}", part.strip()))
        allowed = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"600")]
        return [*allowed, (b"access-control-allow-headers", safe)] if safe else allowed

    def check_key(self, headers: Headers) -> None:
        """Want one of the keys, where there are any, as a bearer token, a basic password or `x-api-key`.

        Raises:
            HttpError: 401.
        """
        if not self._keys:
            return
        told = hashlib.sha256(_key(headers)).digest()
        known = False
        for key in self._keys:  # all are compared, each in constant time: how long it takes says nothing
            known |= hmac.compare_digest(key, told)
        if not known:
            raise HttpError(401, "the API key is missing or wrong", {"WWW-Authenticate": 'Basic realm="sizewise"'})

    def check_type(self, headers: Headers) -> None:
        """Want JSON. `curl -d` says that it sends a form, and is believed not to, as long as no browser is behind it.

        Raises:
            HttpError: 415.
        """
        told = [value.partition(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
        if told == [b"application/json"]:
            return
        if told == [_FORM] and not any(name in _OF_BROWSERS for name, _ in headers):
            return
        raise HttpError(415, "send the body as Content-Type: application/json")

    def _welcome(self, origin: str, headers: Headers) -> bool:
        lower = origin.lower()
        try:
            split = urlsplit(lower)
            host = f"[{split.hostname}]" if ":" in (split.hostname or "") else split.hostname
            plain = split.scheme in ("http", "https") and lower == f"{split.scheme}://{split.netloc}"
        except ValueError:
            return False
        if plain and "@" not in lower and host in _LOOPBACK:
            return True
        own = next((value.decode("latin-1").lower() for name, value in headers if name == b"host"), "")
        if plain and split.netloc == own:  # our own page; the Host was checked before
            return True
        return lower != "null" and any(pattern.match(lower) for pattern in self._origins)


def _own_names(host: str) -> set[str]:
    """What a server that others can reach may be called: the address it was told, and those that this machine has."""
    import psutil

    names = {_bracketed(host.lower()), socket.gethostname().lower()}
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                names.add(_bracketed(one.address.partition("%")[0].lower()))
    return names


def _bracketed(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _key(headers: Headers) -> bytes:
    """The key that a request shows, in whichever form; empty where it shows none."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name != b"authorization":
            continue
        scheme, _, rest = value.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            return rest.strip()
        if scheme.lower() == b"basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                return b""
    return b""
