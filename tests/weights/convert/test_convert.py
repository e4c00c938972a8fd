"""Weights are converted to every type, checked, drawn with; nothing is left of what fails."""

import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from safetensors.torch import load_file, save_file

from tests.conftest import Command
from tests.support import tiny, tiny_text
from tests.weights.convert.test_layouts import MODELS, converted
from tests.weights.test_gguf_models import CPU, SIZE, a_pass, loaded, tiny_files
from tests.weights.test_gguf_texts import wide_qwen3
from tests.weights.test_text_loading import states
from txt2img.errors import BadFile, BadOutput, BadRequest
from txt2img.request.resolve import ComponentOverrides
from txt2img.weights.convert import convert as converting
from txt2img.weights.convert.convert import plan
from txt2img.weights.formats import safetensors_file
from txt2img.weights.layouts import detect
from txt2img.weights.load import load

FAMILIES = ("flux_dev", "sd3", "z_image", "flux2_klein")
# The largest error of a layer of normally distributed weights, by bits.
TYPES = {
    "fp32": 0.0,
    "bf16": 4e-3,
    "fp16": 5e-4,
    "int8": 0.012,
    "fp8": 0.05,
    "gguf:Q8_0": 0.01,
    "gguf:Q6_K": 0.025,
    "gguf:Q5_K": 0.05,
    "gguf:Q4_K": 0.1,
    "gguf:Q4_0": 0.12,
    "gguf:F16": 5e-4,
}


def out_name(to: str) -> str:
    return "out.gguf" if to.startswith("gguf") else "out.safetensors"


@pytest.mark.parametrize("to", TYPES)
def test_every_type_has_the_error_of_its_bits(tmp_path: Path, to: str) -> None:
    """The error that is told is that of the weights that are loaded; metadata goes along."""
    files = tiny_files("flux_dev")
    source, out = tmp_path / "in.safetensors", tmp_path / out_name(to)
    save_file(load_file(files.network), source, {"modelspec.title": "A title", "format": "pt"})
    report = converted(source, out, to=to)
    assert report.worst[1] <= TYPES[to]
    header = safetensors_file.header(out)
    assert header.metadata["modelspec.title"] == "A title"
    wide = {ref.dtype for name, ref in header.tensors.items() if re.match("img_in|final", name)}
    assert wide == ({"F32"} if TYPES[to] > 4e-3 or "gguf" in to else {header_dtype(to)})
    exact, made = loaded(files, source), loaded(files, out)
    error = (a_pass(made) - a_pass(exact)).norm() / a_pass(exact).norm()
    assert error <= 8 * TYPES[to]
    assert bool(error) == bool(TYPES[to])


def header_dtype(to: str) -> str:
    return {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}[to]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("to", ["gguf:Q8_0", "int8"])
def test_every_family_is_converted_from_its_folder(tmp_path: Path, name: str, to: str) -> None:
    """To the network alone, whose layers are fused as in other programs' files."""
    files = tiny_files(name)
    out = tmp_path / out_name(to)
    converted(files.folder, out, to=to, layout="network")
    exact, made = a_pass(loaded(files, files.network)), a_pass(loaded(files, out))
    assert (made - exact).norm() / exact.norm() < 0.06
    assert set(safetensors_file.header(out).tensors) == set(load_file(files.network))


def test_gguf_files_are_what_the_package_reads(tmp_path: Path) -> None:
    """A U-Net's filters too, in rows of blocks."""
    model = tiny.sd1()
    out = tmp_path / "unet.gguf"
    report = converted(model.file, out, to="gguf:Q5_0")
    reader = GGUFReader(out)
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"sd1"
    source, kinds = load_file(model.file), set()
    for one in reader.tensors:
        expected = source[f"model.diffusion_model.{one.name}"]
        values = torch.from_numpy(dequantize(one.data, one.tensor_type).copy())
        kinds.add(one.tensor_type.name)
        error = (values.flatten() - expected.flatten()).norm() / expected.norm()
        assert error == pytest.approx(report.errors[one.name], abs=1e-6)
    assert kinds == {"Q5_0", "F32"} and len(reader.tensors) == len(report.errors)
    exact, made = (
        load(str(model.file), CPU, overrides=ComponentOverrides(unet)) for unet in (None, str(out))
    )
    assert (a_pass(made) - a_pass(exact)).norm() / a_pass(exact).norm() < 0.2


def test_what_is_quantised_becomes_wide_again(tmp_path: Path) -> None:
    """From GGUF and from ComfyUI's int8, with the values that they have."""
    files = tiny_files("z_image")
    for to, narrow in (("gguf:Q8_0", "a.gguf"), ("int8", "a.safetensors")):
        converted(files.network, tmp_path / narrow, to=to)
        back = tmp_path / f"{narrow}-back.safetensors"
        assert converted(tmp_path / narrow, back, to="fp32").worst[1] == 0.0
        assert {ref.dtype for ref in safetensors_file.header(back).tensors.values()} == {"F32"}
        ours, expected = (a_pass(loaded(files, path)) for path in (back, tmp_path / narrow))
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


