"""What a model wears for a request: LoRAs merged into its weights, learnt words; and takes off.

The touched weights' originals are kept in main memory, so that taking off gives the same bits.
"""

from dataclasses import replace

import torch
from torch import nn

from txt2img.errors import BadRequest, MissingWeights
from txt2img.models.optimize.upcast import widen
from txt2img.models.text_encoder import TextEncoder
from txt2img.request import Request
from txt2img.request.adapters import Embedding, Lora
from txt2img.request.fields import SWITCH
from txt2img.weights.adapters import key_names
from txt2img.weights.adapters import lora as adapters
from txt2img.weights.adapters.lora import Piece
from txt2img.weights.adapters.state import AdapterState
from txt2img.weights.adapters.textual_inversion import open_embedding
from txt2img.weights.distilled import by_loras
from txt2img.weights.model import Model
from txt2img.weights.registry.hashes import sha256


def ready(model: Model, request: Request) -> Request:
    """The request with its files found, checked against the model and told by their hashes.

    A LoRA of few steps fills the request's blanks. Raises ModelNotFound, BadRequest, BadFile,
    MissingWeights; the user's lines are noted.
    """
    wardrobe = model.wardrobe
    resolved = by_loras(wardrobe.library.resolved(request), wardrobe.library)
    second = None if model.second is None else model.second.record
    for what, recorded, own in (
        ("VAE", resolved.vae, wardrobe.vae),
        ("refiner", resolved.refiner, second),
    ):
        if recorded is not None and own is not None:
            wardrobe.hashes[what, recorded.name] = own.hash
            _same(wardrobe, what, recorded.name, recorded.hash)
    return replace(
        resolved,
        loras=tuple(_ready_lora(model, lora) for lora in resolved.loras),
        embeddings=tuple(_ready_word(model, word) for word in resolved.embeddings),
        vae=wardrobe.vae,
        refiner=second,
        refiner_switch=SWITCH if second is None else resolved.refiner_switch,
    )


def wear(model: Model, request: Request) -> None:
    """Change the model to what a ready request asks for. Raises MissingWeights, BadFile.

    After an error it wears nothing.
    """
    wardrobe = model.wardrobe
    try:
        if request.loras != wardrobe.loras:
            _take_off_loras(model)
            _put_on_loras(model, request.loras)
        if request.embeddings != wardrobe.embeddings:
            _forget(model)
            _learn(model, request.embeddings)
    except BaseException:
        _take_off_loras(model)
        _forget(model)
        raise


def undress(model: Model) -> None:
    """Make the model as if just loaded: nothing worn, no file of an earlier run remembered."""
    _take_off_loras(model)
    _forget(model)
    model.wardrobe = AdapterState(vae=model.wardrobe.vae)


def _ready_lora(model: Model, lora: Lora) -> Lora:
    if model.memory.low_memory or model.memory.quantized:
        option = "--low-memory keeps" if model.memory.low_memory else "--quantize makes"
        raise BadRequest(
            f"{option} weights too narrow for a LoRA to be merged exactly; leave out one of the two"
        )
    wardrobe = model.wardrobe
    if lora.name not in wardrobe.adapters:
        path = wardrobe.library.lora(lora.name)
        adapter = adapters.open_adapter(
            lora.name, path, model.network, model.text.encoders, model.family.name
        )
        wardrobe.adapters[lora.name] = adapter
        wardrobe.notes.append(adapter.report())
        wardrobe.hashes["LoRA", lora.name] = adapters.short_hash(path)
    return replace(lora, hash=_same(wardrobe, "LoRA", lora.name, lora.hash))


def _ready_word(model: Model, word: Embedding) -> Embedding:
    wardrobe = model.wardrobe
    path = wardrobe.library.embedding(word.token)
    if word.token not in wardrobe.learnt:
        wardrobe.learnt[word.token] = open_embedding(path, model.text.encoders)
        wardrobe.hashes["embedding", word.token] = sha256(path)[:12]
    return replace(word, hash=_same(wardrobe, "embedding", word.token, word.hash))


def _same(wardrobe: AdapterState, what: str, name: str, recorded: str) -> str:
    """A file's hash; a warning if a picture was drawn with another."""
    found = wardrobe.hashes[what, name]
    if recorded and recorded.lower() != found:
        line = f"the picture's {what} {name} has the hash {recorded}, this one {found}"
        if line not in wardrobe.warnings:
            wardrobe.warnings.append(line)
    return found


@torch.no_grad()
def _put_on_loras(model: Model, loras: tuple[Lora, ...]) -> None:
    """Merge adapters into the weights that they touch, layer by layer."""
    wardrobe, layers = model.wardrobe, key_names.layers(model.network, model.text.encoders)
    wanted: dict[str, list[tuple[Piece, float]]] = {}
    for lora in loras:
        for piece in wardrobe.adapters[lora.name].pieces:
            strength = lora.unet if piece.home.startswith("unet.") else lora.text
            if strength:
                wanted.setdefault(piece.home, []).append((piece, strength))
    for home, pieces in wanted.items():
        widen(layers[home])  # or the merged filter would be rounded
        for name, value in adapters.merged(layers[home], pieces).items():
            weight = layers[home].get_parameter(name)
            wardrobe.under[home, name] = weight.detach().to("cpu", copy=True)
            weight.copy_(value)
    wardrobe.loras = loras


@torch.no_grad()
def _take_off_loras(model: Model) -> None:
    """Give all touched weights their own values back, bit for bit."""
    wardrobe = model.wardrobe
    layers = key_names.layers(model.network, model.text.encoders) if wardrobe.under else {}
    for (home, name), value in wardrobe.under.items():
        layers[home].get_parameter(name).copy_(value)
    wardrobe.under.clear()
    wardrobe.loras = ()


def _learn(model: Model, embeddings: tuple[Embedding, ...]) -> None:
    """Give the text encoders a row for each learnt vector, behind their own tokens."""
    if not embeddings:
        return
    wardrobe = model.wardrobe
    learnt = [(word.token, wardrobe.learnt[word.token].read()) for word in embeddings]
    for index, encoder in enumerate(model.text.encoders):
        table = _table(encoder)
        own = table.weight
        wardrobe.tables.append(own)
        rows = [own]
        for token, vectors in learnt:
            start = sum(map(len, rows))
            rows.append(vectors[index].to(own))
            encoder.tokenizer.words[token] = list(range(start, start + len(rows[-1])))
        table.weight = nn.Parameter(torch.cat(rows), requires_grad=False)
        if not bool(torch.isfinite(table.weight).all()):
            raise MissingWeights(f"an embedding's vectors are too large for {own.dtype}")
    wardrobe.embeddings = embeddings


def _forget(model: Model) -> None:
    """Give the text encoders their own tables of tokens back."""
    wardrobe = model.wardrobe
    for encoder, own in zip(model.text.encoders, wardrobe.tables, strict=False):
        _table(encoder).weight = nn.Parameter(own, requires_grad=False)
        encoder.tokenizer.words.clear()
    wardrobe.tables.clear()
    wardrobe.embeddings = ()


def _table(encoder: TextEncoder) -> nn.Embedding:
    """A text encoder's vectors of its tokens."""
    return encoder.model.embeddings.token_embedding
