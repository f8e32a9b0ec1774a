"""Kept results: what was written is found again, and nothing else in the folder is."""

import json
from pathlib import Path

import pytest

from sizewise.core.errors import UnknownName
from sizewise.core.results import Comparison, FitResult
from sizewise.load.home import reports_folder
from sizewise.pick.kept import keep, kept, read_kept, readable


def test_what_is_kept_is_read_again_whole(fit_result: FitResult, comparison: Comparison) -> None:
    fit, side = keep(fit_result), keep(comparison)
    assert {each.id for each in kept()} == {fit.id, side.id}
    assert read_kept(fit.id).as_json() == json.loads(json.dumps(fit_result.as_json()))
    assert isinstance(read_kept(side.id), Comparison)
    assert keep(fit_result).id.endswith(fit.id[-12:])  # the same result has the same digest


def test_without_a_folder_there_are_none() -> None:
    assert kept() == []


@pytest.mark.parametrize("name", ["../ledger", "/etc/passwd", "x.json", "20260101-000000-fit-000000000000", ""])
def test_only_what_is_there_can_be_asked_for(fit_result: FitResult, name: str) -> None:
    keep(fit_result)
    with pytest.raises(UnknownName):
        read_kept(name)


def test_other_files_are_left_alone(fit_result: FitResult, tmp_path: Path) -> None:
    real = keep(fit_result)
    (reports_folder() / "notes.json").write_text("{}")
    (reports_folder() / "20260101-000000-fit-0123456789ab.json").symlink_to(tmp_path / "elsewhere")
    (reports_folder() / "20260102-000000-fit-0123456789ab.json").write_text("{torn")
    told = readable(lambda result: {"kind": type(result).__name__})
    assert [(each.id, said.get("kind")) for each, said in told] == [
        (real.id, "FitResult"), ("20260102-000000-fit-0123456789ab", None),
    ]  # fmt: skip
    assert "error" in told[1][1]
    assert str(reports_folder()) not in told[1][1]["error"]
