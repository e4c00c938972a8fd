"""Distances mean_distance pictures, sharpness of copies, and what a picture costs."""

import sys
from pathlib import Path

import pytest
import torch

from txt2img.errors import BadFile
from txt2img.train.default_model import metrics
from txt2img.train.default_model.metrics import copy_quality, cost, novelty, spread, steepness
from txt2img.train.default_model.retrieval import blurred


def flat(*levels: float) -> torch.Tensor:
    """Pictures (N, 3, 16, 16), each of one level."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 16, 16)


def test_copies_are_measured_by_their_miss_and_their_edges() -> None:
    checks = (torch.arange(16) // 4 % 2 * 2.0 - 1.0).expand(1, 3, 16, 16)
    same = copy_quality(0.9 * checks, checks)
    assert same.db == pytest.approx(26.02)
    assert same.edges == pytest.approx(0.9)
    assert steepness(blurred(checks), checks) < 0.5
    assert steepness(0.5 * checks, checks) == pytest.approx(0.5)
    assert steepness(checks.flip(-1) * -1.0, checks) == pytest.approx(1.0)
    assert steepness(-checks, checks) == pytest.approx(-1.0)  # as steep the other way is no edge


def test_seeds_are_compared_within_a_caption_and_captions_within_a_seed() -> None:
    """Captions 0.0 and 0.8 apart; seed two is 0.2 above seed one."""
    found = spread(flat(0.0, 0.8, 0.2, 1.0), seeds=2)
    assert found is not None
    assert (found.seeds, found.captions) == (pytest.approx(0.2), pytest.approx(0.8))
    assert found.varied
    same = spread(flat(0.0, 0.8, 0.01, 0.81), seeds=2)
    assert same is not None and not same.varied
    assert spread(flat(0.0, 0.8), seeds=1) is None
    assert spread(flat(0.0, 0.8), seeds=2) is None


def test_new_scenes_are_measured_from_the_nearest_that_was_taught() -> None:
    found = novelty(flat(0.1, 0.5), flat(0.2, 0.4), flat(0.0, 0.4))
    assert found.drawn_to_taught == pytest.approx(0.1)
    assert found.true_to_taught == pytest.approx(0.1)
    assert found.drawn_to_true == pytest.approx(0.1)


def stub(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program in place of python -m txt2img; python -c is what it ever was."""
    script = folder / "python"
    real = sys.executable
    other = f"import os, sys\nif sys.argv[1] == '-c': os.execv({real!r}, [{real!r}, *sys.argv[1:]])"
    script.write_text(f"#!{real}\n{other}\n{body}\n", "utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(metrics.sys, "executable", str(script))


def test_a_cold_start_is_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = "print(sys.argv, file=open(sys.argv[0] + '.log', 'a')); x = bytearray(64 * 2**20)"
    stub(tmp_path, monkeypatch, held)
    found = cost("my-model", ["--steps", "5"])
    assert 64 < found.mib < 200  # not what this process has held, which is far more
    assert found.seconds > 0
    one, more = (tmp_path / "python.log").read_text("utf-8").splitlines()
    assert "'my-model'" in one and "'--steps', '5'" in one
    assert "'--count', '1'" in one and "'--count', '4'" in more


def test_a_model_that_does_not_draw_has_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, monkeypatch, "sys.exit(3)")
    with pytest.raises(BadFile, match="exit code 3"):
        cost("my-model", [])
