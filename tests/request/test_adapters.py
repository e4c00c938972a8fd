"""A1111's tags, what a request says of LoRAs, words and VAE, and where files are found."""

from dataclasses import replace
from pathlib import Path

import pytest

from txt2img.cli.options.adapters import lora_file
from txt2img.errors import BadRequest, ModelNotFound
from txt2img.images.metadata.a1111 import describe, parse, to_request
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.adapters import (
    Embedding,
    Lora,
    VAERef,
    add_lora_tags,
    find_words,
    strip_lora_tags,
)
from txt2img.request.resolve import AdapterPaths

WORN = Request(
    "a cat",
    "blurry <x>",
    "m",
    *(64, 64, 3, 7.0),
    sampler=Sampler.EULER,
    schedule=Schedule.KARRAS,
    seed=1,
    loras=(Lora("foo", 0.8, 0.8, "aabbccddeeff"), Lora("b, c", 1.0, 0.0, "0" * 12)),
    embeddings=(Embedding("<x>", "1" * 12),),
    vae=VAERef("mse.safetensors", "2" * 10),
)


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a <lora:foo:0.8> cat", "a cat", [Lora("foo", 0.8, 0.8)]),
        ("<lora:foo> a", "a", [Lora("foo")]),
        ("a <lora:foo:0.5:1>", "a", [Lora("foo", unet=1.0, text=0.5)]),
        ("a <lora:foo:0.5:unet=2>", "a", [Lora("foo", unet=2.0, text=0.5)]),
        ("a <lora:foo:te=-1:unet=2>", "a", [Lora("foo", unet=2.0, text=-1.0)]),
        ("<lyco:a b.v2:1>, <lora:c:0>", ",", [Lora("a b.v2"), Lora("c", 0.0, 0.0)]),
        (" a <3 b <hypernet:x:1> ", " a <3 b <hypernet:x:1> ", []),
    ],
)
def test_tags_are_taken_out_of_the_prompt(prompt: str, text: str, loras: list[Lora]) -> None:
    assert strip_lora_tags(prompt) == (text, tuple(loras))
    assert strip_lora_tags(add_lora_tags(text, loras)) == (text, tuple(loras))


@pytest.mark.parametrize(
    "tag",
    ["<lora:>", "<lora:x:much>", "<lora:x:nan>", "<lora:x:1:1:1>", "<lora:x:1:dyn=4>",
     "<lora:../:1>", "<lora:x\ny:1>"],
)  # fmt: skip
def test_tags_that_mean_nothing_are_refused_in_one_line(tag: str) -> None:
    with pytest.raises(BadRequest) as caught:
        strip_lora_tags(tag)
    assert "\n" not in str(caught.value)


