"""What the commands that need upstream's checkouts refuse before they begin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import reconviagen
from benchmarks.parity import __main__ as parity
from benchmarks.parity.compare import _rows
from benchmarks.parity.encoders import Dinov2
from benchmarks.parity.standins import StandIns
from benchmarks.parity.upstream import Upstream


@pytest.fixture
def checkouts(tmp_path: Path) -> dict[str, Path]:
    """Two folders that look like the checkouts, as far as that goes."""
    found = {"--upstream": tmp_path / "rvg", "--dinov2": tmp_path / "dinov2"}
    for package in ("rvg/trellis", "rvg/wheels/vggt/vggt", "dinov2/dinov2"):
        (tmp_path / package).mkdir(parents=True)
    return found


def refusal(monkeypatch, capsys, command, arguments) -> str:
    """What is said of a wrong command line."""
    monkeypatch.setattr(sys, "argv", ["command", *(str(part) for pair in arguments.items() for part in pair)])
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    return str(capsys.readouterr().err)


@pytest.mark.parametrize("command", [parity.main, reconviagen.main])
@pytest.mark.parametrize("lacks", ["trellis", "wheels/vggt/vggt"])
def test_a_folder_that_is_no_checkout_is_refused(monkeypatch, capsys, checkouts, command, lacks):
    (checkouts["--upstream"] / lacks).rmdir()
    assert f"no {Path(lacks).name} in" in refusal(monkeypatch, capsys, command, checkouts)


@pytest.mark.parametrize("command", [parity.main, reconviagen.main])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(monkeypatch, capsys, checkouts, command):
    checkouts["--json"] = checkouts["--dinov2"] / "nowhere" / "figures.json"
    assert "nowhere" in refusal(monkeypatch, capsys, command, checkouts)


@pytest.mark.parametrize("argument", ["--repeats", "--views"])
@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_what_cannot_be_counted_is_refused(monkeypatch, capsys, checkouts, argument, number):
    given = checkouts | {argument: number}
    assert argument in refusal(monkeypatch, capsys, reconviagen.main, given)


@pytest.mark.parametrize("ours", [{}, {"tokens": torch.ones(1), "more": torch.ones(1)}])
@pytest.mark.parametrize("theirs", [{}, {"tokens": torch.ones(1)}])
def test_outputs_that_only_one_side_has_are_no_agreement(ours, theirs):
    pair = Dinov2(Upstream(torch.device("cpu"), StandIns(cuda=False)), "mini")
    with pytest.raises(ValueError, match="dinov2: ours gives"):
        _rows(pair, "float32", ours, theirs, None)
