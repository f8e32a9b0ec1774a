"""Modelfiles: what each line says, where a wrong one stands, and that what is written can be read again."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.core.requests import Message
from sizewise.load.modelfile import Modelfile, parse, write


def test_everything_at_once() -> None:
    made = parse(
        "# a comment\n\nfrom smollm2\nFROM ./projector.gguf\n  ADAPTER ./lora.gguf\nPARAMETER temperature 0.2\n"
        'parameter STOP "<|end|>"\nPARAMETER stop User:\nPARAMETER num_ctx 4096\nPARAMETER use_mmap false\n'
        'TEMPLATE "{{ .Prompt }}"\nSYSTEM """You are\n# no comment\nbrief."""\nLICENSE MIT\nLICENSE """two\nlines"""\n'
        'MESSAGE user Is this "it"?\nMESSAGE assistant """Yes,\nit is."""\nREQUIRES 0.14.0\nRENDERER r\nPARSER p\n'
    )
    assert made == Modelfile(
        sources=["smollm2", "./projector.gguf"],
        adapters=["./lora.gguf"],
        parameters={"temperature": 0.2, "stop": ["<|end|>", "User:"], "num_ctx": 4096, "use_mmap": False},
        template="{{ .Prompt }}",
        system="You are\n# no comment\nbrief.",
        licenses=["MIT", "two\nlines"],
        messages=[Message("user", 'Is this "it"?'), Message("assistant", "Yes,\nit is.")],
        requires="0.14.0",
        renderer="r",
        parser="p",
    )


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("bare words  ", "bare words"),
        ('"one"', "one"),
        ('"with "inner" marks"', 'with "inner" marks'),
        ('""', ""),
        ('""""""', ""),
        ('"""\nbelow\n"""', "\nbelow\n"),
        ('"""a "quoted" word"""', 'a "quoted" word'),
        ('"two\nlines"', "two\nlines"),
        ('it"s', 'it"s'),
        ('"""keeps   \n  spaces"""  ', "keeps   \n  spaces"),
    ],
)
def test_values(value: str, meaning: str) -> None:
    assert parse(f"FROM x\nSYSTEM {value}\nPARAMETER top_k 3").system == meaning
    assert parse(f"FROM x\r\nSYSTEM {value}\r\n".replace("\n", "\r\n")).system == meaning


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("", 1, "no FROM"),
        ("# only\n# comments", 2, "no FROM"),
        ("FROM", 1, "FROM needs a value"),
        ("FROM x\n\nFORM y", 3, "unknown instruction 'FORM'"),
        ("FROM x\nMESSAGE robot hi", 2, "bad role 'robot'; expected system, user, assistant"),
        ("FROM x\nMESSAGE user", 2, "MESSAGE needs a role and a text"),
        ('FROM x\nSYSTEM """never\nclosed', 2, 'begins here with """ is not closed'),
        ('FROM x\n\nSYSTEM "never\nclosed', 3, 'begins here with " is not closed'),
        ("FROM x\nPARAMETER temprature 1", 2, "did you mean 'temperature'"),
        ("FROM x\nPARAMETER temperature", 2, "PARAMETER needs a name and a value"),
        ("FROM x\nPARAMETER temperature hot", 2, "temperature must be a number, not 'hot'"),
        ("FROM x\nPARAMETER num_ctx 1.5", 2, "num_ctx must be a whole number"),
        ("FROM x\nPARAMETER use_mmap perhaps", 2, "use_mmap must be true or false"),
        ("FROM x\nPARAMETER top_p 1.5", 2, "expected more than 0 to 1"),
        ("FROM x\nPARAMETER temperature nan", 2, "temperature must be a number"),
        ('FROM x\nPARAMETER stop ""', 2, "stop takes at most 16 texts"),
        ("FROM x\nREQUIRES newest", 2, "REQUIRES needs a version"),
        ('FROM x\nSYSTEM """a\nb\n"""\nNONSENSE', 5, "unknown instruction"),
    ],
)
def test_errors_name_their_line(text: str, line: int, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "Mine")
    assert str(caught.value).startswith(f"Mine:{line}: ")
    assert part in str(caught.value)


def test_parameters_of_old_are_named_and_left_out() -> None:
    made = parse("FROM x\nPARAMETER mirostat 2\nPARAMETER penalize_newline true\nPARAMETER top_k 4")
    assert made.parameters == {"top_k": 4}
    assert made.warnings == [
        "Modelfile:2: parameter mirostat has no effect any more",
        "Modelfile:3: parameter penalize_newline has no effect any more",
    ]


def test_a_hundred_thousand_lines_are_no_burden() -> None:
    made = parse("FROM x\n" + "MESSAGE user a\n" * 20_000 + 'SYSTEM """' + "line\n" * 100_000 + '"""')
    assert len(made.messages) == 20_000
    with pytest.raises(UsageError, match="at most"):
        parse("#" * 5_000_000)


def model(system: str, stops: list[str], turns: list[str]) -> Model:
    return Model(
        name="m",
        kind="gguf",
        digest="",
        files={"model.gguf": Path("x")},
        size_bytes=0,
        template="{% for m in messages %}\n{{ m.content }}{% endfor %}",
        system=system,
        license='Some "words"\nin lines',
        messages=tuple(Message("user", turn) for turn in turns),
        defaults={"stop": stops, "temperature": 0.25, "use_mmap": True, "num_ctx": 5} if stops else {},
    )


TEXT = st.text(st.sampled_from('ab "\n#\\é '), min_size=1, max_size=12)


@given(TEXT, st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3))
def test_what_is_written_is_read_again(system: str, stops: list[str], turns: list[str]) -> None:
    before = model(system, stops, turns)
    text = write(before)
    after = parse(text)
    if "cannot be written here" in text:
        assert '"' in system + "".join(stops + turns)
        return
    assert (after.sources, after.system, after.template) == (["m"], system, before.template)
    assert after.parameters == before.defaults
    assert tuple(after.messages) == before.messages
    assert after.licenses == [before.license]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    said = ""
    try:
        sources = parse(text).sources
    except UsageError as error:
        sources, said = [], str(error)
    assert sources or re.fullmatch(r"Modelfile:\d+: .+", said)
