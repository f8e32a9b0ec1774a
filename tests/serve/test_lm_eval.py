"""lm-evaluation-harness asks our server through its `local-completions`, and gets the numbers of our own scorer."""

import json
from pathlib import Path
from typing import Any

import pytest
from served import Served

from sizewise.core.requests import ScoreRequest
from sizewise.load.models import find_model
from sizewise.load.runner import Options
from sizewise.load.runners.llamacpp import LlamaCpp

pytestmark = [pytest.mark.model, pytest.mark.slow]
ROWS = [
    ("The capital of France is", ["Paris", "London", "Berlin"], 0),
    ("The opposite of hot is", ["warm", "cold", "sunny"], 1),
    ("Two plus two equals", ["four", "five", "seven"], 0),
    ("Fish live in the", ["sky", "desert", "water"], 2),
    ("Café menus in München list", ["Kaffee", "naïve \U0001f600 tea", "stones"], 0),
]
TASK = """
task: rows
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's own tokenizer in the form that the harness reads, taken from the GGUF file."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name).save_pretrained(str(folder))
    return folder


def ask(server: Served, tokenizer: Path, **arguments: Any) -> Any:
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model="smollm2",
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(tokenizer),
        max_retries=1,
        **arguments,
    )


@pytest.mark.parametrize("arguments", [{"batch_size": 1}, {"batch_size": 4}, {"num_concurrent": 3}])
def test_a_task(server: Served, tokenizer: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Each choice's log-probability is that of our own runner, and so is each prediction."""
    model = ask(server, tokenizer, **arguments)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    data = tmp_path / "rows.jsonl"
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in ROWS]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "rows.yaml").write_text(TASK % data)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model=model, tasks=["rows"], task_manager=tasks, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"]["rows"], key=lambda sample: sample["doc_id"])
    theirs = [[(float(logprob), bool(greedy)) for logprob, greedy in sample["filtered_resps"]] for sample in samples]
    requests = [ScoreRequest(question, tuple(f" {choice}" for choice in choices)) for question, choices, _ in ROWS]
    with LlamaCpp(find_model("smollm2", server.store), Options(threads=2)) as runner:
        ours = runner.score(requests)
    for row, scores in zip(theirs, ours, strict=True):
        assert [logprob for logprob, _ in row] == pytest.approx([score.logprob for score in scores], abs=1e-3)
        assert [greedy for _, greedy in row] == [score.greedy for score in scores]
        assert max(range(3), key=lambda i: row[i][0]) == max(range(3), key=lambda i: scores[i].logprob)


def test_texts_instead_of_tokens(server: Served, tokenizer: Path) -> None:
    """The harness can also send texts; the tokens are then ours."""
    from lm_eval.api.instance import Instance

    both = []
    for tokenized in (True, False):
        model = ask(server, tokenizer, tokenized_requests=tokenized)
        instances = [
            Instance("loglikelihood", {}, (question, " " + choice), 0)
            for question, choices, _ in ROWS
            for choice in choices
        ]
        both.append([logprob for logprob, _ in model.loglikelihood(instances)])
    assert both[0] == pytest.approx(both[1], abs=1e-3)


def test_generation_and_whole_texts(server: Served, tokenizer: Path) -> None:
    from lm_eval.api.instance import Instance

    model = ask(server, tokenizer)
    stop = {"until": ["\n"], "max_gen_toks": 12, "temperature": 0}
    assert "Paris" in model.generate_until([Instance("generate_until", {}, ("The capital of France is", stop), 0)])[0]
    text = "The quick brown fox jumps over the lazy dog."
    rolling = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    with LlamaCpp(find_model("smollm2", server.store), Options(threads=2)) as runner:
        [[score]] = runner.score([ScoreRequest("", (text,))])
    assert rolling[0] == pytest.approx(score.logprob, abs=1e-3)
