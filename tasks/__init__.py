"""Downstream evaluations of a checkpoint, one per file: `python -m graphmert.tasks NAME --model DIR`.

    base.py          what every task is made of: arguments, the opened checkpoint and corpora, the report
    queries.py       windows with a question in them
    type_queries.py  hidden types and their places; type_candidates.py: what they are chosen from; type_scoring.py: by the
                     checkpoint, type_fine_tuning.py: after fine-tuning, type_signs.py: by signs of use, type_ranker.py:
                     together with a table
    leaf_order.py    whether the order of leaves tells a hidden relation
    relation_table.py, tail_table.py  what a table of the training corpus says; log_linear.py: several opinions made one
    corpora.py       test and training corpora; refuses a test project that stands in the training corpus
    functions.py     functions of files and of CodeSearchNet's own; excerpts.py: with their facts, names masked
    retrieval.py     texts as windows, embeddings, pools, BM25; fine_tuning.py: contrastive fine-tuning

Names are imported when they are first used, so that `--help` loads neither torch nor transformers.
"""

import importlib

TASKS: dict[str, str] = {
    "masked_language_model": "masked tokens of unseen projects, with controls for what the leaves give away",
    "relation_prediction": "masked relations of unseen projects beside lookups",
    "tail_prediction": "masked tails of unseen projects beside lookups",
    "type_prediction": "types of parameters and results, hidden from text and graph",
    "code_search": "functions found by their docstrings, names masked or not, beside BM25",
    "clone_retrieval": "the same function in another version of its package, MAP@R",
    "variable_misuse": "which local name belongs at a use, by the LM head",
}
"""Every task's module and what it measures, in one line."""

_EXPORTS = {"base": ["NotApplicable", "Task", "TaskArguments", "TaskContext", "TaskResult", "run_task", "run_tasks"]}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["TASKS", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return __all__
