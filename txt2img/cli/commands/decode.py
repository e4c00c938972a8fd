"""txt2img decode: decode latents that were saved, or left by a run that was stopped."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli import distributed
from txt2img.cli.options.adapters import VAE, AdapterOptions
from txt2img.cli.options.device import DeviceName, DeviceOptions, Dtype
from txt2img.cli.options.input import ImageDirs, image_places
from txt2img.cli.options.output import Json, OutputName, Overwrite, Quiet
from txt2img.cli.options.picture import ModelName
from txt2img.cli.provenance import require_model
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import print_json, print_path, progress
from txt2img.cli.terminal.results import print_file_error
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import formats, image_file, output
from txt2img.images.formats import PNG
from txt2img.images.output import Output
from txt2img.system import launcher
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.pipeline.latent_store import Latent
    from txt2img.weights.model import Model

EPILOG = """
\b
Examples:
  txt2img decode .txt2img-*.latent
  txt2img decode x-1.latent --model models/sd15.safetensors -o again.png
"""
Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Latents that a run has saved.")]


def decode(
    files: Files,
    model: ModelName = None,
    vae: VAE = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    image_dir: ImageDirs = None,
    out: OutputName = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode saved latents to pictures; those of stopped runs are then removed. Prints paths."""
    code = 0
    models: dict[str, Model] = {}
    library = replace(AdapterOptions(vae=vae).library(), images=image_places(image_dir))
    with progress(not quiet, "loading") as bar:
        for i, name in launcher.current().shard(enumerate(files)):
            bar.advance("decoding", i, len(files), f"{i + 1}/{len(files)}")
            try:
                latent = read_latent(Path(name), model, vae)
                library.images.beside[:] = [Path(name).parent]
                key = model or latent.request.model
                models[key] = models.get(key) or DeviceOptions(device, dtype).load_model(
                    key, library
                )
                target = output_of(name, out, overwrite, len(files) > 1)
                path = write_picture(Path(name), latent, models[key], target, i + 1)
            except Txt2imgError as error:
                with bar.paused():
                    print_file_error(name, error, json)
                code = code or error.exit_code
                continue
            with bar.paused():
                if json:
                    print_json({"file": name, "path": str(path), "step": latent.step})
                else:
                    print_path(path)
    if code := distributed.gather_results(code, None)[0]:
        raise typer.Exit(code)


def read_latent(path: Path, model: str | None, vae: str | None) -> "Latent":
    """A saved latent, if the model and VAE that decode it are known. BadFile, BadRequest."""
    from txt2img.pipeline.latent_store import read

    latent = read(path)
    require_model(path, latent.request, model)
    if vae is None and latent.request.vae is not None:
        name = shown(latent.request.vae.name)
        raise BadRequest(f"{shown(path)} was drawn with the VAE {name}; give its --vae")
    return latent


def output_of(name: str, out: str | None, overwrite: bool, several: bool) -> Output:
    """Where a latent's picture goes: to --output, or next to the latent. BadRequest."""
    if out is not None:
        return output.parse(out, several, overwrite)
    return Output(Path(name).parent, "", overwrite=overwrite)


def write_picture(path: Path, latent: "Latent", model: "Model", target: Output, index: int) -> Path:
    """Decode a latent, the `index`-th, and write its picture. Returns its path. Txt2imgError."""
    from txt2img.pipeline import generate
    from txt2img.weights.apply_adapters import resolve_upscaler
    from txt2img.weights.model import device_of, origin

    request = latent.request
    if tuple(latent.x.shape) not in generate.latent_shapes(model, request):
        raise BadFile(f"{shown(path)} has another shape than this model's latents")
    name = target.name(request, index) if target.pattern else latent.name
    form = formats.by_suffix(name) or PNG
    formats.check_writable(form)
    x = latent.x[None].to(device_of(model))
    if latent.finished:
        [picture] = generate.finished_images(model, x, [resolve_upscaler(model, request)])
        now = origin(model)
        then = latent.origin
        same_model = (then.hash, then.config or now.config) == (now.hash, now.config)
        by = then if same_model else now
        data = image_file.encode(picture, request, by, latent.first_seed, form)
    else:
        [picture] = generate.decode(model, x, request)
        # Not the record of its request, or --resume would take it for the finished picture.
        step = f"step {latent.step} of {latent.steps}, seed {request.seed}: {request.prompt}"
        data = image_file.encode_texts(picture, {"Comment": step}, form)
        if not target.pattern:
            name = f"{Path(name).stem}-step{latent.step}{Path(name).suffix}"
    with target:
        picture_path = target.write_as(data, name)
    if path.name.startswith(".txt2img-"):
        path.unlink(missing_ok=True)
    return picture_path


COMMAND: Command = decode, EPILOG
