"""Tokenizers trained here: edges shared with names, offsets, determinism; and what is refused."""

import io
import json
import keyword
import sysconfig
import tokenize
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from graphmert.chain_graphs.sources import BuildError
from graphmert.chain_graphs.tokenizer import check_tokenizer, load_tokenizer, train_tokenizer

CODEBERT = Path(__file__).resolve().parents[2] / "shared" / "codebert-tokenizer"
STDLIB = Path(sysconfig.get_path("stdlib"))
TEXTS = [(STDLIB / name).read_text(encoding="utf-8") for name in ("argparse.py", "textwrap.py", "json/decoder.py")]
HELD_OUT = (STDLIB / "functools.py").read_text(encoding="utf-8")
MIXED = 'def größe_von(x):\n\treturn "naïve 日本" + x  # ünïcode 🙂 <mask>\n\n\n\nclass A :\n    pass\f\n'


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=1500)


def name_spans(code):
    """Character spans of the names that Python's own tokenizer sees, keywords aside."""
    lines = [0]
    for line in code.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            yield lines[token.start[0] - 1] + token.start[1], lines[token.end[0] - 1] + token.end[1]


def test_special_tokens_as_in_roberta(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == 1499
    ids = tokenizer("x = 1").input_ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id) == (
        0,
        1,
        2,
        0,
    )
    pair = tokenizer("a", "b").input_ids
    assert pair[0] == 0 and pair.count(2) == 3
    assert set(tokenizer("x")) == {"input_ids", "attention_mask"}


def test_saved_directory_loads_with_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    expected = tokenizer(HELD_OUT, return_offsets_mapping=True)
    assert dict(loaded(HELD_OUT, return_offsets_mapping=True)) == dict(expected)
    assert loaded.mask_token_id == tokenizer.mask_token_id
    assert loaded.is_fast
    assert "auto_map" not in (tmp_path / "tokenizer_config.json").read_text()
    load_tokenizer(str(tmp_path))


def test_same_texts_give_the_same_bytes_in_any_order(tokenizer):
    assert (
        train_tokenizer(reversed(TEXTS), vocab_size=1500).backend_tokenizer.to_str()
        == tokenizer.backend_tokenizer.to_str()
    )
    assert (
        train_tokenizer(TEXTS[:2], vocab_size=1500).backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()
    )


def test_names_share_their_edges_with_tokens(tokenizer):
    encoding = tokenizer.backend_tokenizer.encode(HELD_OUT, add_special_tokens=False)
    starts = {start for start, _ in encoding.offsets}
    ends = {end for _, end in encoding.offsets}
    spans = list(name_spans(HELD_OUT))
    assert len(spans) > 1000
    assert [HELD_OUT[a:b] for a, b in spans if a not in starts or b not in ends] == []


@pytest.mark.parametrize(
    "place", ["{}", "return {}", "f({}, 1)", "x = {}", "def {}(self):", "if not {}:", "a.{}", "\n    {}", "@{}"]
)
@pytest.mark.parametrize("name", ["parser", "load_path", "_private", "is_in", "HTTPServer2"])
def test_a_name_has_the_same_tokens_everywhere(tokenizer, name, place):
    code = place.format(name)
    start = code.index(name)
    encoding = tokenizer.backend_tokenizer.encode(code, add_special_tokens=False)
    inside = [
        token
        for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
        if a >= start and b <= start + len(name)
    ]
    assert inside == tokenizer.backend_tokenizer.encode(name, add_special_tokens=False).ids


def test_pieces_are_kept_apart(tokenizer):
    pieces = [
        piece
        for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
            "if a_b2 in c:\n\n    d = e[0]  # the end\n"
        )
    ]
    readable = [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in pieces]
    assert readable == [
        "if ", "a", "_", "b", "2", " in ", "c", ":",
        "\n\n    ", "d", " = ", "e", "[", "0", "]", "  ", "# ", "the", " end", "\n",
    ]  # fmt: skip
    assert len(tokenizer.backend_tokenizer.encode("\n        ", add_special_tokens=False).ids) == 1


def test_text_survives_and_offsets_cover_it(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    encoding = backend.encode(MIXED, add_special_tokens=False)
    assert backend.decode(encoding.ids, skip_special_tokens=False) == MIXED
    assert all(4 <= token < tokenizer.mask_token_id for token in encoding.ids)
    position = 0
    for start, end in encoding.offsets:
        # The bytes of one character share its span; otherwise tokens follow each other without a gap.
        assert start <= position <= end and end > start
        position = end
    assert position == len(MIXED)
    spans = [MIXED[a:b] for a, b in encoding.offsets]
    start = MIXED.index("größe")
    assert "".join(
        dict.fromkeys(s for s, (a, b) in zip(spans, encoding.offsets, strict=True) if start <= a and b <= start + 5)
    ) in ("größe",)


def test_small_vocabulary_is_refused():
    with pytest.raises(BuildError, match=r"--vocab-size is 200; .* at least 261"):
        train_tokenizer(["x = 1"], vocab_size=200)
    assert len(train_tokenizer(["x = 1"], vocab_size=261)) == 261


def test_tokenizers_that_cannot_be_used_are_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "x": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[UNK]", unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(BuildError, match=r"--tokenizer .*has no mask token"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(BuildError, match="does not exist"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(BuildError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path.parent))
    with pytest.raises(BuildError, match="not a fast tokenizer"):
        check_tokenizer(object(), "slow")


def test_no_code_is_run_or_asked_for(tokenizer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "n")
    tokenizer.save_pretrained(tmp_path)
    values = {"model_type": "graphmert", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "code.py").write_text("raise SystemExit")
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    assert not asked
    # Another model's code is not asked for either.
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "other"}))
    load_tokenizer(str(tmp_path))
    assert not asked


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", "{not json", "", '{"added_tokens": [], "model": {"type": "x"}}'])
def test_damaged_tokenizers_are_refused(tokenizer, tmp_path, text):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BuildError, match=f"--tokenizer {tmp_path}: the tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.skipif(not CODEBERT.is_dir(), reason="CodeBERT's tokenizer is not here")
def test_codebert_tokenizer_is_accepted():
    tokenizer = load_tokenizer(str(CODEBERT))
    assert (len(tokenizer), tokenizer.mask_token_id) == (50265, 50264)
