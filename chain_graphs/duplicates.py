"""Near-duplicates: files that repeat another but for small edits, found by MinHash before anything is split.

Pure functions of texts and numbers; touches no file. Memory and time grow linearly with the number of files.
"""

import re
import zlib
from collections import defaultdict

import numpy as np

NUM_HASHES = 128
# A pair of files at the threshold must meet in some band (agree in all its rows) with this probability.
_RECALL = 0.99
SHINGLE_WORDS = 5
# Files of fewer words say too little to call one a repetition of another; equal ones are found by their text.
MIN_WORDS = 20
# A file is compared with so many of those before it in each band's bucket.
_MAX_COMPARISONS = 20
_CHUNK = 512

_WORDS = re.compile(r"\w+")
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)
# Affine permutations of 32-bit numbers; an odd factor makes them one to one. (The scheme of datasketch 2, which would
# load SciPy into every worker process for the sake of these lines; a test holds the two against each other.)
_FACTORS, _SHIFTS = np.random.RandomState(1).randint(0, 1 << 32, (2, NUM_HASHES), dtype=np.uint32)
_FACTORS |= np.uint32(1)


def signature(text: str) -> np.ndarray:
    """MinHash signature of a text's set of word 5-grams; spaces and punctuation do not count.

    Args:
        text: a file of code.

    Returns:
        uint32 array `(NUM_HASHES,)`; all zeros for a text of fewer than `MIN_WORDS` words. The share of equal entries of
        two signatures estimates the Jaccard similarity of their sets.
    """
    words = _WORDS.findall(text)
    if len(words) < MIN_WORDS:
        return np.zeros(NUM_HASHES, dtype=np.uint32)
    number_of = {word: zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in set(words)}
    numbers = np.fromiter(map(number_of.__getitem__, words), dtype=np.uint64, count=len(words))
    count = len(words) - SHINGLE_WORDS + 1
    shingles = np.zeros(count, dtype=np.uint64)
    for position, multiplier in enumerate(_MULTIPLIERS):
        shingles += (numbers[position : position + count] + np.uint64(position + 1)) * multiplier
    shingles = np.unique(((shingles ^ (shingles >> np.uint64(29))) * _MULTIPLIERS[0]) >> np.uint64(32)).astype(
        np.uint32
    )
    result = np.full(NUM_HASHES, 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, len(shingles), _CHUNK):
        permuted = shingles[start : start + _CHUNK, None] * _FACTORS + _SHIFTS
        np.minimum(result, permuted.min(axis=0), out=result)
    return result


def near_duplicates(signatures: np.ndarray, threshold: float) -> dict[int, int]:
    """Which files to leave out: each that resembles an earlier one that stays.

    Args:
        signatures: uint32 array `(files, NUM_HASHES)`, from `signature`, in the order of the corpus.
        threshold: estimated Jaccard similarity from which on a file counts as a repetition, in [0.5, 1].

    Returns:
        For each file to leave out, the earliest file that stays and that it repeats.
    """
    earlier: dict[int, set[int]] = defaultdict(set)
    usable = np.flatnonzero(signatures.any(axis=1))
    # The longest bands that find such pairs: they bring the fewest others together.
    rows = next(r for r in (8, 4, 2, 1) if 1 - (1 - threshold**r) ** (NUM_HASHES // r) >= _RECALL)
    multipliers = np.cumprod(np.full(rows, _MULTIPLIERS[0]), dtype=np.uint64)
    for band in range(NUM_HASHES // rows):
        block = signatures[usable, band * rows : (band + 1) * rows].astype(np.uint64)
        # Two different rows may share a number, but what is compared in the end is the whole signature.
        _, bucket = np.unique((block * multipliers).sum(axis=1, dtype=np.uint64), return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        starts = np.flatnonzero(np.diff(bucket[order], prepend=-1))
        sizes = np.diff(np.append(starts, len(order)))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            members = usable[order[start : start + size]].tolist()
            for position, member in enumerate(members[1:], start=1):
                earlier[member].update(members[: min(position, _MAX_COMPARISONS)])
    repeats: dict[int, int] = {}
    for member in sorted(earlier):
        for other in sorted(earlier[member]):
            if other not in repeats and np.mean(signatures[member] == signatures[other]) >= threshold:
                repeats[member] = other
                break
    return repeats
