"""ControlNets in a run: their hints, weights, caches and fallbacks."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import tiny, tiny_control
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import MissingWeights
from txt2img.images.hint import hint_pixels
from txt2img.models.optimize.cuda_graph import CudaGraphed
from txt2img.pipeline import control as pipeline_control
from txt2img.pipeline.generate import sample
from txt2img.request import Request
from txt2img.request.compat import rules
from txt2img.request.control import ControlMode
from txt2img.request.interval import Interval
from txt2img.system.device.device import Device
from txt2img.system.device.offload import Placement
from txt2img.weights import control as weights_control
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.control import control_networks
from txt2img.weights.load import load
from txt2img.weights.model import Model
from txt2img.weights.refiner import add_refiner

CPU = Device(torch.device("cpu"), torch.float32)


@cache
def ours() -> Model:
    return load(str(tiny.sd1().folder), CPU)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hint") / "hint.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def filled(picture: Path, model: Model | None = None, use: str = "", **more: object) -> Request:
    """A request with a ControlNet, resolved for a model."""
    model = model or ours()
    control = f"{tiny_control.control('sd1').file}:{picture}{use}"
    values = {"width": 64, "height": 64, "steps": 4, "seed": 5, "controls": [control], **more}
    request = Request("a red apple", "blurry", "m").with_json(values)
    return resolve_adapters(model, request).filled(model.family.defaults)


def drawn(request: Request, model: Model | None = None) -> Tensor:
    *_, last = sample(model or ours(), [request])
    return last.x


def off(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


def test_prompt_mode_lets_the_outer_residuals_count_less(picture: Path) -> None:
    request = filled(picture, use=":2", control_mode="prompt")
    controls = pipeline_control.controls_of(ours(), request, rules(request), [])
    assert controls is not None
    [use] = controls.uses
    # A1111's list for SD 1, from hook.py, of which the last is the middle's.
    soft = [0.09941396206337118, 0.12050177219802567, 0.14606275417942507, 0.17704576264172736]
    soft += [0.214600924414215, 0.26012233262329093, 0.3152997971191405, 0.3821815722656249]
    soft += [0.4632503906249999, 0.561515625, 0.6806249999999999, 0.825, 1.0]
    assert use.weights(13) == pytest.approx([2 * one for one in soft])
    use.mode = ControlMode.CONTROL
    assert use.weights(3) == pytest.approx([0.2, 2 * 10**-0.5, 2.0])
    use.mode = ControlMode.BALANCED
    assert use.weights(2) == [2, 2]
    like_a1111 = filled(picture, use=":2", control_mode="control", compat="a1111")
    controls = pipeline_control.controls_of(ours(), like_a1111, rules(like_a1111), [])
    assert controls is not None and controls.uses[0].spares_negatives
    assert controls.uses[0].weights(13) == pytest.approx([2 * one for one in soft])


def test_an_interval_is_of_whole_steps() -> None:
    on = [[Interval(low, high).has_step(step, 4) for step in range(4)] for low, high in
          ((0.0, 1.0), (0.0, 0.5), (0.3, 1.0), (0.0, 0.6))]  # fmt: skip
    assert on == [[True] * 4, [True, True, False, False], [False, False, True, True],
                  [True, True, False, False]]  # fmt: skip


def test_a_batch_has_the_bits_of_each_picture_alone(picture: Path) -> None:
    first, second = filled(picture), filled(picture, seed=6)
    *_, both = sample(ours(), [first, second])
    assert torch.equal(both.x, torch.cat([drawn(first), drawn(second)]))


@pytest.mark.parametrize(("mode", "expected"), [(None, [1] * 8), ("control", [1] * 4)])
def test_texts_of_unlike_lengths_go_one_after_the_other(
    mode: str | None, expected: list[int], picture: Path
) -> None:
    """Without padding; in control's mode the negative's pass has no ControlNet at all."""
    request = filled(picture, control_mode=mode, compat="comfyui", negative="x " * 100)
    rows: list[int] = []
    [network] = control_networks(ours(), request.controls)
    hook = network.register_forward_hook(lambda m, inputs, out: rows.append(len(inputs[2].tokens)))
    drawn(request)
    hook.remove()
    assert rows == expected


def test_deepcache_computes_the_first_residual_alone_where_features_are_reused(
    picture: Path,
) -> None:
    request = filled(picture, reuse=2)
    [network] = control_networks(ours(), request.controls)
    counts: list[int] = []
    hook = network.register_forward_hook(lambda m, inputs, out: counts.append(len(out)))
    cached = drawn(request)
    hook.remove()
    assert counts == [len(network.controlnet_down_blocks) + 1, 1] * 2
    exact = drawn(request.changed(reuse=1))
    assert 0 < off(cached, exact) < off(drawn(request.changed(controls=())), exact)


def test_a_second_pass_sees_the_hint_at_its_own_size(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def noting(*args: object) -> Image.Image:
        sizes.append((image := hint_pixels(*args)).size)  # type: ignore[arg-type]
        return image

    monkeypatch.setattr(pipeline_control, "hint_pixels", noting)
    drawn(filled(picture, hires=2.0))
    assert sizes == [(64, 64), (128, 128)]


def test_a_hint_comes_to_the_size_as_a_picture_does(picture: Path) -> None:
    request = filled(picture)
    paths = ours().adapters.paths.images
    with Image.open(picture) as image:
        whole = image.convert("RGB")
    [control] = request.controls
    cropped = hint_pixels(request, control, rules(request), paths)
    assert cropped.tobytes() == whole.crop((16, 0, 80, 64)).tobytes()
    stretched = filled(picture, resize="stretch")
    lanczos = whole.resize((64, 64), Image.Resampling.LANCZOS)
    assert hint_pixels(stretched, control, rules(request), paths).tobytes() == lanczos.tobytes()


def test_where_a_part_is_drawn_the_hint_is_of_that_part(picture: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (40, 10, 60, 40))
    mask.save(tmp_path / "mask.png")
    request = filled(
        picture, image=str(picture), mask=str(tmp_path / "mask.png"), only_masked=0, mask_blur=0
    )
    with Image.open(picture) as image:
        part = image.convert("RGB").crop((35, 10, 65, 40))
    [control] = request.controls
    got = hint_pixels(request, control, rules(request), ours().adapters.paths.images)
    assert got.tobytes() == part.resize((64, 64), Image.Resampling.LANCZOS).tobytes()


def test_the_refiner_draws_without_it(picture: Path) -> None:
    model = load(str(tiny.sd1().folder), CPU)
    add_refiner(model, str(tiny.sd1().folder), CPU)
    request = filled(picture, model, refiner_switch=0.5)
    [network] = control_networks(model, request.controls)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    drawn(request, model)
    assert len(calls) == 2  # of four steps


def test_a_recorded_network_takes_residuals_beside_references() -> None:
    network = ours().network
    recorded = CudaGraphed(network, print, lambda work: (lambda: None, work()))
    torch.manual_seed(0)
    x, time, tokens = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(2, 77, 32)
    with torch.inference_mode():
        [control] = control_networks(ours(), ours_request().controls)
        hint = control.embed_hint(torch.rand(1, 3, 32, 32))
        cond = Cond(tokens)
        residuals = tuple(control(x, time, cond, hint))
        with_them = Cond(tokens, residuals=residuals)
        assert torch.equal(recorded(x, time, with_them), network(x, time, with_them))
        assert torch.equal(recorded(x, time, cond), network(x, time, cond))
        assert off(network(x, time, cond), network(x, time, with_them)) > 1e-3


def ours_request() -> Request:
    path = Path(tiny._ROOT.name) / "any.png"
    Image.new("RGB", (64, 64), (9, 99, 199)).save(path)
    return filled(path)


def test_networks_stay_for_the_next_command_and_the_oldest_go(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_control, "KEPT", 1)
    model = load(str(tiny.sd1().folder), CPU)
    files = [tiny_control.control("sd1", seed).file for seed in (0, 1, 2)]
    requests = [
        resolve_adapters(model, Request("x", "", "m").with_json({"controls": f"{file}:{picture}"}))
        for file in files
    ]
    first = [control_networks(model, request.controls)[0] for request in requests]
    assert [*model.controls.values()] == first[1:]
    assert control_networks(model, requests[2].controls) == [first[2]]
    assert control_networks(model, requests[0].controls) != [first[0]]  # read again


@pytest.mark.parametrize("name", ["sd1", "lora"])
def test_low_memory_draws_the_same(name: str, picture: Path) -> None:
    model = tiny.sd1() if name == "sd1" else tiny_control.MODELS["xl"]()
    file = tiny_control.control("sd1").file if name == "sd1" else tiny_control.lora()[1]
    plain = load(str(model.folder), CPU)
    low = load(str(model.folder), Device(CPU.torch_device, CPU.dtype, low=True))
    low.memory.placement = low.memory.placement or Placement()
    uses = {"controls": f"{file}:{picture}"}
    one = drawn(filled(picture, plain, **uses), plain)
    assert off(drawn(filled(picture, low, **uses), low), one) < 1e-4


def test_the_networks_own_weights_are_as_before_after_a_run(picture: Path) -> None:
    before = {name: value.clone() for name, value in ours().network.state_dict().items()}
    plain = drawn(filled(picture).changed(controls=()))
    drawn(filled(picture))
    assert torch.equal(drawn(filled(picture).changed(controls=())), plain)
    assert all(torch.equal(before[n], v) for n, v in ours().network.state_dict().items())


def test_a_hint_is_embedded_once_a_picture(picture: Path) -> None:
    request = filled(picture, use=":1:0..0.5")
    [network] = control_networks(ours(), request.controls)
    calls: list[nn.Module] = []
    hook = network.controlnet_cond_embedding.register_forward_hook(lambda m, *_: calls.append(m))
    drawn(request)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["input_blocks.1.0.in_layers.2", "time_embed.0", "nowhere"])
def test_a_control_lora_whose_changes_fit_nowhere_is_told(
    name: str, picture: Path, tmp_path: Path
) -> None:
    stored = load_file(tiny_control.lora()[1])
    stored |= {f"{name}.up": torch.zeros(7, 3), f"{name}.down": torch.zeros(3, 5)}
    save_file(stored, tmp_path / "broken.safetensors")
    model = load(str(tiny_control.MODELS["xl"]().folder), CPU)
    request = Request("x", "", "m").with_json(
        {"controls": f"{tmp_path}/broken.safetensors:{picture}"}
    )
    request = resolve_adapters(model, request)
    with pytest.raises(MissingWeights, match=r"broken.safetensors: .*fit no layer"):
        control_networks(model, request.controls)
