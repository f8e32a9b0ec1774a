"""Schemas as grammars: what the engine writes under them is valid, whatever the model."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sessions import as_gguf, ask, opened, run
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import UsageError
from sizewise.serve.job import Draw, Job
from sizewise.serve.json_grammar import schema_grammar
from sizewise.serve.session import Session


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    made = opened(as_gguf(write_tiny_llama(tmp_path_factory.mktemp("grammar") / "tiny.gguf", context=2048)), 1024)
    yield made
    run(made.close())


def written(session: Session, schema: dict[str, Any], seed: int) -> Any:
    ends = tuple((token, 2.0) for text in '"}]' for token in run(session.tokenize(text))[-1:])
    draw = Draw(max_tokens=700, temperature=1.0, top_p=1.0, top_k=0, seed=seed, logit_bias=ends)
    answer = ask(session, Job(prompt="x", draw=draw, schema=schema))
    assert answer.done.finish == "stop", answer.text
    return json.loads(answer.text)


NAME = {"type": "string", "maxLength": 4}
SCHEMAS: list[tuple[dict[str, Any], Any]] = [
    ({"type": "boolean"}, lambda v: isinstance(v, bool)),
    ({"type": "integer", "minimum": -7, "maximum": 123}, lambda v: isinstance(v, int) and -7 <= v <= 123),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 11}, lambda v: v == 10),
    ({"type": "integer", "minimum": 998}, lambda v: v >= 998),
    ({"type": "number", "minimum": 0, "maximum": 1}, lambda v: 0 <= v <= 1),
    ({"type": "number", "exclusiveMinimum": -2, "exclusiveMaximum": 0}, lambda v: -2 < v < 0),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 5}, lambda v: 0 < v <= 5),
    ({"type": "string", "minLength": 2, "maxLength": 3}, lambda v: len(v) >= 2),
    ({"type": "string", "pattern": r"^\d{3}-[a-f\"\\]+?(x|yz)$"}, lambda v: re.search(r'^\d{3}-[a-f"\\]+(x|yz)$', v)),
    ({"type": "string", "pattern": r"^[^\W_]{1,3}\.\w$"}, lambda v: re.search(r"^[a-zA-Z0-9]{1,3}\.\w$", v)),
    ({"type": "string", "format": "date"}, lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v)),
    ({"enum": ["red", 'a "b"\\', 3, None, {"k": [1]}]}, lambda v: v in ("red", 'a "b"\\', 3, None, {"k": [1]})),
    ({"const": {"a": [1, 2]}}, lambda v: v == {"a": [1, 2]}),
    ({"type": ["integer", "null"], "maximum": 5, "minimum": 5}, lambda v: v in (5, None)),
    ({"type": "array", "items": NAME, "minItems": 2, "maxItems": 3}, lambda v: 2 <= len(v) <= 3),
    ({"type": "array", "items": NAME, "maxItems": 1}, lambda v: len(v) <= 1),
    ({"type": "array", "prefixItems": [{"const": 1}, NAME], "items": False}, lambda v: v[0] == 1 and len(v) == 2),
    ({"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2}, lambda v: len(v) <= 2),
    (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]},
        lambda v: v["b"] == 2 and v.keys() <= {"a", "b", "c"},
    ),
    (
        {"properties": {"abc": {"const": 1}}, "required": ["abc"], "additionalProperties": {"const": 2}},
        lambda v: v["abc"] == 1 and all(value == 2 for key, value in v.items() if key != "abc"),
    ),
    (
        {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"$ref": "#/$defs/b"}],
         "$defs": {"b": {"properties": {"b": {"const": 2}}, "required": ["b"]}}},
        lambda v: v == {"a": 1, "b": 2},
    ),
    (
        {"anyOf": [{"properties": {"k": {"const": "x"}}, "required": ["k"]}, {"$ref": "#/definitions/y"}],
         "definitions": {"y": {"type": "null"}}},
        lambda v: v in ({"k": "x"}, None),
    ),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "required": ["leaf"], "properties": {
            "leaf": {"type": "boolean"}, "left": {"$ref": "#/$defs/tree"}}}}},
        lambda v: isinstance(v["leaf"], bool),
    ),
    ({"properties": {"type": {"const": "a"}, "items": {"const": "b"}}, "required": ["type", "items"]},
     lambda v: v == {"type": "a", "items": "b"}),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(SCHEMAS)))
def test_a_random_model_writes_valid_json(session: Session, place: int) -> None:
    schema, valid = SCHEMAS[place]
    for seed in range(6):
        value = written(session, schema, seed)
        assert valid(value), value


def test_whole_numbers_within_bounds_are_all_there_and_no_others() -> None:
    chance = random.Random(1)
    for _ in range(60):
        low = chance.randrange(-1200, 1200)
        high = low + chance.choice((0, 1, 9, 10, 99, 555))
        expression = _as_regex(schema_grammar({"type": "integer", "minimum": low, "maximum": high}))
        for number in range(low - 15, high + 16):
            assert bool(re.fullmatch(expression, str(number))) == (low <= number <= high), (low, high, number)


def test_numbers_within_bounds() -> None:
    for low, high, inside, outside in (
        (0, 1, ("0", "1", "0.5", "1.0", "0.999"), ("1.01", "-0.1", "2", "1.5")),
        (-2, 3, ("-2", "-1.9", "0", "-0.5", "2.99", "3"), ("-2.1", "3.1", "-3", "4")),
        (10, 25, ("10", "24.99", "25", "13.5"), ("9.9", "25.1", "30", "1")),
    ):
        expression = _as_regex(schema_grammar({"type": "number", "minimum": low, "maximum": high}))
        assert all(re.fullmatch(expression, text) for text in inside)
        assert not any(re.fullmatch(expression, text) for text in outside)


def _as_regex(grammar: str) -> str:
    """The regular expression of a grammar whose root leads to one rule of digits."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    body = rules[rules["root"]]
    return re.sub(r'"([^"]*)"', lambda found: re.escape(found[1]), body).replace(" ", "")


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "number", "multipleOf": 0.5}, "multipleOf"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties"),
        ({"type": "string", "maxLength": 100_000}, "length"),
        ({"type": "number", "minimum": 0.5}, "fraction"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 6}, "no whole number"),
        ({"type": "string", "pattern": r"^(?=a)b$"}, "group"),
        ({"type": "string", "pattern": r"^(a)\1$"}, "escape"),
        ({"type": "string", "pattern": "(" * 60 + "a" + ")" * 60}, "groups"),
        ({"type": "string", "pattern": "^a{1,100000}$"}, "repetition"),
        ({"type": "string", "pattern": "a|b("}, "without its end"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "type"),
        ({"properties": {"a": False}, "required": ["a"]}, "nothing"),
        ({"required": ["a"], "additionalProperties": False}, "required"),
        ({"$ref": "http://127.0.0.1/x"}, "itself"),
        ({"$ref": "#/$defs/nothing"}, "nothing"),
        ({"enum": []}, "enum"),
        ({"properties": [1]}, "properties"),
        ({"anyOf": []}, "anyOf"),
        ([], "object"),
    ],
)
def test_what_a_grammar_cannot_do_is_refused_by_name(schema: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        schema_grammar(schema)


def test_depth_and_size_have_limits() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="deep"):
        schema_grammar(deep)
    with pytest.raises(UsageError, match="bytes"):
        schema_grammar({"description": "x" * 70_000})
    wide = {"properties": {f"k{place}": {"type": "boolean"} for place in range(600)}}
    assert schema_grammar(wide).count("::=") < 2000
