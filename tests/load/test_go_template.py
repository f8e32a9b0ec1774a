"""Ollama's templates as Jinja: what they write is worked out by hand here, for the shapes that most models use."""

import pytest

from sizewise.core.errors import Unsupported, UsageError
from sizewise.core.requests import Message
from sizewise.load._template_child import environment
from sizewise.load.go_template import is_jinja, translate
from sizewise.load.templates import render_chat

S, U1, A1, U2 = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Why?"),
)
ONE, TALK, BARE = (S, U1), (S, U1, A1, U2), (U1, A1, U2)

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
CHATML_MESSAGES = """{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ $m.Content }}{{ if or (ne .Role "assistant") (not $last) }}<|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ end }}
{{- end }}"""
LLAMA2 = "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST] {{ .Response }}</s>"
LLAMA3 = """{{ if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>

{{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

{{ .Response }}<|eot_id|>"""
MISTRAL = """{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}[INST] {{ if and (eq (len (slice $.Messages $index)) 1) $.System }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }} {{ .Content }}</s>
{{- end }}
{{- end }}"""
GEMMA = """<start_of_turn>user
{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>
<start_of_turn>model
{{ .Response }}<end_of_turn>
"""
PHI3 = """{{- if .System }}<|system|>
{{ .System }}<|end|>
{{ end -}}
{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""
ALPACA = """{{ if .System }}{{ .System }}

{{ end }}{{ if .Prompt }}### Instruction:
{{ .Prompt }}

{{ end }}### Response:
{{ .Response }}

"""
VICUNA = """{{ if .System }}{{ .System }}

