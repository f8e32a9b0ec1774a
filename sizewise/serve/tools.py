"""Function calls for models whose chat template has no form for them.

The functions are described in the system's text, and a grammar makes the call: a JSON object with the name of one of
them and arguments that its schema allows. So even a very small model calls correctly; whether it should call at all is
decided in `calling.py`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.serve.constraints import checked_schema
from sizewise.serve.job import Job, ToolCall, Turn
from sizewise.serve.json_grammar import json_grammar

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def checked_tools(job: Job) -> list[dict[str, Any]]:
    """The functions that the job offers, each with name, description and a checked schema; only the one that is wanted.

    Raises:
        UsageError: a tool is not of OpenAI's form, its name is none, or there are too many.
    """
    if len(job.tools) > MOST_TOOLS:
        raise UsageError(f"tools has {len(job.tools)} items; at most {MOST_TOOLS} are allowed")
    found = [checked_function(tool, f"tools[{place}]") for place, tool in enumerate(job.tools)]
    names = [one["name"] for one in found]
    if len(set(names)) != len(names):
        raise UsageError(f"tools: the function {max(names, key=names.count)!r} occurs twice")
    if job.tool_choice not in (None, "auto", "none", "required"):
        found = [one for one in found if one["name"] == job.tool_choice]
        if not found:
            raise UsageError(f"tool_choice: no function named {str(job.tool_choice)[:64]!r} among the tools")
    if job.tool_choice == "required" and not found:
        raise UsageError("tool_choice: there are no tools of which one could be required")
    return found


def checked_function(tool: Any, where: str) -> dict[str, Any]:
    """Name, description and schema of one tool, which errors call `where`."""
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        raise UsageError(f"{where}.type must be 'function'")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise UsageError(f"{where}.function must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{where}.function.name must be 1 to 64 letters, digits, '_', '-', '.' or ':'")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise UsageError(f"{where}.function.description must be a string")
    parameters = checked_schema(function.get("parameters") or {}, f"{where}.function.parameters")
    return {"name": name, "description": description, "parameters": {"type": "object", "properties": {}} | parameters}


def call_grammar(functions: Sequence[dict[str, Any]]) -> str:
    """The JSON of a call of one of these functions."""
    kinds = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": _standing_alone(one["parameters"], at)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, one in enumerate(functions)
    ]
    return json_grammar({"anyOf": kinds}, "tools")


def _standing_alone(schema: dict[str, Any], at: int) -> Any:
    """A schema whose references still lead to its own parts where it stands within `anyOf`."""

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            made = {key: moved(value) for key, value in node.items()}
            if isinstance(made.get("$ref"), str):
                made["$ref"] = f"#/anyOf/{at}/properties/arguments{made['$ref'][1:]}"
            return made
        return [moved(one) for one in node] if isinstance(node, list) else node

    closed = {"additionalProperties": False} if not schema.get("properties") else {}
    return closed | moved(schema)


def with_functions(turns: Sequence[Turn], functions: Sequence[dict[str, Any]]) -> tuple[Turn, ...]:
    """A conversation whose system text tells of the functions, and how to call one."""
    listed = "\n".join(json.dumps(one, ensure_ascii=False) for one in functions)
    text = (
        f"You are a helpful assistant. You can call these functions:\n{listed}\n\nTo call a function, answer with JSON "
        'only, like this:\n{"name": "function", "arguments": {"parameter": "value"}}\n'
        "If no function is needed, answer in words."
    )
    plain = in_words(turns)
    if plain and plain[0].role == "system":
        return (replace(plain[0], content=f"{plain[0].content}\n\n{text}"), *plain[1:])
    return (Turn("system", text), *plain)


def in_words(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """A conversation with calls and results as plain turns of assistant and user, told as people would.

    Calls shown as JSON would be repeated by a small model, where it is to answer.
    """
    made: list[Turn] = []
    asked: list[ToolCall] = []
    results: list[str] = []
    for turn in (*turns, None):
        if results and (turn is None or turn.role != "tool"):
            text = "\n".join(results)
            made.append(Turn("user", f"{text}\nNow answer my question with {'it' if len(results) == 1 else 'them'}."))
            results = []
        if turn is None:
            break
        if turn.role == "tool":
            name = turn.tool_name or next((one.name for one in asked if one.id and one.id == turn.tool_call_id), "")
            name = name or (asked[0].name if asked else "the function")
            asked = asked[1:]
            results.append(f"The result of {name} is: {turn.content}")
        elif turn.tool_calls:
            asked = list(turn.tool_calls)
            calls = "\n".join(f"I call {one.name}({_values(one.arguments)})." for one in asked)
            made.append(Turn("assistant", f"{turn.content}\n{calls}" if turn.content else calls))
        else:
            made.append(turn)
    return tuple(made)


def _values(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())


def parsed_call(text: str) -> ToolCall | None:
    """The call in an answer; None where it was cut off."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("arguments"), dict):
        return None
    return ToolCall(str(value.get("name")), value["arguments"])
