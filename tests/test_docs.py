"""The examples of the documentation run, and print what the pages say."""

import ast
import re

import pytest
import torch
from docs_runner import ROOT, blocks_of, entry_points, run_page
from tiny import TEXT
from tiny_checkpoint import save_tiny_checkpoint

# Pages whose examples are run. A page is added here when it has any.
PAGES = ["EMBEDDINGS.md", "COMMANDS.md"]

PROJECT = """
import os


class Cart:
    rows: list = []

    def add(self, row):
        self.rows.append(row)

    def total(self) -> int:
        return sum(row.price for row in self.rows)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with what the pages speak of: `runs/small`, `project`, and `code`, a folder of projects."""
    directory = tmp_path_factory.mktemp("docs")
    sizes = {"num_roots": 128, "leaves_per_root": 7, "max_position_embeddings": 1026}
    # The width of the model that `make pretrain` leaves there.
    save_tiny_checkpoint(directory / "runs" / "small", hidden_size=128, num_hidden_layers=1, **sizes)
    (directory / "project").mkdir()
    (directory / "project" / "cart.py").write_text(PROJECT)
    (directory / "project" / "files.py").write_text("def read(path: str):\n    return open(path).read()\n")
    for number, name in enumerate(("alpha", "beta", "gamma", "delta")):
        (directory / "code" / name).mkdir(parents=True)
        text = "\n".join(TEXT.replace("load_file", f"{name}_{index}") for index in range(2 + number))
        (directory / "code" / name / f"{name}.py").write_text(PROJECT + text)
    return directory


@pytest.mark.parametrize("page", PAGES)
def test_examples(page, workplace, monkeypatch):
    if page == "EMBEDDINGS.md":
        pytest.importorskip("sentence_transformers")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run_page(ROOT / "docs" / page, workplace, monkeypatch) >= 2
    finally:
        torch.set_num_threads(before)


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_entry_points_are_functions():
    points = entry_points()
    assert {"graphmert-build", "graphmert-pretrain", "graphmert-extract", "graphmert-embed"} <= set(points)
    for name, (module, function) in points.items():
        file = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if name == "graphmert-extract" and not file.parent.exists():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, module


PAGE = """
```python
x = 2
print(x)
```

prints

```text
{said}
```

<!-- not run: an example -->
```python
raise SystemExit(3)
```

```console
$ echo one \\
   two
$ {command}
```

```text
one...
```

```yaml
not: run
```
"""


def test_the_runner_notices(tmp_path, monkeypatch):
    page = tmp_path / "PAGE.md"
    page.write_text(PAGE.format(said="2", command="true"))
    assert [(block.language, block.line) for block in blocks_of(page.read_text())] == [("python", 2), ("console", 18)]
    assert run_page(page, tmp_path, monkeypatch) == 2
    page.write_text(PAGE.format(said="3", command="true"))
    with pytest.raises(AssertionError, match=r"PAGE\.md, line 2 prints\n2"):
        run_page(page, tmp_path, monkeypatch)
    page.write_text(PAGE.format(said="2", command="false"))
    with pytest.raises(AssertionError, match="line 18: false"):
        run_page(page, tmp_path, monkeypatch)
    page.write_text(PAGE.format(said="2", command="graphmert-embed --query x"))
    with pytest.raises(AssertionError, match="ended with 2\ngraphmert-embed: error: no model"):
        run_page(page, tmp_path, monkeypatch)
