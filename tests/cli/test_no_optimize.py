"""--no-optimize: networks stay plain torch, and draw the same picture up to rounding."""

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command
from txt2img.models.optimize import cpu


def test_the_picture_is_the_same_up_to_rounding(
    draw: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[cpu.Fast] = []
    init = cpu.Fast.__init__

    def noted(self: cpu.Fast, *arguments: object) -> None:
        made.append(self)
        init(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu.Fast, "__init__", noted)
    assert draw("a cat", "--seed", "1", "-o", "plain.png", "--no-optimize").code == 0
    assert not made
    assert draw("a cat", "--seed", "1", "-o", "fast.png").code == 0
    assert made
    plain, fast = (np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("plain", "fast"))
    assert abs(plain - fast).max() <= 1


def test_it_excludes_compiling(command: Command) -> None:
    outcome = command("a cat", "--no-optimize", "--compile")
    assert outcome.code == 2
    assert "exclude each other" in outcome.err
