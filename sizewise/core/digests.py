"""Content addresses. A digest is always written `sha256:` + 64 hex digits."""

import hashlib
import json
import re
from typing import Any

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of_bytes(data: bytes) -> str:
    """The digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """The one way to write a JSON value down: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of_json(value: Any) -> str:
    """The digest of a JSON value, independent of the order of its keys."""
    return digest_of_bytes(canonical(value))
