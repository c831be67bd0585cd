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
    entry_points={
        "console_scripts": [
            "graphmert-build = graphmert.chain_graphs.build:main",
            "graphmert-pretrain = graphmert.run_pretraining:main",
            "graphmert-extract = graphmert.kg_extraction.__main__:main",
            "graphmert-embed = graphmert.embed_code:main",
        ]
    },
    python_requires=">=3.11",
    packages=[
        "graphmert",
        "graphmert.code_graph",
        "graphmert.chain_graphs",
        "graphmert.kg_extraction",
        "graphmert.tasks",
        "graphmert.ablations",
        "graphmert.configs",
    ],
    package_dir={"graphmert": "."},
    # The metrics are scripts that `evaluate` loads from their path, not modules.
    package_data={
        "graphmert": ["metrics/*/*.py"],
        "graphmert.configs": [
            "*.yaml",
            "accelerate/*.yaml",
            "corpora/*.yaml",
            "ablations/*.yaml",
            "ablations/rows/*.yaml",
        ],
    },
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
        "scipy>=1.13",
        "pandas>=2.2",
        "bm25s>=0.2.7",
        "matplotlib>=3.9",
        "pyyaml>=6.0",
        "tqdm>=4.66",
    ],
    extras_require={
        "kg": ["networkx>=3.3", "rdflib>=7.1"],
        "ray": ["ray[data]>=2.50"],
        "sentence-transformers": ["sentence-transformers>=6.0"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