# Targets in the layout that people use them in, and what `info` calls each family: Stable
# Diffusion is told by its sizes, which the tiny ones have not.
CHAINS = (
    *(("gguf:Q8_0", "network"), ("gguf:Q4_K", "network"), ("int8", "single"), ("fp8", "single")),
    *(("bf16", "single"), ("fp16", "diffusers"), ("int8", "network")),
)
CALLED = {
    "sd1": "latent diffusion",
    "sd2": "latent diffusion",
    "xl": "latent diffusion",
    "flux": "FLUX.1",
    "sd3": "Stable Diffusion 3",
    "z_image": "Z-Image",
    "flux2": "FLUX.2",
}
UNETS = "sd1", "sd2", "xl"
QUICK = dict(zip(CALLED, CHAINS, strict=True)) | {"flux": ("gguf:Q4_K", "network")}


def parts_of(name: str, out: str) -> tuple[str, ...]:
    """The options that draw with a network alone, in a file `out`."""
    if name in UNETS:
        return ("--model", str(MODELS[name]()[0]), "--unet", out)
    files = tiny_files({"flux": "flux_dev", "flux2": "flux2_klein"}.get(name, name))
    texts = [part for path in files.texts for part in ("--text-encoder", str(path))]
    return ("--model", out, *texts, "--vae", str(files.vae))


@pytest.mark.parametrize(
    ("name", "to", "layout"),
    [
        pytest.param(name, *chain, marks=[pytest.mark.slow] * (chain != QUICK[name]))
        for name in CALLED
        for chain in CHAINS
    ],
)
def test_convert_info_draw_verify(
    command: Command, name: str, to: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "OPEN_CLIP_USED", 3)  # layers of the tiny Stable Diffusion 2's
    folder, file = MODELS[name]()
    source = folder if layout == "single" else file
    out = "out" if layout == "diffusers" else out_name(to)
    done = command("models", "convert", str(source), out, "--to", to, "--layout", layout)
    assert done.code == 0, done.err
    assert done.out.strip() == out and "largest relative error" in done.err
    told = command("info", out)
    called = CALLED[name]
    if layout == "network" and name in UNETS:
        called = "a U-Net"
    assert told.code == 0 and called in told.out, told.out + told.err
    assert ("bits a weight" in told.out) == (to not in ("bf16", "fp16"))
    options = parts_of(name, out) if layout == "network" else ("--model", out)
    drawn = command("a", *options, *SIZE, "-o", "x.png")
    assert drawn.code == 0, drawn.err
    verified = command("verify", "x.png", *options)
    assert verified.code == 0 and "identical" in verified.out, verified.out + verified.err


@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_whole_checkpoints_of_unets_are_converted(tmp_path: Path, to: str) -> None:
    """With text encoders by OpenCLIP's names, whose fused layers stay wide."""
    file = (tiny.sd2() if to == "int8" else tiny.sd1()).file
    assert 0 < converted(file, tmp_path / file.name, to=to).worst[1] < 2 * TYPES[to]
    exact, made = load(str(file), CPU), load(str(tmp_path / file.name), CPU)
    assert made.checkpoint is not None and "unet:" in made.checkpoint.quantized
    assert (a_pass(made) - a_pass(exact)).norm() / a_pass(exact).norm() < 0.1


def test_folders_keep_their_other_files(tmp_path: Path) -> None:
    files = tiny_files("z_image")
    converted(files.folder, tmp_path / "made", to="bf16")
    theirs, ours = (
        {
            str(one.relative_to(root))
            for root_ in (root,)
            for one in root_.rglob("*")
            if one.is_file()
        }
        for root in (files.folder, tmp_path / "made")
    )
    assert ours == theirs
    assert load(str(tmp_path / "made"), CPU).family == load(str(files.folder), CPU).family


def test_a_folder_that_diffusers_cannot_read_is_told(tmp_path: Path) -> None:
    source = str(tiny_files("z_image").folder)
    for to, told in (("int8", True), ("fp8", True), ("bf16", False), (None, False)):
        notes = plan(source, tmp_path / "made", to).notes
        assert any("this one is for txt2img" in note for note in notes) == told


REFUSED = {
    "another type": (("x.gguf", "--to", "gguf:Q9"), 2, "no|choose from|mean"),
    "GGUF without a type": (("x.gguf",), 2, "ends in .gguf: say --to gguf:Q8_0"),
    "GGUF by another name": (("x.safetensors", "--to", "gguf:Q8_0"), 2, "must end in .gguf"),
    "a folder's name": (("x.safetensors", "--layout", "diffusers"), 2, "makes a folder"),
    "a pickle": (("x.ckpt",), 2, "no pickles are written"),
    "a file's name": (("x", "--layout", "single"), 2, "must end in .safetensors"),
    "another layout": (("x", "--layout", "kohya"), 2, "choose from diffusers, single, network"),
    "what is there": (("there.safetensors",), 1, "exists already; choose another name"),
    "no folder": (("nowhere/x.safetensors",), 1, "no such file"),
}


