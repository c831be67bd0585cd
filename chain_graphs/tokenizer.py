"""Byte-level BPE tokenizers for code whose tokens share their edges with names, and checks on given tokenizers.

Touches only tokenizer files. The pieces that merges may not cross, measured on the standard library of Python 3.11
(16,000 entries, trained on 7.7 M characters, measured on 2.2 M of other modules; "straddling": names outside strings
and comments whose first or last character lies inside a token; "two forms": names that are tokenised with a leading
space in one place and without in another):

    pieces                                              tokens/character   straddling   two forms
    RoBERTa's own                                            0.244             9.4 %        48 %
    words with a leading space, underscores apart            0.249             0            42 %
    spaces always apart                                      0.318             0             0
    spaces with keywords and punctuation (as here)           0.247             0             0
    ... and an underscore joins the word after it            0.236             0             0

So a space belongs to the punctuation or keyword beside it, and to a word only in prose ("the file is"). A name has the
same tokens wherever it stands, in code and as a leaf. A line break and the indentation after it are one piece. Joining
underscores to words would save 4 % of the tokens and lose that `path` in `load_path` is the token of `path`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .encoding import cut_into_pieces
from .pieces import PIECES
from .sources import BuildError, looks_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
MODEL_MAX_LENGTH = 1024
# Words of one text that the trainer is given.
_PART_WORDS = 4000
_PARALLELISM = "TOKENIZERS_PARALLELISM"


# The arguments of `PreTrainedTokenizerFast` for a tokenizer trained here.
_ROLES = {
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "cls_token": "<s>",
    "eos_token": "</s>",
    "mask_token": MASK_TOKEN,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": MODEL_MAX_LENGTH,
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 16_000, show_progress: bool = False
) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE on texts; the same texts give the same tokenizer, whatever their order.

    Args:
        texts: the training split's files.
        vocab_size: entries including the five special ones (`<s>`=0, `<pad>`=1, `</s>`=2, `<unk>`=3, `<mask>` last). A
            small corpus may give fewer.
        show_progress: show the progress of `tokenizers`.

    Returns:
        A fast tokenizer that adds `<s> ... </s>` and gives character offsets.

    Raises:
        BuildError: the vocabulary is too small to hold the 256 bytes and the special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    backend = train_backend(texts, vocab_size, show_progress)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_ROLES | {"mask_token": _mask_token()})


def train_backend(texts: Iterable[str], vocab_size: int = 16_000, show_progress: bool = False) -> Tokenizer:
    """The backend of `train_tokenizer`, made without transformers."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(cut_into_pieces(text))
    return train_on_pieces(counts, vocab_size, show_progress)


def train_on_pieces(counts: Mapping[str, int], vocab_size: int = 16_000, show_progress: bool = False) -> Tokenizer:
    """The backend of `train_tokenizer`, from how often each piece occurs (`encoding.cut_into_pieces`).

    The trainer takes texts and no counts, so it is given each piece as often as it occurs; but cut and spelled in the
    byte-level alphabet already, of which the cutting alone takes most of the time when it is left to `tokenizers`.
    """
    check_vocab_size(vocab_size)
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # No letter of the byte-level alphabet.
    backend.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    parallelism = os.environ.get(_PARALLELISM)
    try:
        backend.train_from_iterator(_repeated(counts, byte_level), trainer)
    finally:
        os.environ.pop(_PARALLELISM, None)
        if parallelism is not None:
            os.environ[_PARALLELISM] = parallelism
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), behavior="isolated"), byte_level]
    )
    backend.decoder = decoders.ByteLevel()
    # It comes last, after the learned entries.
    backend.add_special_tokens([_mask_token()])
    # Offsets cover the whole token, spaces too: with trimming, a token of only spaces would lose its place.
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    return backend


