"""A warm start: networks go over as they are, words keep what the old vocabulary knew of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.train.test_loop import run, tiny
from txt2img.models.tokenizer import Tokenizer
from txt2img.system.device.device import choose
from txt2img.train import train_tokenizer
from txt2img.train.config import Run
from txt2img.train.default_model.warm_start import begin, embeddings_for, pieces_of
from txt2img.weights.load import load


def tokenizer(*words: str) -> Tokenizer:
    vocab, merges = train_tokenizer.train_bpe(words, 16384)
    return Tokenizer(vocab, merges, 16)


def test_every_word_of_a_table_is_one_token() -> None:
    words = ["apple", "applepie", "skateboard", "emoji", "a"]
    new = tokenizer(*words)
    for word in words:
        ids = new.chunks(word)[0]
        assert ids[1] == new.vocab[f"{word}</w>"] and ids[2] == new.eos_id


def test_a_word_is_made_of_what_it_was_cut_into() -> None:
    old, new = tokenizer("red", "apple"), tokenizer("red", "apple", "redapple")
    table = torch.randn(len(old.vocab), 8, generator=torch.Generator().manual_seed(0))
    rows = embeddings_for(new, old, table)
    red, both = new.vocab["red</w>"], new.vocab["redapple</w>"]
    assert torch.equal(rows[red], table[old.vocab["red</w>"]])
    pieces = pieces_of("redapple</w>", old)
    assert len(pieces) > 1
    assert torch.allclose(rows[both], table[pieces].mean(dim=0))
    assert torch.equal(rows[new.eos_id], table[old.eos_id])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained model's folder, and one that goes on from it with other words."""
    tmp = tmp_path_factory.mktemp("warm")
    few = Run(steps=1, batch_size=4, warmup=1)
    config = tiny(tmp, vae_run=few, text_run=few, unet_run=few)
    run(config)
    data = tmp / "more"
    data.mkdir()
    Image.new("RGB", (64, 64), "red").save(data / "a.png")
    rows = [{"file_name": "a.png", "text": "a skateboard"}] * 4
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    table = {"words": {"skateboard": ["skateboard"], "a": [], "red": []}, "ignored": ["4k"]}
    (data / "words.json").write_text(json.dumps(table), "utf-8")
    other = replace(config, data=data, out=tmp / "warm", vocab=4096)
    begin(load(str(config.out), choose("cpu")), other)
    run(replace(other, vae_run=Run(steps=0), text_run=Run(steps=0)))
    return config.out, other.out


def test_networks_go_over_as_they_are_and_the_run_goes_on(folders: tuple[Path, Path]) -> None:
    before, after = folders
    file = "vae/diffusion_pytorch_model.safetensors"
    first, second = load_file(before / file), load_file(after / file)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    file = "unet/diffusion_pytorch_model.safetensors"
    first, second = load_file(before / file), load_file(after / file)
    # one step of training away from where it began, not from nothing
    assert all((first[name] - second[name]).abs().max() < 0.05 for name in first)


def test_the_model_has_the_new_words_and_their_table(folders: tuple[Path, Path]) -> None:
    vocab = json.loads((folders[1] / "tokenizer" / "vocab.json").read_text("utf-8"))
    assert "skateboard</w>" in vocab
    table = json.loads((folders[1] / "words.json").read_text("utf-8"))
    assert table["words"]["skateboard"] == ["skateboard"]
    load(str(folders[1]), choose("cpu"))
