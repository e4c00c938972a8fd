"""A vocabulary learnt from captions."""

from transformers import CLIPTokenizer

from txt2img.models.tokenizer import BOS, EOS, Tokenizer
from txt2img.train.checkpoint import save_tokenizer
from txt2img.train.train_tokenizer import train_bpe

CAPTIONS = ["red apple, 3d emoji", "green apple, flat emoji", "dog face, 3d emoji"] * 3


def test_words_of_the_captions_become_single_tokens() -> None:
    vocab, merges = train_bpe(CAPTIONS, 1024)
    tokenizer = Tokenizer(vocab, merges, 32)
    assert len(tokenizer.tokens("red apple, 3d emoji")) == 6  # red apple , 3 d emoji


def test_size_is_a_limit_and_the_marks_come_last() -> None:
    vocab, _ = train_bpe(CAPTIONS, 600)
    assert len(vocab) <= 600
    assert sorted(vocab, key=vocab.__getitem__)[-2:] == [BOS, EOS]
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_no_text_is_unknown() -> None:
    vocab, merges = train_bpe(CAPTIONS, 600)
    tokenizer = Tokenizer(vocab, merges, 77)
    for text in ("Ελλάδα", "🍎🍏", "naïve — 東京", "zebra"):
        assert tokenizer.eos_id not in tokenizer.tokens(text)


def test_transformers_reads_the_saved_tokenizer_alike(tmp_path) -> None:
    vocab, merges = train_bpe(CAPTIONS, 700)
    tokenizer = Tokenizer(vocab, merges, 32)
    save_tokenizer(tmp_path, tokenizer)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("red apple, 3d emoji", "A  Dog's face!", "naïve 42", ""):
        ids = theirs(text, padding="max_length", max_length=32, truncation=True).input_ids
        assert ids == tokenizer.chunks(text)[0]