def _repeated(counts: Mapping[str, int], byte_level: pre_tokenizers.ByteLevel) -> Iterator[str]:
    """Texts that hold each piece as often as it occurs, separated by spaces, in parts that threads can share."""
    part, num_words = [], 0
    for piece, count in counts.items():
        word = byte_level.pre_tokenize_str(piece)[0][0]
        # There is nothing to merge in a single byte, and the alphabet is given.
        while len(word) > 1 and count:
            taken = min(count, _PART_WORDS - num_words)
            part.append(f"{word} " * taken)
            num_words += taken
            count -= taken
            if num_words == _PART_WORDS:
                yield "".join(part)
                part, num_words = [], 0
    yield "".join(part)
    # The merges that follow are thousands of small steps, which threads would only slow down.
    os.environ[_PARALLELISM] = "false"


def _mask_token() -> AddedToken:
    """As in RoBERTa, the mask swallows the space before it."""
    return AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True)


def save_backend(backend: Tokenizer, directory: Path) -> None:
    """Write what `save_pretrained` of `train_tokenizer`'s tokenizer writes, without transformers.

    Args:
        backend: from `train_backend`.
        directory: made if missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"} | _ROLES
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def check_vocab_size(vocab_size: int) -> None:
    """Raise `BuildError` unless a vocabulary holds the 256 bytes and the special tokens."""
    smallest = 256 + len(SPECIAL_TOKENS) + 1
    if vocab_size < smallest:
        raise BuildError(f"--vocab-size is {vocab_size}; a byte-level vocabulary needs at least {smallest} entries")


def read_tokenizer(path_or_id: str | Path, **options) -> "PreTrainedTokenizerFast":
    """A tokenizer as its files are, without the checks of `load_tokenizer`; runs no code that lies beside them.

    Args:
        path_or_id: a directory or a hub id.
        **options: of `from_pretrained`, such as `local_files_only`.

    Raises:
        ValueError: there is none, or its files are damaged; the message begins with `path_or_id`.
    """
    from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    try:
        # A checkpoint of GraphMERT names code of its own, which AutoTokenizer would ask on the terminal to run.
        config, _ = PreTrainedConfig.get_config_dict(path_or_id, **options)
        if config.get("model_type") == "graphmert":
            return PreTrainedTokenizerFast.from_pretrained(path_or_id, **options)
        return AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=False, **options)
    # `tokenizers` raises Exception itself for a file that it cannot parse, transformers KeyError, TypeError and more.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path_or_id}: the tokenizer cannot be loaded ({type(error).__name__}: {reason}); its files must be there and "
            "whole"
        ) from error


def load_tokenizer(path_or_id: str) -> "PreTrainedTokenizerFast":
    """Load a tokenizer and check that chain graphs can be made with it.

    Args:
        path_or_id: a directory or a hub id.

    Raises:
        BuildError: it cannot be loaded, or `check_tokenizer` refuses it.
    """
    if looks_local(path_or_id) and not Path(path_or_id).expanduser().exists():
        raise BuildError(f"--tokenizer {path_or_id}: does not exist")
    try:
        tokenizer = read_tokenizer(path_or_id)
    except ValueError as error:
        raise BuildError(f"--tokenizer {error}") from error
    check_tokenizer(tokenizer, path_or_id)
    return tokenizer


def check_tokenizer(tokenizer, name: str) -> None:
    """Raise `BuildError` unless a tokenizer is fast, gives offsets and has the special tokens that pretraining needs."""
    if not getattr(tokenizer, "is_fast", False):
        raise BuildError(
            f"--tokenizer {name}: not a fast tokenizer, so it gives no character offsets; it needs a tokenizer.json"
        )
    for role, use in (
        ("mask", "masked-language modelling"),
        ("pad", "batches"),
        ("cls", "the start of a window"),
        ("sep", "the end of a window"),
    ):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise BuildError(f"--tokenizer {name}: has no {role} token, which {use} needs; set one and save it again")


def num_entries(directory: Path) -> int:
    """Entries of a saved tokenizer, added ones included."""
    return Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()


def tokenizer_sha256(directory: Path) -> str:
    """Hash of a saved tokenizer's `tokenizer.json`."""
    return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
