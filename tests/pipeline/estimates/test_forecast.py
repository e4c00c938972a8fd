"""What a run would draw and how, against what is then loaded."""

from dataclasses import replace
from pathlib import Path

import pytest

from txt2img.errors import BadRequest, ModelNotFound
from txt2img.models.tokenizer import token_counts
from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.forecast import Forecast, forecast_for
from txt2img.pipeline.estimates.history import Speed
from txt2img.request import Compat, Request
from txt2img.request.compat import rules
from txt2img.request.lint import truncation_warnings
from txt2img.request.resolve import AdapterPaths
from txt2img.weights.model import Model


@pytest.fixture
def forecast(sd1_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    """That of the tiny model, before any run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return forecast_for(str(sd1_folder), AdapterPaths(), "cpu", None)


def test_it_is_what_is_loaded(forecast: Forecast, sd1_model: Model) -> None:
    assert forecast.checkpoint.family == sd1_model.family
    assert forecast.hash == sd1_model.hash  # for it was reckoned when that was loaded
    networks = (sd1_model.network, sd1_model.vae, sd1_model.text)
    assert forecast.weights == sum(p.nbytes for n in networks for p in n.parameters())
    assert forecast.dtype == "float32"


def test_half_precision_takes_half_the_memory(forecast: Forecast, sd1_folder: Path) -> None:
    half = forecast_for(str(sd1_folder), AdapterPaths(), "cpu", "fp16")
    assert (half.dtype, half.weights * 2) == ("float16", forecast.weights)


def test_with_low_memory_the_largest_part_counts_as_it_is_stored(sd1_folder: Path) -> None:
    def sizes(component: str) -> int:
        part = forecast_for(str(sd1_folder), AdapterPaths(), "cpu", None).checkpoint.components[
            component
        ]
        return sum(stored.nbytes for stored in part.tensors.values())

    low = forecast_for(str(sd1_folder), AdapterPaths(), "cpu", None, low=True)
    assert low.weights == max(map(sizes, low.checkpoint.components))
    narrow = forecast_for(str(sd1_folder), AdapterPaths(), "cpu", "fp16", low=True)
    assert narrow.weights == low.weights / 2


def test_tensors_are_weighed_once_for_all_pictures(
    forecast: Forecast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each for every line of a prompt file."""
    request = forecast.filled(Request("", width=64, height=64, steps=2))
    first = forecast.peak(request)
    monkeypatch.delattr(Forecast, "_size")
    assert forecast.peak(request) == first
    assert forecast.peak(replace(request, width=128)).bytes > first.bytes
    assert forecast.memory(request, 1) == forecast.weights


def test_tokens_are_those_that_the_text_encoder_sees(forecast: Forecast, sd1_model: Model) -> None:
    prompt = "a red apple, " * 40 + "BREAK a cat"
    request = Request(prompt, negative="blurry", steps=4)
    counted = token_counts(forecast.tokenizers, request, rules(request))
    tokenizer, reading = sd1_model.text.encoders[0].tokenizer, rules(request).prompt
    seen = [
        chunk.ids.index(tokenizer.eos_id) - 1
        for chunk in tokenizer.weighted_chunks(prompt, reading)
    ]
    assert counted["prompt"] == seen and len(seen) >= 3
    assert counted["negative"] == [len(tokenizer.tokens("blurry"))]


def test_of_a_changing_prompt_the_longest_text_counts(forecast: Forecast) -> None:
    def count(prompt: str) -> list[int]:
        request = Request(prompt, steps=10)
        return token_counts(forecast.tokenizers, request, rules(request))["prompt"]

    assert count("[a:a a a:0.5]") == count("a a a") == count("a AND a a a :0.5 AND a a")
    assert count("") == [0]


def test_a_prompt_that_is_cut_is_told(forecast: Forecast) -> None:
    request = Request("a " * 90, compat=Compat.DIFFUSERS)
    counts = token_counts(forecast.tokenizers, request, rules(request))
    first, total = counts["prompt"][0], sum(counts["prompt"])
    assert truncation_warnings(counts, request, rules(request)) == [
        f"prompt: {total} tokens; all but the first {first} are left out by diffusers's rules"
    ]
    whole = Request("a " * 90)
    counts = token_counts(forecast.tokenizers, whole, rules(whole))
    assert truncation_warnings(counts, whole, rules(whole)) == []


def test_what_the_model_cannot_draw_is_refused(forecast: Forecast) -> None:
    filled = forecast.filled(Request(""))
    assert None not in (filled.width, filled.steps, filled.cfg, filled.sampler)
    wide = replace(forecast.checkpoint.family.vae, channels=(32,) * 5)  # 16 pixels a cell
    family = replace(forecast.checkpoint.family, vae=wide)
    other = replace(forecast, checkpoint=replace(forecast.checkpoint, family=family))
    with pytest.raises(BadRequest, match="multiple of 16, got 72"):
        other.filled(Request("", width=72))


def test_time_and_memory_are_those_of_runs_before(forecast: Forecast, sd1_folder: Path) -> None:
    request = forecast.filled(Request("", width=64, height=64, steps=2))
    assert forecast.seconds(request) is None
    assert forecast.memory(request, 1) == forecast.weights
    name, count = forecast.checkpoint.family.name, forecast.parameters["unet"]
    key = history.key(name, count, "cpu", "float32")
    history.record(key, Speed(per_evaluation=10.0, other=1.0, base=1000.0, memory=1e6))
    again = forecast_for(str(sd1_folder), AdapterPaths(), "cpu", None)
    size = 64 * 64 / 1e6
    assert again.seconds(request) == pytest.approx(size * (10 * 4 + 1))
    assert again.memory(request, 3) == round(again.weights + 1000 + 3 * size * 1e6)

    merged = replace(request, token_merging=0.5)
    assert again.seconds(merged) == again.seconds(request)
    history.record(
        history.key(name, count, "cpu", "float32", 0.5), Speed(per_evaluation=6.0, other=1.0)
    )
    known = forecast_for(str(sd1_folder), AdapterPaths(), "cpu", None)
    assert known.seconds(merged) == pytest.approx(size * (6 * 4 + 1))
    assert known.seconds(request) == again.seconds(request)


def test_files_that_are_not_there_are_named(sd1_folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="no VAE"):
        forecast_for(str(sd1_folder), AdapterPaths(vae="nowhere"), None, None)
    with pytest.raises(ModelNotFound, match="no model"):
        forecast_for("nowhere", AdapterPaths(), None, None)
