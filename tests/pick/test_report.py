"""The report without a browser: what is in the files, and what is refused. See test_report_page for how it behaves."""

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.core.errors import StorageError, UsageError
from sizewise.core.results import Bar, Comparison, Decision, FitResult, Interval
from sizewise.pick.report import MOST_BYTES, as_results, render_html, render_json, write_report
from sizewise.pick.report.answers import show
from sizewise.pick.report.chart import CANVASES, draw
from sizewise.pick.report.labels import Box, Wanted, place_labels
from sizewise.pick.report.numbers import align, column, decimals, quantity_text, ratio_text, scale_of, significant
from sizewise.pick.report.standing import headline, standings


class Page(HTMLParser):
    """All elements, and the values of all <data> elements, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: set[float] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        value = dict(attrs).get("value")
        if tag == "data" and value is not None:
            self.numbers.add(float(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def numbers_of(value: Any) -> set[float]:
    """Every number in some JSON."""
    if isinstance(value, dict):
        return set().union(*map(numbers_of, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(numbers_of, value)) if value else set()
    return {float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def test_html_brings_json_and_markdown(tmp_path: Path, fit_result: FitResult, comparison: Comparison) -> None:
    page = tmp_path / "out.html"
    written = write_report([fit_result, comparison], page)
    assert sorted(path.name for path in written) == ["out.html", "out.json", "out.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.json", "out.md"]
    assert page.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("suffix", [".json", ".md"])
def test_other_suffixes_write_that_file_alone(tmp_path: Path, suffix: str, fit_result: FitResult) -> None:
    assert write_report([fit_result], tmp_path / f"out{suffix}") == [tmp_path / f"out{suffix}"]
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_an_unknown_suffix_is_refused(tmp_path: Path, fit_result: FitResult) -> None:
    with pytest.raises(UsageError, match=r"\.html, \.json or \.md"):
        write_report([fit_result], tmp_path / "out.pdf")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, fit_result: FitResult) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report([fit_result], tmp_path / "file" / "out.html")


def test_nothing_is_fetched_and_only_our_own_script_may_run(fit_result: FitResult, comparison: Comparison) -> None:
    page = Page(render_html([fit_result, comparison]))
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:,")), (tag, name, target)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "url(" not in render_html([fit_result])


def test_the_decision_comes_first(fit_result: FitResult, comparison: Comparison) -> None:
    sentence = fit_result.decision.sentence
    html = render_html([fit_result, comparison])
    (first,) = re.findall(r"<h1.*?>(.*?)</h1>", html, re.DOTALL)
    assert re.sub(r"<.*?>", "", first) == sentence
    assert html.index("<h1") < html.index('<svg class="chart')


def test_headings_are_in_order(fit_result: FitResult, comparison: Comparison) -> None:
    page = Page(render_html([fit_result, comparison, fit_result]))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_numbers_in_the_page_are_those_of_the_json(fit_result: FitResult, comparison: Comparison) -> None:
    shown = Page(render_html([fit_result, comparison])).numbers
    stored = numbers_of(json.loads(render_json([fit_result, comparison])))
    per_million = {number * 1000 for number in stored}  # money is shown for a million items, stored for a thousand
    common = {a.shown.common for i in comparison_answers(comparison) for a in i.answers if a.shown.common is not None}
    assert shown <= stored | per_million | common
    for candidate in fit_result.candidates:
        for each in (candidate.test, candidate.dev):
            assert each is None or each.value in shown
        assert candidate.cpu_s_per_item is None or candidate.cpu_s_per_item in shown


def comparison_answers(comparison: Comparison) -> Any:
    from sizewise.pick.report.comparison_view import comparison_view

    return comparison_view(comparison).instructions


def test_what_was_not_measured_is_a_dash_with_its_reason(comparison: Comparison) -> None:
    html = render_html([comparison])
    assert "no price per hour was stated" in html
    assert "not measured" in html


def test_markdown_holds_the_decision_and_all_candidates(tmp_path: Path, fit_result: FitResult) -> None:
    write_report([fit_result], tmp_path / "r.md")
    lines = (tmp_path / "r.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].removeprefix("# ").replace("\\", "") == fit_result.decision.sentence
    table = [line for line in lines if line.startswith("| ")]
    for candidate in fit_result.candidates:
        assert any(candidate.model in line.replace("\\", "") for line in table)
    assert len({line.replace("\\|", "").count("|") for line in table[: len(fit_result.candidates) + 2]}) == 1


def test_json_goes_round(fit_result: FitResult, comparison: Comparison) -> None:
    text = render_json([fit_result, comparison])
    assert as_results([json.loads(text)]) == [fit_result, comparison]
    assert as_results([fit_result.as_json(), comparison.as_json()]) == [fit_result, comparison]


WRONG: list[tuple[Any, str]] = [
    ([], "nothing to report"),
    ([[]], "not a list"),
    ([{}], "kind"),
    ([{"kind": ["fit"]}], "kind"),
    ([{"kind": "fit"}], "task: missing"),
    ([{"kind": "report", "results": 3}], "expected a list"),
    ([{"kind": "comparison", "models": [], "machine": {}, "seconds": "3"}], "seconds: expected a finite number"),
    ([{"kind": "comparison", "models": [], "machine": {}, "seconds": float("nan")}], "finite"),
    ([{"kind": "comparison", "models": {}, "machine": {}, "seconds": 1}], "models: expected a list"),
    ([{"kind": "comparison", "models": [], "machine": {}, "seconds": 1, "seed": True}], "seed: expected a whole"),
    ([{"kind": "comparison", "models": [], "machine": {}, "seconds": 1, "extra": 1}], "extra: no such field"),
]


@pytest.mark.parametrize(("given_results", "says"), WRONG)
def test_wrong_json_names_the_field(tmp_path: Path, given_results: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        write_report(given_results, tmp_path / "out.html")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_status_that_does_not_exist_is_refused(fit_result: FitResult) -> None:
    body = fit_result.as_json()
    body["decision"] = {**body["decision"], "status": "won"}
    with pytest.raises(UsageError, match=r"decision\.status: expected one of 'pass'"):
        as_results([body])


def test_huge_texts_are_cut_in_the_page_and_whole_in_the_json(comparison: Comparison, tmp_path: Path) -> None:
    body = comparison.as_json()
    for model in body["models"]:
        for answer in model["answers"]:
            answer["answer"] = "word <b> " * 100_000
    write_report([body], tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size <= MOST_BYTES
    assert "more characters in the JSON file" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["results"] == [body]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 900), st.floats(0, 500), st.floats(10, 200)), max_size=14))
def test_labels_never_overlap_labels_points_or_the_edge(spots: list[tuple[float, float, float]]) -> None:
    frame = Box(0, 0, 1000, 520)
    wanted = [Wanted(x, y, width, 17) for x, y, width in spots]
    points = [Box(x - 8, y - 8, x + 8, y + 8) for x, y, _ in spots]
    placed = [box for box in place_labels(wanted, frame, points, []) if box]
    for place, box in enumerate(placed):
        assert box.inside(frame)
        assert not any(box.overlaps(other) for other in [*points, *placed[:place]])


def test_every_candidate_is_in_the_picture_or_named_as_missing(fit_result: FitResult) -> None:
    standing = standings(fit_result)
    for cost in standing.costs():
        for canvas in CANVASES:
            chart = draw(standing, cost, canvas)
            known = [c for c in fit_result.candidates if (c.test or c.dev) and cost.value(c) is not None]
            assert len(chart.marks) == len(known)
            for mark in chart.marks:
                assert canvas.left <= mark.x <= canvas.width - canvas.right
                assert canvas.top <= mark.y <= canvas.height - canvas.bottom
            winner = next(mark for mark in chart.marks if mark.standing.state == "winner")
            assert winner.label is not None
            better = sorted(chart.marks, key=lambda mark: mark.y)[0].standing.quality
            assert better is not None
            assert better.value == max(m.standing.quality.value for m in chart.marks if m.standing.quality)


def test_digits_follow_the_interval() -> None:
    assert [decimals(half) for half in (0.14, 1.4, 3.4, 3.6, 14, 0.04)] == [2, 1, 1, 0, 0, 2]
    assert scale_of("accuracy").text(Interval(0.8613, 0.8475, 0.8751, 2418)) == "86.1\u202f%"
    assert scale_of("accuracy").text(Interval(0.531, 0.475, 0.587, 300)) == "53\u202f%"
    assert scale_of("perplexity").higher_is_better is False


def test_units_and_ratios_for_people() -> None:
    assert quantity_text(999_700, "bytes", 3) == "1\u202fMB"
    assert quantity_text(0.0043, "seconds") == "4.3\u202fms"
    assert (significant(213, 2), significant(0.00512, 2)) == ("210", "0.0051")
    assert (ratio_text(1 / 14), ratio_text(0.34), ratio_text(3.1)) == ("1/14", "34\u202f%", "3.1 times")
    assert align(["0.052", "210", None]) == ("0.052", "210\u2008\u2007\u2007\u2007", None)
    assert column([5.2e-5, 0.21, None], "seconds").unit == "ms"


def test_differences_and_code_are_marked() -> None:
    shown = show(
        "The big cat sat.\n```python\nx = 2\n```\nDone.", "The small cat sat.\n```python\nx = 1\n```\nDone.", 4000
    )
    assert [segment.kind for segment in shown.segments] == ["prose", "code", "prose"]
    assert [run.text for s in shown.segments for run in s.runs if run.different] == ["big", "2"]
    assert "".join(run.text for run in shown.segments[1].runs) == "x = 2"
    unlike = show("Entirely other words here.", "Nothing of that was said before by anyone.", 4000)
    assert not any(run.different for s in unlike.segments for run in s.runs)


@given(st.text(alphabet="ab \n`x", max_size=300), st.text(alphabet="ab \n`x", max_size=300), st.integers(1, 8))
def test_marking_and_folding_lose_no_word(answer: str, reference: str, times: int) -> None:
    long = answer * times
    lines = [line for line in long.split("\n") if not line.lstrip(" ").startswith("```")]
    assert show(long, reference, 4000).text.split() == "\n".join(lines).split()


def test_a_long_answer_folds_between_words() -> None:
    shown = show("word " * 400, None, 4000)
    assert 600 < len(shown.segments[0].runs[0].text) <= 700
    assert shown.folded_words == 400 - len(shown.segments[0].runs[0].text.split())
    assert show("word " * 150, None, 4000).folded == ()


def test_the_title_answers_whether_something_cheaper_would_do(fit_result: FitResult) -> None:
    def title(result: FitResult) -> str:
        standing = standings(result)
        return headline(standing, standing.costs()[0])

    assert title(fit_result) == "sentiment-minilm passes at 1/21 of the CPU time of sentiment-smollm2-head"
    alone = [each for each in fit_result.candidates if each.model != "sentiment-smollm2-head"]
    assert title(replace(fit_result, candidates=tuple(alone))).startswith("Nothing tried with less CPU time than senti")
    dear = [each for each in alone if (each.cpu_s_per_item or 1) > 0.004]
    assert title(replace(fit_result, candidates=tuple(dear))).endswith("best found, and none takes less CPU time")
    none = replace(fit_result, decision=Decision("none_passes", None, "None passes."), bar=Bar(at_least=0.9))
    assert title(none) == "Nothing passes: sentiment-smollm2-head comes nearest, 3.1 points from the bar"


@pytest.mark.parametrize("status", ["none_passes", "undecided"])
def test_a_fit_without_a_winner_has_a_page_too(fit_result: FitResult, status: Any) -> None:
    decision = Decision(status, None, "It has no winner.", rows_needed=9400)
    html = render_html([replace(fit_result, decision=decision)])
    assert "It has no winner." in html
    assert 'class="point winner' not in html
    assert '<data value="9400">9,400</data>' in html


def test_a_fit_of_one_candidate_without_any_number_has_a_page_too(fit_result: FitResult) -> None:
    lost = replace(fit_result, candidates=fit_result.candidates[-1:], decision=Decision("none_passes", None, "None."))
    assert "the endpoint does not answer" in render_html([lost])
    assert '<svg class="chart' not in render_html([lost])
