"""HTTP for pulling: to hosts that the user named, with no secret ever leaving for another host."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import urljoin, urlsplit

import httpx

from sizewise import __version__
from sizewise.core.errors import Unreachable, Unsafe
from sizewise.core.references import is_loopback

__all__ = ["Web", "is_loopback", "read_limited", "transport_errors"]
STALL_S = 30.0  # a connection on which nothing arrives for so long is given up and tried again
_MOST_ANSWER = 1 << 20  # bytes; manifests and tokens have a few thousand
_REDIRECTS = (301, 302, 303, 307, 308)


class Web:
    """Requests to one registry, which may send us elsewhere for data but not for trust."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.token = ""
        timeout = httpx.Timeout(STALL_S, connect=10.0)
        self._client = httpx.Client(timeout=timeout, headers={"User-Agent": f"sizewise/{__version__}"})

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @contextlib.contextmanager
    def get(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """GET `path` below the base; the body is not read yet. Redirects are followed, the token is not taken along.

        Raises:
            Unreachable: no answer.
            Unsafe: a redirect to plain HTTP, or from elsewhere to this machine.
        """
        url = urljoin(self.base, path)
        for _ in range(6):
            sent = headers | self.trust(url)
            with transport_errors(url), self._client.stream("GET", url, headers=sent) as answer:
                if answer.status_code in _REDIRECTS and "location" in answer.headers:
                    url = self.redirect(url, answer.headers["location"])
                    continue
                yield answer
                return
        raise Unreachable(f"{self.base}: redirects without end")

    def send(
        self, method: str, url: str, headers: dict[str, str], content: bytes | Iterable[bytes] = b""
    ) -> httpx.Response:
        """A request with a body, whose short answer is read at once. Redirects are not followed.

        Raises:
            Unreachable: no answer.
        """
        url = urljoin(self.base, url)
        with transport_errors(url):
            request = self._client.build_request(method, url, headers=headers | self.trust(url), content=content)
            answer = self._client.send(request, stream=True)
            try:
                answer.extensions["body"] = read_limited(answer, self.base) if method != "HEAD" else b""
            finally:
                answer.close()
        return answer

    def trust(self, url: str) -> dict[str, str]:
        """The header with the token, for the host that gave it and for no other."""
        same = urlsplit(url)[:2] == urlsplit(self.base)[:2]
        return {"Authorization": f"Bearer {self.token}"} if self.token and same else {}

    def redirect(self, url: str, location: str) -> str:
        """Where a `Location` header leads.

        Raises:
            Unsafe: to plain HTTP, or from elsewhere to this machine.
        """
        target = urljoin(url, location)
        split = urlsplit(target)
        ours = is_loopback(urlsplit(self.base).hostname)
        plain = split.scheme == "http" and (
            split[:2] == urlsplit(self.base)[:2] or (ours and is_loopback(split.hostname))
        )
        if split.scheme != "https" and not plain:
            raise Unsafe(f"{self.base}: refused a redirect to {target[:120]!r}, which is not protected by TLS")
        if is_loopback(split.hostname) and not ours:
            raise Unsafe(f"{self.base}: refused a redirect to this machine ({target[:120]!r})")
        return target

    def authenticate(self, challenge: str) -> bool:
        """Get the anonymous token that a `WWW-Authenticate` header asks for; False where it asks for anything else.

        Raises:
            Unsafe: the token is to be fetched from another host.
        """
        fields = dict(re.findall(r'([a-z]+)="([^"]*)"', challenge))
        realm = fields.get("realm", "")
        if not challenge.lower().startswith("bearer") or not realm:
            return False
        if urlsplit(realm)[:2] != urlsplit(self.base)[:2]:
            raise Unsafe(f"{self.base}: refused to authenticate at another host ({realm[:120]!r})")
        query = {key: fields[key] for key in ("service", "scope") if key in fields}
        with transport_errors(realm), self._client.stream("GET", realm, params=query) as answer:
            if answer.status_code != 200:
                return False
            data = read_limited(answer, self.base)
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return False
        self.token = str(body.get("token") or body.get("access_token") or "") if isinstance(body, dict) else ""
        return bool(self.token)


def read_limited(answer: httpx.Response, where: str) -> bytes:
    """The whole body, which must be small.

    Raises:
        Unreachable: it is larger than any manifest.
    """
    data = b""
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) > _MOST_ANSWER:
            raise Unreachable(f"{where}: answers with more than {_MOST_ANSWER} bytes where a manifest should be")
    return data


@contextlib.contextmanager
def transport_errors(url: str) -> Iterator[None]:
    """Turn what the HTTP client raises into one line with what to do."""
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        host = urlsplit(url).netloc or url
        what = str(error) or type(error).__name__
        raise Unreachable(
            f"{host} does not answer or broke off ({what[:99]}); the same command goes on from there"
        ) from error
