"""Settings that every test shares: two threads, or one in each of several processes, and no network."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

# Code of saved directories is copied here before it runs, not into the user's cache; read when transformers is imported.
_modules_cache = tempfile.TemporaryDirectory(prefix="graphmert-modules-")
os.environ.setdefault("HF_MODULES_CACHE", _modules_cache.name)
