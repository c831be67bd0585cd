"""GraphMERT for code: graph-enhanced pretraining of RoBERTa-style encoders.

Names are imported when they are first used, so that reading code graphs never loads torch.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "configuration_graphmert": ["GraphMertConfig"],
    "modeling_graphmert": [
        "GraphMertForMaskedLM",
        "GraphMertForPreTraining",
        "GraphMertForSequenceClassification",
        "GraphMertModel",
        "GraphMertPreTrainedModel",
    ],
    "processing_graphmert": ["GraphMertProcessor"],
    "embedding_files": ["load_encoder", "save_for_sentence_transformers"],
    "collator": ["GraphMertCollator"],
    "trainer_graphmert": ["GraphMertTrainer", "GraphMertTrainingArguments"],
    "code_graph": ["CodeGraph", "Triple", "extract"],
    "chain_graphs": ["WindowDataset", "load_chain_graphs"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return __all__