@pytest.mark.parametrize(("words", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_one_line(
    command: Command, words: tuple[str, ...], code: int, message: str
) -> None:
    Path("there.safetensors").write_bytes(b"kept")
    done = command("models", "convert", str(tiny_files("flux_dev").network), *words)
    assert done.code == code and re.search(message, done.err) and "Traceback" not in done.err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["there.safetensors"]
    assert Path("there.safetensors").read_bytes() == b"kept"


def test_a_tokenizer_of_its_own_keeps_a_model_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is its own, which a single file does not carry"):
        plan(str(tiny.own()), tmp_path / "x.safetensors")
    assert converted(tiny.own(), tmp_path / "made", to="fp16").worst[1] < 1e-3
    assert load(str(tmp_path / "made"), CPU).family == load(str(tiny.own()), CPU).family


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadOutput, match=r"takes .* of the disk are free"):
        converted(tiny_files("flux_dev").network, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["bf16", "gguf:Q8_0"])
def test_what_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Values that do not fit, a wrong byte on the disk, an interruption."""
    source = tmp_path / "in" / "a.safetensors"
    source.parent.mkdir()
    network = load_file(tiny_files("flux_dev").network)
    save_file(network | {"img_in.bias": torch.full((128,), 1e6)}, source)
    if to == "bf16":
        with pytest.raises(BadFile, match=r'"img_in.bias" is too large for .*; use --to bf16'):
            converted(source, tmp_path / "out.safetensors", to="fp16")
    out = tmp_path / out_name(to)
    for step in converting.convert(plan(str(source), out, to), converting.Report()):
        if step.done > step.total // 2:
            break
    monkeypatch.setattr(converting, "_error", lambda *_: 0.7)
    with pytest.raises(BadOutput, match=r"was written wrong: its error is 0\.7"):
        converted(source, out, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_text_encoders_get_llama_cpps_names(tmp_path: Path) -> None:
    """T5's and Qwen3's, which give nearly the same tokens; CLIP has none."""
    for kind, model in (("t5", tiny_text.t5()), ("qwen3", wide_qwen3())):
        source, out = tmp_path / f"{kind}.safetensors", tmp_path / f"{kind}.gguf"
        save_file(tiny_text.tensors_of(model), source)
        assert 0 < converted(source, out, to="gguf:Q8_0").worst[1] < 0.01
        arch = {"t5": MODEL_ARCH.T5ENCODER, "qwen3": MODEL_ARCH.QWEN3}[kind]
        names = get_tensor_name_map(arch, model.config.num_hidden_layers)
        for name in tiny_text.tensors_of(model):
            theirs = names.get_name(name, try_suffixes=(".weight",))
            assert theirs in {one.name for one in GGUFReader(out).tensors}
        exact, _, _ = states(kind, source, low=False)
        ours, _, _ = states(kind, out, low=False)
        assert (ours - exact).norm() / exact.norm() < 0.03
    with pytest.raises(BadFile, match=r"no known layout|a text encoder alone|are made of networks"):
        plan(str(tiny_files("flux_dev").texts[0]), tmp_path / "x.gguf", "gguf:Q8_0")
    with pytest.raises(BadRequest, match="--to"):
        plan(str(tiny_files("flux_dev").network), tmp_path / "x.gguf", "gguf")


def test_memory_holds_one_tensor_and_each_is_planned_once(tmp_path: Path) -> None:
    """Of 40 of them, in a process of its own; whatever is told of each."""
    rows = {f"double_blocks.{i}.img_attn.proj.weight": torch.randn(512, 1024) for i in range(40)}
    save_file(rows, tmp_path / "in.safetensors")
    program = """
import gguf, resource, sys
from unittest.mock import patch
from pathlib import Path
from txt2img.weights.convert.convert import *
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
chosen = plan(sys.argv[1], Path(sys.argv[2]), "gguf:Q8_0")
with patch.object(Target, "planned", autospec=True, side_effect=Target.planned) as planned:
    for _ in convert(chosen, Report()): pass
print(peak() - before, planned.call_count)
"""
    line = [sys.executable, "-c", program, tmp_path / "in.safetensors", tmp_path / "out.gguf"]
    done = subprocess.run(line, capture_output=True, check=True)
    kilobytes, planned = map(int, done.stdout.split())
    assert kilobytes * 2**10 < 40 * 2**20 < 40 * 2**21
    assert planned <= 3 * len(rows)
    assert (tmp_path / "out.gguf").stat().st_size > 20 * 2**20
