"""Forecast of a run: its model, time and memory; reads no weights, needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path

from txt2img.images.record import Origin
from txt2img.models.tokenizer import PromptTokenizer
from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.history import Speed
from txt2img.pipeline.estimates.peak import Peak, parts_of, peak_of
from txt2img.request.control import Control
from txt2img.request.fields import SIDES
from txt2img.request.hires import second_pass
from txt2img.request.ip_adapter import IPAdapterUse
from txt2img.request.preprocess import Preprocess
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system import device_names
from txt2img.system.stream_plan import Weight
from txt2img.weights.adapters.file_layout import with_bundled_words
from txt2img.weights.checkpoint import (
    Checkpoint,
    check_complete,
    check_quantize,
    find_model,
    open_checkpoint,
)
from txt2img.weights.distilled import from_loras
from txt2img.weights.families import Family, check_transparent, keeps_float8
from txt2img.weights.file_summary import (
    check_embedding,
    check_ip_adapter,
    check_lora,
    check_vae,
)
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.clip_vision import EncoderFile
from txt2img.weights.layouts.vae import open_vae
from txt2img.weights.registry.hashes import cached_hash


@dataclass(frozen=True)
class Forecast:
    """A model as it would be loaded, and its past speeds."""

    checkpoint: Checkpoint
    path: Path
    hash: str  # empty if its files were never hashed
    device: str
    dtypes: dict[str, str]  # by part
    speeds: Mapping[str, Speed]  # of all past runs
    low: bool = False  # weights stay as they are stored; on a CPU one part at a time is in memory
    quantize: str | None = None  # matrices of the network to 8 bits
    optimize: bool = True  # False: on a CPU large filters are widened
    offload: str = "none"  # of resources.MODES
    max_memory: int | None = None  # bytes
    library: AdapterPaths = field(default_factory=AdapterPaths)  # where its LoRAs are
    checked: set[Path] = field(default_factory=set)  # files of adapters that fit
    # Bytes in memory of what a request names beside the model, by kind and name.
    beside: dict[tuple[str, str], int] = field(default_factory=dict)
    encoders: dict[Path, EncoderFile] = field(default_factory=dict)  # of IP-Adapters, opened

    @cached_property
    def origin(self) -> Origin | None:
        """The model for the records of its pictures; None if its files were never hashed."""
        if not self.hash:
            return None
        vae, refiner = self.library.vae, self.library.refiner
        config = self.checkpoint.config_hash(
            open_vae(vae, self.checkpoint.family.vae).config if vae is not None else None
        )
        if refiner is not None:
            config += open_checkpoint(refiner).config_hash()
        return Origin(self.checkpoint.name, self.hash, config=config)

    @property
    def dtype(self) -> str:
        """The dtypes, as records have them."""
        return device_names.describe_dtypes(self.dtypes)

    @property
    def tokenizers(self) -> list[PromptTokenizer]:
        """The tokenizer of each text encoder."""
        return list(self.checkpoint.tokenizers.values())

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The number of parameters of each component."""
        return {
            component: sum(prod(stored.shape) for stored in part.tensors.values())
            for component, part in self.checkpoint.components.items()
        }

    @cached_property
    def weights(self) -> int:
        """The most bytes of weights in memory at once."""
        sizes = [sum(one.size for one in part.values()) for part in self._tensors.values()]
        return max(sizes) if self.low and self.device == "cpu" else sum(sizes)

    @cached_property
    def _tensors(self) -> dict[str, dict[str, Weight]]:
        """Each component's tensors as they will be in memory."""
        return {
            name: {
                tensor: Weight(self._size(name, stored), len(stored.shape))
                for tensor, stored in part.tensors.items()
            }
            for name, part in self.checkpoint.components.items()
        }

    def _size(self, component: str, stored: TensorRef) -> int:
        """The bytes of a weight in memory; on a CPU large filters stay as stored."""
        wide = prod(stored.shape) * device_names.BYTES[self.dtypes[device_names.part_of(component)]]
        if stored.is_quantized or (stored.is_float8 and keeps_float8(self.checkpoint.family)):
            return min(wide, stored.nbytes)
        if self.quantize and component == self.checkpoint.family.network.component:
            return prod(stored.shape) if len(stored.shape) == 2 else wide
        large = self.optimize and len(stored.shape) == 4 and stored.shape[2:] != (1, 1)
        return min(wide, stored.nbytes) if self.low or (large and self.device == "cpu") else wide

    def filled(self, request: Request) -> Request:
        """Fill a request's blanks. BadRequest if it cannot be drawn, BadFile."""
        family = self.checkpoint.family
        done = from_loras(request, self.library, family.defaults).filled(family.defaults)
        if done.loras:
            done = with_bundled_words(
                done, self.library, family.clip_texts, self.library.images.notes
            )
        family.latent_size(done, family.vae.factor)
        check_transparent(bool(family.vae.alpha), self.checkpoint.name, done)
        if done.has_hires:
            family.latent_size(second_pass(done), family.vae.factor)
        self._check_adapters(done)
        return done

    def _check_adapters(self, request: Request) -> None:
        """Raise what loading would for a LoRA or an embedding that does not fit, each once."""
        family, name = self.checkpoint.family, self.checkpoint.name
        loras = {self.library.lora_file(lora.name) for lora in request.loras} - self.checked
        words = {self.library.embedding_file(word.token): word.token for word in request.embeddings}
        for path in sorted(loras):
            check_lora(path, family, name)
        for path in sorted(words.keys() - self.checked):
            check_embedding(path, family, words[path])
        self.checked.update(loras, words)
        for control in request.controls:
            self._check_control(control, family, name)
        for use in request.ip_adapters:
            self._check_ip_adapter(use, family)
        for how in request.preprocess:
            if how.model and ("preprocess", str(how)) not in self.beside:
                self.beside["preprocess", str(how)] = self._annotator_size(how)

    def _check_control(self, control: Control, family: Family, name: str) -> None:
        """Raise what loading would for a ControlNet that does not fit, and note its size."""
        from txt2img.weights.layouts.control import check_control, tensors_loaded

        model_name, key = control.model.name, ("control", control.model.name)
        if key in self.beside and not control.type:
            return
        file = check_control(self.library.controls[model_name], family, name, control.type)
        network = family.network.component
        loaded = tensors_loaded(file, self.checkpoint.components[network].tensors)
        self.beside[key] = sum(self._size(network, ref) for ref in loaded.values())

    def _check_ip_adapter(self, use: IPAdapterUse, family: Family) -> None:
        """Raise what loading would for an IP-Adapter that does not fit, and note its size."""
        from txt2img.weights.control_file import find_encoder

        path, key = self.library.ip_adapters[use.model.name], ("ip-adapter", use.model.name)
        if key in self.beside:
            return
        file = check_ip_adapter(path, family)
        encoder = find_encoder(file, self.library, self.checkpoint, self.encoders)
        parts = {family.network.component: file.component, "text_encoder": encoder.component}
        self.beside[key] = sum(
            self._size(name, ref) for name, part in parts.items() for ref in part.tensors.values()
        )

    def _annotator_size(self, how: Preprocess) -> int:
        """The bytes in memory of a preprocessor's models, which compute in float32."""
        folders = (self.library.annotators[name] for name in how.models)
        files = (file for folder in folders for file in folder.glob("*.safetensors"))
        return sum(
            prod(ref.shape) * device_names.BYTES["float32"]
            for file in files
            for ref in safetensors_file.header(file).tensors.values()
        )

    def _beside(self, request: Request) -> int:
        """The bytes in memory of what a request names beside the model, as far as it is checked."""
        controls = {("control", one.model.name) for one in request.controls if one.weight}
        adapters = {("ip-adapter", one.model.name) for one in request.ip_adapters if one.weight}
        made = {("preprocess", str(how)) for how in request.preprocess}
        return sum(self.beside.get(key, 0) for key in controls | adapters | made)

    def speed(self, request: Request) -> Speed | None:
        """The past speed of this model, at the same token merging or else without."""
        family = self.checkpoint.family
        count = self.parameters[family.network.component]
        mode = self.peak(request).mode
        like, plain = (
            history.key(family.name, count, self.device, self.dtype, merging, mode)
            for merging in (request.token_merging, 0.0)
        )
        return self.speeds.get(like) or self.speeds.get(plain)

    def seconds(self, request: Request) -> float | None:
        """Estimated seconds for a filled request's image; None if nothing like it was drawn."""
        speed = self.speed(request)
        return None if speed is None else history.seconds(speed, request)

    def peak(self, request: Request, batch: int = 1) -> Peak:
        """The estimated peak for `batch` images at once, and what comes block by block."""
        dtypes = {name: self.dtypes[device_names.part_of(name)] for name in self._tensors}
        itemsizes = {name: device_names.BYTES[dtype] for name, dtype in dtypes.items()}
        family = self.checkpoint.family
        parts = parts_of(family, self._tensors, itemsizes, request, batch)
        heavy = family.prompt_encoder != "clip"
        return peak_of(parts, self.device, self.offload, self.max_memory, heavy)

    def memory(self, request: Request, batch: int) -> int:
        """Estimated bytes for `batch` images at once; at least the weights.

        BadRequest for a limit that is too little.
        """
        speed, beside = self.speed(request), self._beside(request)
        weights, peak = self.weights + beside, self.peak(request, batch)
        peak.check()
        if peak.mode != "none":
            return peak.bytes + beside
        if speed is None:
            return weights
        for_pictures = speed.memory * history.megapixels(request) * batch
        return round(weights + speed.base + for_pictures)


