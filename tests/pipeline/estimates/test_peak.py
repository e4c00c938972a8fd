"""A dry run tells what comes block by block, its peak, and a limit that is too small."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.support import published
from tests.weights.test_published import hollow
from txt2img.errors import BadRequest
from txt2img.pipeline.estimates.forecast import Forecast, forecast_for
from txt2img.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system import resources

GB = 10**9


@pytest.fixture
def sdxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    monkeypatch.setattr(resources, "available", lambda: 64 * GB)  # other tests take some
    path = hollow(tmp_path / "sdxl.safetensors", published.file_keys("sdxl"))
    return forecast_for(str(path), AdapterPaths(), "cpu", "fp16")


def test_a_limit_is_kept_by_parts_then_by_blocks(sdxl: Forecast) -> None:
    request = sdxl.filled(Request("a", width=512, height=512))
    modes = {}
    for limit in (9, 7, 2):
        peak = replace(sdxl, offload="auto", max_memory=limit * GB).peak(request)
        modes[limit] = peak.mode
        assert peak.bytes <= limit * GB and peak.least < 2 * GB
        peak.check()
    assert modes == {9: "none", 7: "model", 2: "sequential"}
    told = list(replace(sdxl, offload="auto", max_memory=2 * GB).peak(request).lines)
    assert told[0].startswith("Offload: the network") and told[1].startswith("unet: ")


def test_a_limit_that_is_too_small_is_refused(sdxl: Forecast) -> None:
    request = sdxl.filled(Request("a"))
    small = replace(sdxl, offload="auto", max_memory=GB // 2)
    with pytest.raises(BadRequest, match=r"--max-memory 500 MB is too little.*the least"):
        small.peak(request).check()


def test_filters_are_widened_without_optimisations(sdxl: Forecast) -> None:
    wide = forecast_for(str(sdxl.path), AdapterPaths(), "cpu", "float32")
    assert replace(wide, optimize=False).weights > wide.weights
    count = sum(wide.parameters.values())
    assert replace(wide, optimize=False).weights == 4 * count


def test_the_command_tells_it(command: Command, sd1_folder: Path) -> None:
    model = ("a", "--model", str(sd1_folder), "--width", "64", "--height", "64", "--dry-run")
    told = command(*model, "--offload", "sequential").err
    assert "Offload: the network comes from its file block by block" in told
    assert "unet: " in told and "of memory at the peak" in told
    assert "Offload" not in command(*model).err
    refused = command(*model, "--max-memory", "lots")
    assert refused.code == 2 and '--max-memory "lots" is no size' in refused.err
    both = command(*model, "--max-memory", "1GB", "--offload", "none")
    assert both.code == 2 and "exclude each other" in both.err
    assert "block by block" in command("info", str(sd1_folder)).out
