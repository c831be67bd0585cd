"""The README's example prints what the README says."""

import re
import subprocess
import sys
from pathlib import Path

from tiny import tiny_tokenizer

from graphmert import GraphMertConfig, GraphMertForPreTraining

README = Path(__file__).resolve().parent.parent / "README.md"


def test_example_runs_as_printed(tmp_path):
    text = README.read_text(encoding="utf-8")
    example, printed = re.search(r"```python\n(.*?)```\s*prints\s*```text\n(.*?)```", text, re.S).groups()
    tokenizer = tiny_tokenizer()
    # The width of the model that `make pretrain` leaves there.
    config = GraphMertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    GraphMertForPreTraining(config).save_pretrained(tmp_path / "runs" / "small")
    tokenizer.save_pretrained(tmp_path / "runs" / "small")
    command = [sys.executable, "-c", example]
    # Without input, so that a question to the user is an error.
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert result.stdout == printed, result.stderr


def test_tree_names_files_that_exist():
    tree = README.read_text(encoding="utf-8").split("## The tree")[1].split("## Licence")[0]
    names = re.findall(r"^    (\S+)", tree, re.M)
    assert len(names) > 10
    assert [name for name in names if not (README.parent / name).exists()] == []