def forecast_for(
    model: str,
    library: AdapterPaths,
    device: str | None,
    dtype: str | None,
    low: bool = False,
    quantize: str | None = None,
) -> Forecast:
    """The forecast for a model. Raises as loading it does, as far as its headers tell."""
    where = device_names.guess_device(device)
    checkpoint = open_checkpoint(model, overrides=library.overrides)
    fits_half = checkpoint.family.network.fits_half
    dtypes = device_names.guess_dtypes(where, dtype, fits_half)
    check_quantize(checkpoint, quantize)
    check_complete(checkpoint, library.vae)
    if library.vae is not None:
        check_vae(library.vae, checkpoint.family)
        vae = open_vae(library.vae, checkpoint.family.vae, hashed=False).component
        checkpoint = replace(checkpoint, components=checkpoint.components | {"vae": vae})
    if library.refiner is not None:
        open_checkpoint(library.refiner)
    for tokenizer in checkpoint.tokenizers.values():
        tokenizer.embedding_ids |= {
            word: [0] * embedding_tokens(path) for word, path in library.embedding_files().items()
        }
    speeds = history.read()
    library.images.fit_to(max(checkpoint.family.size_multiple, SIDES.step))
    return Forecast(
        checkpoint,
        find_model(model),
        cached_hash(checkpoint.weights),
        where,
        dtypes,
        speeds,
        low,
        quantize,
        library=library,
    )


def embedding_tokens(path: Path) -> int:
    """The number of tokens of a textual-inversion file. Raises BadFile."""
    tables = [stored.shape for stored in safetensors_file.header(path).tensors.values()]
    return max((shape[0] for shape in tables if len(shape) == 2), default=1)
