"""Errors as HTTP answers."""

import json

import pytest

from sizewise.core import errors
from sizewise.serve.body import BadField
from sizewise.serve.errors import HttpError, clean, error_answer, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownName("model in the store", "x"), 404),
        (errors.UnknownName("method", "x"), 400),
        (errors.Busy("x", 7), 503),
        (errors.Crashing("x", 3, 50), 503),
        (errors.TooLong("x", 9, 8), 400),
        (errors.UsageError("x"), 400),
        (BadField("x", "y"), 400),
        (errors.Unsupported("x"), 400),
        (errors.BadModel("x"), 422),
        (errors.DoesNotFit("x"), 507),
        (errors.DiskFull("x"), 507),
        (errors.Locked("x"), 409),
        (errors.Unreachable("x"), 502),
        (errors.DigestMismatch("x"), 400),
        (errors.EngineFailed("x"), 500),
        (errors.Unsafe("x"), 400),
        (errors.StorageError("x"), 500),
        (HttpError(418, "x"), 418),
        (ZeroDivisionError("x"), 500),
    ],
)
def test_statuses(error: Exception, status: int) -> None:
    assert status_of(error) == status
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        assert error_answer(path, error).status_code == status


def test_every_error_has_a_status() -> None:
    """A new leaf of the tree is answered on purpose: not with 500, unless it is named here."""
    ours = {errors.SizewiseError, errors.EngineFailed, errors.StorageError}
    leaves = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SizewiseError)
    ]
    for kind in leaves:
        plain = Exception.__new__(kind)
        plain.args = ("x",)
        if kind is errors.UnknownName:
            plain.kind = "model"  # type: ignore[attr-defined]
        assert (status_of(plain) == 500) == (kind in ours), kind


def test_envelopes() -> None:
    def body(path: str, error: Exception) -> object:
        return json.loads(bytes(error_answer(path, error).body))

    missing = errors.UnknownName("model in the store", "smollm", ["smollm2"])
    text = "model 'smollm' not found, try pulling it first; did you mean 'smollm2'?"
    assert body("/api/chat", missing) == {"error": text}
    assert body("/v1/systemone", missing) == {"error": text}
    openai = {"message": text, "type": "not_found_error", "param": None, "code": "model_not_found"}
    assert body("/v1/models/smollm", missing) == {"error": openai}
    anthropic = {"type": "error", "error": {"type": "not_found_error", "message": text}}
    assert body("/v1/messages", missing) == anthropic
    field = body("/v1/completions", BadField("temperature", "is 9; expected 0 to 2"))
    assert isinstance(field, dict)
    assert field["error"]["param"] == "temperature"
    long = body("/v1/completions", errors.TooLong("m", 9000, 8192))
    assert isinstance(long, dict)
    assert long["error"]["code"] == "context_length_exceeded"
    assert "9000" in long["error"]["message"]
    assert "8192" in long["error"]["message"]


def test_when_to_ask_again() -> None:
    assert error_answer("/api/chat", errors.Busy("m", 7)).headers["Retry-After"] == "7"
    assert error_answer("/api/chat", errors.Crashing("m", 3, 50)).headers["Retry-After"] == "50"
    assert error_answer("/v1/x", errors.DoesNotFit("m")).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/user/.sizewise/models/blobs/sha256-1: cut short", "sha256-1: cut short"),
        ("read 'file:///etc/passwd' failed", "read 'passwd' failed"),
        ("C:\\Users\\me\\model.gguf is no GGUF", "model.gguf is no GGUF"),
        ("use application/json or text/plain", "use application/json or text/plain"),
        ("see https://models.example/a/b", "see https://models.example/a/b"),
        ("POST /api/chat 3/4", "POST chat 3/4"),
        ("two\nlines\tand \x1b[31mred\u202e", "two lines and \\x1b[31mred\\x202e"),
    ],
)
def test_messages_hold_no_paths_and_no_control_characters(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_faults_of_ours_are_not_told() -> None:
    answer = error_answer("/api/chat", RuntimeError("secret /etc/passwd"))
    assert b"secret" not in answer.body
