"""Leafy chain graphs: corpora -> datasets on disk -> windows with leaves.

    sources.py, splitting.py   where code comes from, what is left out and why; which project goes to which split
    tokenizer.py               a byte-level BPE whose tokens share their edges with names
    encoding.py, pieces.py     tokens of whole texts, each distinct piece encoded once
    linking.py, rows.py        code + code graph + tokenizer -> one sparse row per file, in processes
    manifest.py, build.py      what was built from what; the command `python -m graphmert.chain_graphs.build`
    projects.py                imports across the files of a project (--across-files)
    show.py, show_page.py      one file's graph in the terminal or as a page: `python -m graphmert.chain_graphs.show`
    windows.py, layout.py      rows -> windows of root tokens with their leaves
    reading.py                 texts in memory -> windows, for a model in use

Names are imported when they are first used, so that `--help` and the sources load neither torch nor transformers.
"""

import importlib

_EXPORTS = {
    "linking": ["link_file"],
    "manifest": ["load_chain_graphs"],
    "windows": ["WindowDataset"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return __all__