def test_a_request_with_all_of_it_comes_back_from_json() -> None:
    values = WORN.to_json()
    assert values["loras"][0] == {"name": "foo", "unet": 0.8, "text": 0.8, "hash": "aabbccddeeff"}
    assert Request.from_json(values) == WORN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loras", "foo"),
        ("loras", [3]),
        ("loras", [{"nom": "x"}]),
        ("loras", [{"name": ""}]),
        ("loras", [{"name": "x", "unet": "1"}]),
        ("loras", [{"name": "x", "text": float("inf")}]),
        ("loras", [{"name": "x", "hash": "?"}]),
        ("embeddings", [{"token": "a,b"}]),
        ("embeddings", {}),
        ("vae", "x"),
        ("vae", {"name": 3}),
    ],
)
def test_nonsense_in_json_is_refused_in_one_line(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        Request.from_json({"prompt": "", field: value})
    assert "\n" not in str(caught.value)


def test_a1111s_text_says_all_of_it_in_its_order_and_is_read_back() -> None:
    text = str(describe(WORN, "m", "0123456789", "0.1.0"))
    assert text.startswith("a cat <lora:foo:0.8> <lora:b, c:0.0:1.0>\n")
    assert "Model: m, VAE hash: 2222222222, VAE: mse.safetensors, RNG: CPU, Lora hashes: " in text
    hashes = '"foo: aabbccddeeff, b c: 000000000000", TI hashes: "<x>: 111111111111", Version'
    assert hashes in text
    plain = replace(WORN, loras=WORN.loras[:1])
    assert to_request(parse(str(describe(plain, "m", "0123456789", "0.1.0")))) == (plain, [])


def test_words_are_found_whole_longest_first_in_any_case() -> None:
    text = "Cats catnip CAT, <s1><s1> cat-nip"
    found = [(text[a:b], word) for a, b, word in find_words(["cat", "<s1>", "cat-nip"], text)]
    assert found == [("CAT", "cat"), ("<s1>", "<s1>"), ("<s1>", "<s1>"), ("cat-nip", "cat-nip")]
    assert not list(find_words([], text))


def test_files_are_found_by_name(tmp_path: Path) -> None:
    one, two, deep = tmp_path / "one", tmp_path / "two", tmp_path / "two" / "a"
    for folder in (one, deep):
        folder.mkdir(parents=True)
    for path in (one / "x", two / "x", deep / "y", deep / "[z]"):
        path.with_name(f"{path.name}.safetensors").touch()
    library = AdapterPaths({"given": tmp_path}, (one, two), {}, (one, two))
    assert library.lora_file("given") == tmp_path
    assert library.lora_file("x") == one / "x.safetensors"
    assert library.lora_file("y") == deep / "y.safetensors"
    assert library.lora_file("[z]") == deep / "[z].safetensors"
    assert library.embedding_file("x") == one / "x.safetensors"
    with pytest.raises(ModelNotFound, match=r'no LoRA "w" in .*; give its file with --lora'):
        library.lora_file("w")
    assert library.resolve(Request("an x, <lora:y:1>", "x")) == Request(
        "an x,", "x", loras=(Lora("y"),), embeddings=(Embedding("x"),)
    )
    recorded = Request("an x", embeddings=(Embedding("x", "ab"), Embedding("gone", "cd")))
    assert library.resolve(recorded).embeddings == (Embedding("x", "ab"),)
    with pytest.raises(ModelNotFound, match='no embedding "gone"'):
        library.resolve(replace(recorded, negative="gone"))
    with pytest.raises(ModelNotFound, match="give its file with --vae, or --vae none"):
        library.resolve(Request("", vae=VAERef("v")))


def test_a_file_may_be_followed_by_its_weights(folder: Path) -> None:
    Path("a.safetensors").touch()
    for text, unet, words in (("", 1.0, 1.0), (":0.5", 0.5, 0.5), (":-1:2e-1", -1.0, 0.2)):
        lora, path = lora_file(f"a.safetensors{text}")
        assert (lora, path) == (Lora("a", unet, words), Path("a.safetensors"))
    with pytest.raises(ModelNotFound, match="--lora: no file"):
        lora_file("b.safetensors:0.5")
    for text in ("", "a.safetensors:-", "a.safetensors:x", "a.safetensors:1:1:1"):
        with pytest.raises(BadRequest, match=r"--lora|LoRA"):
            lora_file(text)


@pytest.mark.parametrize(
    "tag", ["<lora:styles/ink:0.5>", "<lora:a\\b\\ink:0.5>", "<lora:../ink:0.5>"]
)
def test_a_loras_folders_are_no_part_of_its_name(tag: str) -> None:
    assert strip_lora_tags(f"a cat {tag}") == ("a cat", (Lora("ink", 0.5, 0.5),))


def test_a_broken_tag_costs_that_tag_only() -> None:
    notes: list[str] = []
    found = strip_lora_tags("a <lora:x:much> cat <lora:ink:0.5>", notes)
    assert found == ("a cat", (Lora("ink", 0.5, 0.5),))
    assert len(notes) == 1 and "much" in notes[0]


def test_learnt_words_in_comfyuis_words_are_wanted_by_its_rules(tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").touch()
    library = AdapterPaths(embedding_folders=(tmp_path,))
    request = Request("a cat, (embedding:ink:1.2)", "embedding:ink.pt", compat=Compat.COMFYUI)
    found = library.resolve(request)
    assert (found.prompt, found.negative) == ("a cat, (ink:1.2)", "ink")
    assert found.embeddings == (Embedding("ink"),)
    assert library.resolve(found) == found
    with pytest.raises(ModelNotFound, match='no embedding "ink"'):
        AdapterPaths().resolve(request)
    assert AdapterPaths().resolve(replace(request, compat=None)).prompt == request.prompt
