"""Warm start of a training run: a model's networks, with the vocabulary of other data.

`python -m txt2img.train.default_model.warm_start --data artwork.zip --out runs/default` writes the
VAE and the U-Net as they are, a vocabulary in which each taught word is one token, and the text
encoder with the new words' embeddings made of what the old one knew them by.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from txt2img.errors import Txt2imgError
from txt2img.models.clip import TextEncoder
from txt2img.models.tokenizer import Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.system.device.device import choose
from txt2img.train import checkpoint
from txt2img.train.config import TrainConfig, read_config, with_options
from txt2img.train.data import Pictures
from txt2img.train.stages import tokenizer_of
from txt2img.weights.load import load
from txt2img.weights.model import Model

END = "</w>"  # of a token that ends a word


def pieces_of(token: str, old: Tokenizer) -> list[int]:
    """The old tokens of a new one: itself if it was one, else the pieces of its text."""
    if token in old.vocab:
        return [old.vocab[token]]
    ids = old.chunks(token.removesuffix(END))[0]
    return [n for n in ids if n not in (old.bos_id, old.eos_id, old.pad_id)]


def embeddings_for(new: Tokenizer, old: Tokenizer, table: Tensor) -> Tensor:
    """The embeddings (N, D) of new tokens, each the mean of those of its old pieces."""
    rows = torch.randn(len(new.vocab), table.shape[1]) * table.std()
    for token, index in new.vocab.items():
        pieces = pieces_of(token, old)
        if pieces:
            rows[index] = table[pieces].mean(dim=0)
    rows[new.bos_id], rows[new.eos_id] = table[old.bos_id], table[old.eos_id]
    return rows


def begin(model: Model, config: TrainConfig) -> int:
    """Write the folder. Returns the number of new tokens that were tokens before."""
    pictures = Pictures(config.data)
    tokenizer = tokenizer_of(config, pictures)
    old = model.clips[0]
    text = TextEncoder(replace(old.config, vocab=len(tokenizer.vocab)), tokenizer)
    state = {name: value.float() for name, value in old.model.state_dict().items()}
    key = next(name for name in state if name.endswith("token_embedding.weight"))
    state[key] = embeddings_for(tokenizer, old.tokenizer, state[key])
    text.model.load_state_dict(state)
    checkpoint.save_text(config.out, text)
    assert isinstance(model.vae, VAE) and isinstance(model.network, UNet)
    checkpoint.save_vae(config.out, model.vae, config.size)
    checkpoint.save_unet(config.out, model.network, config.size // config.vae.factor)
    checkpoint.save_index(config.out, config)
    return len(tokenizer.vocab.keys() & old.tokenizer.vocab.keys())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m txt2img.train.default_model.warm_start", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="the archive of pictures")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--config", type=Path, help="of the run, as a TOML file")
    parser.add_argument("--model", default="default", help="what to go on from (default)")
    options = parser.parse_args(arguments)
    try:
        config = with_options(
            read_config(options.config), {"data": options.data, "out": options.out}
        )
        same = begin(load(options.model, choose("cpu")), config)
    except Txt2imgError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{same} tokens were known", file=sys.stderr)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
