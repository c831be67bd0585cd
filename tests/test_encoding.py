"""Pieces from a table give the same tokens as `tokenizers` itself."""

import json
import random
import sysconfig
from pathlib import Path

import pytest
from tiny import tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from graphmert.chain_graphs import encoding
from graphmert.chain_graphs.encoding import TextEncoder, TextPieces, cut_into_pieces, split_pattern
from graphmert.chain_graphs.pieces import PIECES
from graphmert.chain_graphs.survey import _numbered
from graphmert.chain_graphs.tokenizer import SPECIAL_TOKENS, save_backend, train_backend, train_tokenizer

STDLIB = Path(sysconfig.get_path("stdlib"))
TEXTS = [(STDLIB / name).read_text(encoding="utf-8") for name in ("argparse.py", "textwrap.py", "json/decoder.py")]
HELD_OUT = [(STDLIB / name).read_text(encoding="utf-8") for name in ("functools.py", "idlelib/iomenu.py", "heapq.py")]
PARTS = [
    *map(chr, range(128)),
    *" \n\n\n  __]]..",
    "def ",
    " in ",
    "class",
    "import x",
    "<mask>",
    "</s>",
    "\r\n",
    "'s",
]
FOREIGN = [*"é中̈ß²Ⅷ\u2028\x85\xa0\u200b🙂", "naïve ", "\n# größe\n"]


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    return train_backend(TEXTS, 900)


def same(encoder: TextEncoder, backend: Tokenizer, text: str) -> bool:
    expected = backend.encode(text, add_special_tokens=False)
    ids, starts, ends = encoder.encode(text)
    return (
        ids.tolist() == expected.ids == encoder.ids(text)
        and list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected.offsets
    )


def random_texts(count: int, parts: list[str]) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(parts, k=rng.randrange(40))) for _ in range(count)]


@pytest.mark.parametrize("special_are_text", [True, False])
def test_same_tokens_as_the_library(backend, special_are_text):
    backend = Tokenizer.from_str(backend.to_str())
    backend.encode_special_tokens = special_are_text
    encoder = TextEncoder(backend)
    assert encoder._find is not None
    texts = [*HELD_OUT, "", "\n", "x", "=" * 500, *random_texts(1500, PARTS)]
    texts += random_texts(1500, PARTS + FOREIGN)
    assert [text for text in texts if not same(encoder, backend, text)] == []


def test_same_tokens_from_pieces_that_were_cut_before(backend):
    backend = Tokenizer.from_str(backend.to_str())
    backend.encode_special_tokens = True
    encoder = TextEncoder(backend)
    texts = [*HELD_OUT, "", "\n", "=" * 500, *random_texts(300, PARTS), *random_texts(1500, PARTS + FOREIGN)]
    for begin in range(0, len(texts), 100):
        # Every batch has a table of its own.
        numbers: dict[str, int] = {}
        batch = texts[begin : begin + 100]
        rows = [_numbered(cut_into_pieces(text), numbers) for text in batch]
        distinct = list(numbers)
        for text, row in zip(batch, rows, strict=True):
            assert "".join(distinct[number] for number in row) == text
            expected = backend.encode(text, add_special_tokens=False)
            ids, starts, ends = encoder.encode(text, TextPieces(row, distinct))
            assert ids.tolist() == expected.ids
            assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected.offsets


def test_training_on_pieces_is_training_on_texts():
    texts = [*TEXTS, *random_texts(400, PARTS + FOREIGN), "naïve größe = 1\n" * 7, "\x85x\x1fy \u2028z" * 5]
    expected = Tokenizer(models.BPE())
    expected.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1499,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    expected.train_from_iterator(texts, trainer)
    found, wanted = (json.loads(each.to_str())["model"] for each in (train_backend(texts, 1500), expected))
    assert found["merges"] == wanted["merges"] and len(found["merges"]) > 1000
    assert found["vocab"] == wanted["vocab"]


def test_a_full_table_is_emptied(backend, monkeypatch):
    monkeypatch.setattr(encoding, "MAX_TABLE_TOKENS", 50)
    encoder = TextEncoder(backend)
    for line in HELD_OUT[0].splitlines()[:200]:
        assert same(encoder, backend, line)
        assert len(encoder._ids) < 150


def test_other_tokenizers_and_truncation_go_to_the_library(backend):
    other = tiny_tokenizer().backend_tokenizer
    assert split_pattern(other) is None
    assert same(TextEncoder(other), other, HELD_OUT[0])
    truncating = Tokenizer.from_str(backend.to_str())
    encoder = TextEncoder(truncating)
    truncating.enable_truncation(7)
    assert len(encoder.ids(TEXTS[0])) == 7 and same(encoder, truncating, TEXTS[0])


def test_saved_backend_is_what_transformers_saves(backend, tmp_path):
    save_backend(backend, tmp_path / "without")
    train_tokenizer(TEXTS, 900).save_pretrained(tmp_path / "with")
    names = sorted(path.name for path in (tmp_path / "with").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "without").iterdir())
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