{{ end }}USER: {{ .Prompt }}
ASSISTANT: {{ .Response }}</s>
"""


def render(template: str, messages: tuple[Message, ...]) -> str:
    return render_chat(translate(template), messages)


_SHAPES = [
    (
        "chatml",
        CHATML,
        ONE,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chatml, a conversation",
        CHATML,
        TALK,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "Hello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chatml over messages",
        CHATML_MESSAGES,
        TALK,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "Hello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chatml over messages, an answer begun",
        CHATML_MESSAGES,
        (U1, A1),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!",
    ),
    ("llama2", LLAMA2, ONE, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] "),
    (
        "llama2, a conversation",
        LLAMA2,
        TALK,
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello!</s>[INST] Why? [/INST] ",
    ),
    (
        "llama3",
        LLAMA3,
        TALK,
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("mistral", MISTRAL, TALK, "[INST] Hi[/INST] Hello!</s>[INST] Be brief.\n\nWhy?[/INST]"),
    ("mistral without a system prompt", MISTRAL, BARE, "[INST] Hi[/INST] Hello!</s>[INST] Why?[/INST]"),
    (
        "gemma",
        GEMMA,
        TALK,
        "<start_of_turn>user\nBe brief. Hi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "phi3",
        PHI3,
        TALK,
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
    ),
    (
        "alpaca",
        ALPACA,
        TALK,
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### Instruction:\nWhy?\n\n### Response:\n",
    ),
    ("vicuna", VICUNA, TALK, "Be brief.\n\nUSER: Hi\nASSISTANT: Hello!</s>\nUSER: Why?\nASSISTANT: "),
    ("no response in it", "{{ .System }}|{{ .Prompt }}|", TALK, "Be brief.|Hi|Hello!|Why?|"),
    ("nothing but text", "Q: ", (U1,), "Q: "),
    ("an answer begun", CHATML, (U1, A1), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"),
    ("neighbours are joined", VICUNA, (U1, U2), "USER: Hi\n\nWhy?\nASSISTANT: "),
    (
        "a system prompt in the middle",
        VICUNA,
        (U1, S, U2),
        "USER: Hi\nASSISTANT: </s>\nBe brief.\n\nUSER: Why?\nASSISTANT: ",
    ),
    ("braces, quotes and backslashes", "{% \\n ' \" #} {{ .Prompt }}", (U1,), "{% \\n ' \" #} Hi"),
]


@pytest.mark.parametrize(
    ("template", "messages", "text"), [shape[1:] for shape in _SHAPES], ids=[shape[0] for shape in _SHAPES]
)
def test_well_known_shapes(template: str, messages: tuple[Message, ...], text: str) -> None:
    assert render(template, messages) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ .Prompt }}{{/* a comment */}}!{{ .Response }}", "Hi!"),
        ("a {{- /* trims */ -}} b{{ .Response }}", "ab"),
        ("a  {{- .Prompt -}}  b{{ .Response }}", "aHib"),
        ("{{ with .Prompt }}<{{ . }}>{{ else }}none{{ end }}{{ .Response }}", "<Hi>"),
        ("{{ with .System }}<{{ . }}>{{ else }}none{{ end }}{{ .Response }}", "none"),
        ('{{ if eq .Prompt "Ho" "Hi" }}y{{ end }}{{ .Response }}', "y"),
        ('{{ if ne .Prompt "Hi" }}y{{ else if not .System }}n{{ end }}{{ .Response }}', "n"),
        ("{{ $x := 3 }}{{ if gt $x 2 }}{{ $x = 4 }}{{ end }}{{ $x }}{{ .Response }}", "4"),
        ("{{ $f := false }}{{ range .Messages }}{{ $f = true }}{{ end }}{{ if $f }}seen{{ end }}", "seen"),
        ("{{ range .Messages }}{{ range $.Messages }}{{ .Content }}{{ end }}{{ end }}", "Hi"),
        ("{{ (index .Messages 0).Content }}", "Hi"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ break }}{{ end }}", "0user"),
        ("{{ range .Tools }}x{{ else }}none{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}", "noneHi"),
        ("{{ .Messages | len }}", "1"),
        ("{{ .Messages | json }}", '[{"role": "user", "content": "Hi"}]'),
        ("{{ if and .Prompt (or .System true) }}y{{ end }}{{ .Response }}", "y"),
        ("{{ if .Suffix }}fim{{ else }}chat{{ end }}{{ .Response }}", "chat"),
        ("{{ if .Think }}t{{ end }}{{ if .IsThinkSet }}s{{ end }}{{ .Prompt }}{{ .Response }}", "Hi"),
        ('{{ `raw \\n` }}{{ "tab\\t" }}{{ .Response }}', "raw \\ntab\t"),
    ],
)
def test_the_language(template: str, text: str) -> None:
    assert render(template, (U1,)) == text


def test_a_later_part_of_a_branch_goes_too() -> None:
    template = "{{ if .Prompt }}U:{{ .Prompt }} A:{{ .Response }}<end>{{ end }}<after>"
    assert render(template, BARE) == "U:Hi A:Hello!<end><after>U:Why? A:"


def test_tools_and_their_calls() -> None:
    template = """{{- if .Tools }}{{ range .Tools }}{{ .Function.Name }}:{{ .Function.Parameters }}
{{ end }}{{ end }}
{{- range .Messages }}{{ if .ToolCalls }}{{ range .ToolCalls -}}
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{- range $k, $v := .Function.Arguments }} {{ $k }}={{ $v }}{{ end }}
{{ end }}{{ else if eq .Role "tool" }}{{ .ToolName }} says {{ .Content }}
{{ else }}{{ .Content }}
{{ end }}{{ end }}"""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    calls = [{"function": {"name": "add", "arguments": {"a": 1, "b": "x"}}}]
    messages = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "2", "tool_name": "add"},
    ]
    text = environment().from_string(translate(template)).render(messages=messages, tools=tools)
    assert text == (
        'add:{"type": "object"}\nAdd\n{"name": "add", "arguments": {"a": 1, "b": "x"}} a=1 b=x\nadd says 2\n'
    )


def test_users_write_no_control_tokens() -> None:
    text = render_chat(translate(CHATML), [Message("user", "<|im_end|>")], control=["<|im_end|>", "<|im_start|>"])
    assert text.startswith("<|im_start|>user\n<\ufdd0|im_end|><|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ if .System }}", "line 1: 'if' is not closed"),
        ("\n\n{{ end }}", "line 3: 'end' without a beginning"),
        ("a\n{{ .System", "line 2: an action is not closed"),
        ("{{ $x := }}", "a value is missing"),
        ("{{ (.System }}", "a parenthesis is not closed"),
        ("{{ .System ? }}", "unexpected '?'"),
        ("{{ if .System }}{{ else }}{{ else }}{{ end }}", "not closed by an end"),
        ("{{ if " + "(" * 60 + ".System" + ")" * 60 + " }}{{ end }}", "levels deep"),
        ("{{ if .System }}" * 60 + "{{ end }}" * 60, "levels deep"),
    ],
)
def test_errors_name_their_line(template: str, part: str) -> None:
    with pytest.raises(UsageError, match=part.replace("(", r"\(")) as caught:
        translate(template)
    assert not isinstance(caught.value, Unsupported)


@pytest.mark.parametrize(
    "template",
    [
        '{{ define "x" }}{{ end }}',
        '{{ template "x" . }}',
        '{{ printf "%d" 1 }}',
        "{{ .Unheard }}",
        "{{ $x }}",
        '{{ "\\x41" }}',
    ],
)
def test_what_has_no_translation_says_so(template: str) -> None:
    with pytest.raises(Unsupported):
        translate(template)


def test_which_language_a_template_is_in() -> None:
    for template in (CHATML, CHATML_MESSAGES, LLAMA2, MISTRAL, PHI3, VICUNA, "plain", "{{ if eq 1 1 }}{{ end }}"):
        assert not is_jinja(template)
    for template in ("{% for m in messages %}{% endfor %}", "{{ messages[0].content }}", "{# x #}", "{{- bos_token }}"):
        assert is_jinja(template)


def test_long_conversations_are_no_burden() -> None:
    messages = (*[U1, A1] * 2000, U2)
    for template in (CHATML, CHATML_MESSAGES):
        text = render(template, messages)
        assert text.count("Hello!") == 2000
        assert text.endswith("Why?<|im_end|>\n<|im_start|>assistant\n")
