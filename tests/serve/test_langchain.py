"""LangChain's own standard integration suites, and the usual LangChain programs, against a server with SmolLM2.

Every test of the suites (langchain-tests 1.1) runs but those in `LEFT_OUT`, which do not apply; those in `WEAK` run and
may fail, because they ask more of a model than one of 135 million weights has.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from pydantic import BaseModel, Field
from served import Served

_TEXT_ONLY = "SmolLM2 is a text model: it has no projector for pictures, sound or documents"
LEFT_OUT = {
    "test_image_inputs": _TEXT_ONLY,
    "test_image_tool_message": _TEXT_ONLY,
    "test_pdf_inputs": _TEXT_ONLY,
    "test_pdf_tool_message": _TEXT_ONLY,
    "test_audio_inputs": _TEXT_ONLY,
    "test_anthropic_inputs": "the suite wants pictures and Anthropic's form of tools, which ChatOllama does not take",
    "test_tool_choice": "ChatOllama drops tool_choice before it asks any server",
    "test_stream_time": "measures the client's own time over recorded answers; nothing of a server is in it",
}
WEAK = {
    "test_json_mode": "without a schema the keys are left to the model, and SmolLM2 nests one in another without end",
}
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*marked with '@pytest.mark.asyncio' but it is not an async function")
class TestChat(ChatModelIntegrationTests):
    """langchain-tests on ChatOllama."""

    url = ""
    writes = False  # free text within a schema: greedy, SmolLM2 would say one word for ever

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        told = {"model": "smollm2", "base_url": self.url, "temperature": 0, "num_predict": 96}
        return told | ({"repeat_penalty": 1.3} if self.writes else {})

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def model_override_value(self) -> str:
        return "smollm2:latest"

    @pytest.fixture(autouse=True)
    def _prepare(self, request: pytest.FixtureRequest, server: Served) -> None:
        self.url = server.url
        name = request.node.originalname
        self.writes = name.startswith("test_structured_output")
        if name in LEFT_OUT:
            pytest.skip(LEFT_OUT[name])
        if name in WEAK:
            request.applymarker(pytest.mark.xfail(reason=WEAK[name], strict=False))


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*marked with '@pytest.mark.asyncio' but it is not an async function")
class TestEmbeddings(EmbeddingsIntegrationTests):
    """langchain-tests on OllamaEmbeddings."""

    @property
    def embeddings_class(self) -> type[OllamaEmbeddings]:
        return OllamaEmbeddings

    @pytest.fixture
    def model(self, server: Served) -> OllamaEmbeddings:
        return OllamaEmbeddings(model="smollm2", base_url=server.url)


def test_the_table_names_tests_of_the_suite() -> None:
    suite = {name for name in dir(ChatModelIntegrationTests) if name.startswith("test_")}
    assert not (LEFT_OUT.keys() | WEAK.keys()) - suite
    assert not LEFT_OUT.keys() & WEAK.keys()


def test_a_prompt_piped_into_a_language_model(server: Served) -> None:
    prompt = PromptTemplate.from_template("What is the capital of {country}?")
    chain = prompt | OllamaLLM(model="smollm2", base_url=server.url, temperature=0, num_predict=20)
    answer = chain.invoke({"country": "France"})
    assert len(answer.split()) > 3
    assert "".join(chain.stream({"country": "France"})) == answer


def test_a_prompt_piped_into_a_chat_model(server: Served) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "You are brief."), ("human", "Capital of {country}?")])
    chain = prompt | ChatOllama(model="smollm2", base_url=server.url, temperature=0, num_predict=20)
    answer = chain.invoke({"country": "France"})
    assert len(answer.text.split()) > 3
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == answer.response_metadata["eval_count"] > 0
    assert answer.response_metadata["model_name"] == "smollm2"


def test_a_model_is_looked_for_when_a_client_is_made(server: Served) -> None:
    for name in ("smollm2", "smollm2:latest"):
        ChatOllama(model=name, base_url=server.url, validate_model_on_init=True)
        OllamaEmbeddings(model=name, base_url=server.url, validate_model_on_init=True)
        OllamaLLM(model=name, base_url=server.url, validate_model_on_init=True)
    with pytest.raises(ValueError, match="not found"):
        ChatOllama(model="nobody", base_url=server.url, validate_model_on_init=True)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    people: int = Field(description="number of inhabitants", ge=0, le=10**8)


def test_an_answer_as_an_object(server: Served) -> None:
    model = ChatOllama(model="smollm2", base_url=server.url, temperature=0, num_predict=80)
    city = model.with_structured_output(City).invoke("Tell me about Paris.")
    assert isinstance(city, City)
    assert city.name


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def weather(place: str) -> str:
    """The weather at a place."""
    return f"It rains in {place}."


def test_two_tools_and_their_results(server: Served) -> None:
    model = ChatOllama(model="smollm2", base_url=server.url, temperature=0, num_predict=80).bind_tools([add, weather])
    question = HumanMessage("How is the weather in Paris? Use the tool weather.")
    called = model.invoke([question])
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    answer = model.invoke([question, called, result])
    assert isinstance(answer, AIMessage)
    assert answer.content or answer.tool_calls
    parts = list(model.stream([question]))
    calls = [one for part in parts if isinstance(part, AIMessageChunk) for one in part.tool_calls]
    assert [one["name"] for one in calls] == ["weather"]


def test_options_that_are_all_null(server: Served) -> None:
    vectors = OllamaEmbeddings(model="smollm2", base_url=server.url).embed_documents(["a cat", "a dog"])
    assert len(vectors) == 2
    assert OllamaEmbeddings(model="smollm2", base_url=server.url, temperature=0.5, top_k=5).embed_query("a cat")
    assert OllamaLLM(model="smollm2", base_url=server.url, num_predict=3, format="").invoke("Hi")
