"""What a model is shown: exact texts, balanced examples, one beginning for all."""

from collections import Counter

import pytest
from ngram import make_task

from sizewise.core.errors import UsageError
from sizewise.core.requests import Message
from sizewise.core.task import Item, changed
from sizewise.measure.prompts import render, render_bare, stops, worked_examples

TRAIN = [Item(f"train:{i}", f"t{i}", "no" if i < 80 else "yes") for i in range(100)]  # sorted by label, four to one
TEST = [Item("test:1", "first", "no"), Item("test:2", "second {input}", "yes")]
TASK = make_task("classify", TEST, TRAIN)


def test_text_prompts_letter_by_letter() -> None:
    texts = [each.text for each in render(TASK, TEST, [Item("train:1", "a", "yes"), Item("train:2", "b", "no")])]
    beginning = "a\nAnswer: yes\n\nb\nAnswer: no\n\n"
    assert texts == [beginning + "first\nAnswer:", beginning + "second {input}\nAnswer:"]


def test_chat_prompts_turn_by_turn() -> None:
    task = changed(TASK, format="chat", system="Be brief.", prompt="{input}")
    (found,) = render(task, TEST[:1], [Item("train:1", "a", "yes")])
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "yes"), ("user", "first")]
    assert found.messages == tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
    assert found.prompt is None
    assert found.text.endswith("user: first")


def test_fitted_models_get_the_input_alone() -> None:
    assert [each.prompt for each in render_bare(TEST)] == ["first", "second {input}"]


@pytest.mark.parametrize("shots", [1, 2, 5, 8])
def test_examples_are_balanced_over_labels(shots: int) -> None:
    counts = Counter(item.expected for item in worked_examples(TASK, shots))
    assert sum(counts.values()) == shots
    assert abs(counts["yes"] - counts["no"]) <= 1


def test_a_rare_label_gives_what_it_has() -> None:
    task = make_task("classify", TEST, TRAIN[:81])
    assert Counter(item.expected for item in worked_examples(task, 8)) == {"no": 7, "yes": 1}


def test_the_seed_and_nothing_else_decides_which() -> None:
    first = worked_examples(TASK, 6)
    assert first == worked_examples(TASK, 6)
    assert first != worked_examples(changed(TASK, seed=1), 6)
    assert len({item.id for item in first}) == 6
    assert all(item in TRAIN for item in first)


def test_the_labels_are_not_shown_in_blocks() -> None:
    orders = {tuple(item.expected for item in worked_examples(changed(TASK, seed=seed), 8)) for seed in range(20)}
    assert len(orders) > 10


def test_too_few_rows_is_an_error_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"101 worked examples .* there are 100"):
        worked_examples(TASK, 101)
    with pytest.raises(UsageError, match="there are 0"):
        worked_examples(make_task("classify", TEST), 1)


def test_worked_steps_are_shown_where_there_are_some() -> None:
    task = make_task("number", TEST, [Item("train:1", "1 + 1", "2", worked="One and one is 2. #### 2")])
    (found,) = render(task, TEST[:1], worked_examples(task, 1))
    assert "One and one is 2. #### 2\n\nfirst" in found.text


def test_choices_are_listed_with_letters_and_answered_by_letter() -> None:
    item, shown = Item("test:1", "Which?", "b", ("a", "b")), Item("train:1", "What?", "x", ("x", "y"))
    (found,) = render(make_task("choose", [item], [shown]), [item], [shown], lettered=True)
    assert found.text == "What?\nA. x\nB. y\nAnswer: A\n\nWhich?\nA. a\nB. b\nAnswer:"
    assert found.item == item


def test_an_answer_ends_where_the_next_example_would_begin() -> None:
    example = Item("train:1", "a", "yes")
    assert stops(TASK, [example]) == ("\n", "\n\n")
    assert stops(TASK, []) == ("\n",)
    assert stops(changed(TASK, format="chat"), [example]) == ("\n",)
    assert stops(TASK, [Item("train:1", "a", "two\n\nparts")]) == ("\n",)
