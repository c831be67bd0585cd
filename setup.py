"""Packaging: the repository root is the package `graphmert`, so the modeling files can travel to the Hub as they are."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.M).group(1)

setup(
    name="graphmert",
    version=VERSION,
    description="GraphMERT for code: graph-enhanced pretraining of RoBERTa encoders for Hugging Face Transformers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "graphmert",
        "graphmert.code_graph",
        "graphmert.chain_graphs",
        "graphmert.kg_extraction",
        "graphmert.configs",
    ],
    package_dir={"graphmert": "."},
    package_data={"graphmert.configs": ["*.yaml", "corpora/*.yaml"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.17",
        "accelerate>=1.10",
        "datasets>=4.0",
        "evaluate>=0.4.6",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "tree-sitter>=0.25",
        "tree-sitter-python>=0.25",
        "tree-sitter-java>=0.23.5",
        "tree-sitter-javascript>=0.25",
        "tree-sitter-go>=0.25",
        "tree-sitter-ruby>=0.23.1",
        "tree-sitter-php>=0.24",
        "scikit-learn>=1.5",
        "matplotlib>=3.9",
        "pyyaml>=6.0",
        "tqdm>=4.66",
    ],
    extras_require={"kg": ["networkx>=3.3", "rdflib>=7.1"], "ray": ["ray[data]>=2.50"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
