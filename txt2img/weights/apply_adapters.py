"""Apply a request's adapters to a model, LoRAs and textual inversions, and remove them again.

Original values of changed weights are kept in main memory, so that removing restores every bit.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from txt2img.errors import BadRequest, MissingWeights
from txt2img.images.input_image import resolve_images
from txt2img.models.clip import TextEncoder
from txt2img.models.layers import weights_changed
from txt2img.models.optimize.packed import packed_weight
from txt2img.models.optimize.upcast import to_float32
from txt2img.request import Request
from txt2img.request.adapters import Embedding, Lora
from txt2img.request.fields import SIDES, SWITCH
from txt2img.request.upscalers import UpscalerRef
from txt2img.system.device.device import Device
from txt2img.weights.adapters import key_names
from txt2img.weights.adapters.file_layout import short_hash, with_bundled_words
from txt2img.weights.adapters.lora import Piece, merge, open_adapter, weight_change
from txt2img.weights.adapters.textual_inversion import open_embedding
from txt2img.weights.distilled import from_loras
from txt2img.weights.formats.tensors import Files
from txt2img.weights.model import AdapterState, Model, device_of
from txt2img.weights.registry.hashes import sha256

TOKEN_TABLE = "model.embeddings.token_embedding.weight"  # in CLIP's text encoder
INTERPOLATED = 2.0  # times larger, by an interpolation unless the request says more


def resolve_adapters(model: Model, request: Request) -> Request:
    """The request with its adapter files found, checked against the model, and hashed.

    A few-step LoRA fills the request's blanks. Lines for the user go to the model's AdapterState.
    Raises ModelNotFound, BadRequest, BadFile, MissingWeights.
    """
    state = model.adapters
    resolved = from_loras(state.paths.resolve(request), state.paths, model.family.defaults)
    if resolved.loras:
        _check_wide(model)
        encoders = [encoder.config for encoder in model.clips]
        resolved = with_bundled_words(resolved, state.paths, encoders, state.notes)
    if resolved.controls or resolved.preprocess:
        from txt2img.weights.control import resolve_controls

        resolved = resolve_controls(model, resolved)
    if resolved.ip_adapters or resolved.ip_masks:
        from txt2img.weights.ip_adapters import resolve_ip_adapters

        resolved = resolve_ip_adapters(model, resolved)
    if resolved.has_input:
        state.paths.images.fit_to(max(model.family.size_multiple, SIDES.step))
        resolved = resolve_images(resolved, state.paths.images)
    refiner = None if model.refiner is None else model.refiner.record
    for kind, recorded, loaded in (
        ("VAE", resolved.vae, state.vae),
        ("refiner", resolved.refiner, refiner),
    ):
        if recorded is not None and loaded is not None:
            state.hashes[kind, recorded.name] = loaded.hash
            state.check_hash(kind, recorded.name, recorded.hash)
    resolved = resolve_upscaler(model, resolved)
    return resolved.changed(
        loras=tuple(_resolve_lora(model, lora) for lora in resolved.loras),
        embeddings=tuple(_resolve_embedding(model, word) for word in resolved.embeddings),
        vae=state.vae,
        refiner=refiner,
        refiner_switch=SWITCH if refiner is None else resolved.refiner_switch,
    )


def resolve_upscaler(model: Model, request: Request) -> Request:
    """The request with its upscalers loaded and hashed, and the last one's scale.

    Raises as `resolve_adapters`.
    """
    if request.hires_upscaler is not None:
        hires, _ = _load_upscaler(model, request.hires_upscaler)
        request = replace(request, hires_upscaler=hires)
    if request.upscale is None:
        return request
    upscale, scale = _load_upscaler(model, request.upscale)
    by = scale if request.upscale_by is None else request.upscale_by
    return replace(request, upscale=upscale, upscale_by=by)


def apply_adapters(model: Model, request: Request) -> None:
    """Change the model to a resolved request's adapters; after an error it has none.

    Raises MissingWeights, BadFile.
    """
    state = model.adapters
    try:
        if request.loras != state.loras:
            _unmerge_loras(model)
            _merge_loras(model, request.loras)
        if request.embeddings != state.embeddings:
            _remove_embeddings(model)
            _add_embeddings(model, request.embeddings)
    except BaseException:
        _unmerge_loras(model)
        _remove_embeddings(model)
        raise


def remove_adapters(model: Model) -> None:
    """Restore the model as loaded, and forget all adapter files."""
    _unmerge_loras(model)
    _remove_embeddings(model)
    model.adapters = AdapterState(vae=model.adapters.vae)


def _check_wide(model: Model) -> None:
    """Raise BadRequest for a model that no LoRA can be merged into."""
    if model.memory.low_memory or model.memory.quantized:
        option = "--low-memory keeps" if model.memory.low_memory else "--quantize makes"
        raise BadRequest(
            f"{option} weights too narrow for a LoRA to be merged exactly; leave out one of the two"
        )


def _resolve_lora(model: Model, lora: Lora) -> Lora:
    state = model.adapters
    if lora.name not in state.lora_files:
        path = state.paths.lora_file(lora.name)
        adapter = open_adapter(lora.name, path, model.network, model.clips, model.family.name)
        state.lora_files[lora.name] = adapter
        state.notes.append(adapter.report())
        state.details += [] if adapter.unknown else state.notes[-1:]
        state.hashes["LoRA", lora.name] = short_hash(path)
    return replace(lora, hash=state.check_hash("LoRA", lora.name, lora.hash))


def _resolve_embedding(model: Model, word: Embedding) -> Embedding:
    state = model.adapters
    path = state.paths.embedding_file(word.token)
    if word.token not in state.embedding_files:
        state.embedding_files[word.token] = open_embedding(path, model.clips, word.token)
        state.hashes["embedding", word.token] = sha256(path)[:12]
    return replace(word, hash=state.check_hash("embedding", word.token, word.hash))


def _load_upscaler(model: Model, ref: UpscalerRef) -> tuple[UpscalerRef, float]:
    """An upscaler loaded and hashed, and its own scale."""
    if ref.interpolation is not None:
        return ref, INTERPOLATED
    state = model.adapters
    if ref.name not in state.upscalers:
        from txt2img.weights.upscaler import load_upscaler

        dtype = next(model.vae.parameters()).dtype
        device = Device(device_of(model), dtype)
        upscaler = load_upscaler(state.paths.upscaler_file(ref), device)
        state.upscalers[ref.name] = upscaler
        state.hashes["upscaler", ref.name] = upscaler.hash
    digits = state.check_hash("upscaler", ref.name, ref.hash)
    return replace(ref, hash=digits), float(state.upscalers[ref.name].scale)


@torch.no_grad()
def _merge_loras(model: Model, loras: tuple[Lora, ...]) -> None:
    """Merge adapters into the weights that they change, layer by layer."""
    state, layers = model.adapters, key_names.layers(model.network, model.clips)
    by_layer: dict[str, list[tuple[Piece, float]]] = {}
    files = Files()
    for lora in loras:
        for piece in state.lora_files[lora.name].pieces:
            strength = lora.text if piece.layer.startswith("text") else lora.unet
            if strength:
                by_layer.setdefault(piece.layer, []).append((piece, strength))
    for layer, pieces in by_layer.items():
        if (packed := packed_weight(layers[layer])) is not None:
            packed.change = weight_change(pieces, files)
            state.packed.append(packed)
        if layers[layer].get_parameter("weight").is_meta:  # read for each use, and merged then
            change = partial(merge, pieces=pieces, files=files)
            model.memory.placement.changes[layers[layer]] = change
            continue
        to_float32(layers[layer])  # or the merged filter would be rounded
        for name, value in merge(layers[layer], pieces, files).items():
            weight = layers[layer].get_parameter(name)
            state.originals[layer, name] = weight.detach().to("cpu", copy=True)
            weight.copy_(value)
        weights_changed(layers[layer])
    state.loras = loras
    if state.packed and model.graphed:
        model.graphed.forget()  # what was recorded lacks the change


@torch.no_grad()
def _unmerge_loras(model: Model) -> None:
    """Restore all changed weights, bit for bit."""
    state = model.adapters
    layers = key_names.layers(model.network, model.clips) if state.originals else {}
    for (layer, name), value in state.originals.items():
        layers[layer].get_parameter(name).copy_(value)
        weights_changed(layers[layer])
    state.originals.clear()
    model.memory.placement.changes.clear()
    if state.packed and model.graphed:
        model.graphed.forget()
    for packed in state.packed:
        packed.change = None
    state.packed.clear()
    state.loras = ()


def _add_embeddings(model: Model, embeddings: tuple[Embedding, ...]) -> None:
    """Append a row for each vector to the text encoders' token tables."""
    if not embeddings:
        return
    state = model.adapters
    words = [(word.token, state.embedding_files[word.token].read()) for word in embeddings]
    for index, encoder in enumerate(model.clips):
        table = _token_table(encoder)
        original = table.weight
        state.token_tables.append(original)
        if original.is_meta:
            reader, name = model.memory.placement.lazy_readers[encoder], TOKEN_TABLE
            original = nn.Parameter(reader.read([name])[name], requires_grad=False)
        rows = [original]
        for token, vectors in words:
            start = sum(map(len, rows))
            rows.append(vectors[index].to(original))
            encoder.tokenizer.embedding_ids[token] = list(range(start, start + len(rows[-1])))
        table.weight = nn.Parameter(torch.cat(rows), requires_grad=False)
        if not bool(torch.isfinite(table.weight).all()):
            raise MissingWeights(f"an embedding's vectors are too large for {original.dtype}")
    state.embeddings = embeddings


def _remove_embeddings(model: Model) -> None:
    """Restore the text encoders' own token tables."""
    state = model.adapters
    for encoder, original in zip(model.clips, state.token_tables, strict=False):
        _token_table(encoder).weight = nn.Parameter(original, requires_grad=False)
        encoder.tokenizer.embedding_ids.clear()
    state.token_tables.clear()
    state.embeddings = ()


def _token_table(encoder: TextEncoder) -> nn.Embedding:
    return encoder.model.embeddings.token_embedding
