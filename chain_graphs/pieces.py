"""The pieces of code that a tokenizer's merges may not cross; see `tokenizer.py` for what was measured.

Apart from it, because processes that only use a tokenizer need not load what trains one.
"""

# Words that no name can be; a space beside them is theirs.
# Written as a tree and behind a look at the first letter, because every text is cut by it.
_KEYWORDS = (
    "(?=[acdefgilnorwy])(?:a(?:nd|ssert|s(?:ync)?|wait)|class|de[fl]|e(?:l(?:if|se)|xcept)|f(?:or|rom)|global|"
    "i(?:mport|[fns])|lambda|no(?:nlocal|t)|or|r(?:aise|eturn)|w(?:hile|ith)|yield)"
)
_WORD = r"[^\W\d_]+"
PIECES = "|".join(
    (
        rf"(?:(?<!\w)| ){_KEYWORDS}(?!\w) ?",
        rf"(?<=\w) {_WORD}",
        _WORD,
        r"\d+",
        r"_+",
        # Apart, because written types end with it: `list[int] = ...`.
        r"\]",
        r" ?[^\w\s\]]+ ?",
        r"\s*[\r\n]+[ \t]*",
        r"\s+",
    )
)
"""The pre-tokenizer's pattern; alternatives are tried in this order."""
