"""The viewer: literal text for a small file, and a page that shows every token and fact and loads nothing."""

import re
from html.parser import HTMLParser

import pytest
from tiny import tiny_tokenizer

from graphmert.chain_graphs import show
from graphmert.chain_graphs.show_page import render_html

CODE = """import json as j

def load_file(path: str, mode) -> Reader:
    text = path
    return j.parse(text)  # <b>ü
"""

TEXT = """\
{title}: 1 windows, 8 facts placed, 0 cut, 0 without room, 89 nodes per window

== window 1: 62 tokens, 8 facts
    1 | import json as j
      |     j  imports> json
    2 |
    3 | def load_file(path: str, mode) -> Reader:
      |     load_file  calls> json.parse *  returns> Reader
      |     path  has_type> str  <has_parameter load_file
      |     mode  <has_parameter load_file
    4 |     text = path
      |     text  <declares load_file  <flows_to path
    5 |     return j.parse(text)  # <b>ü
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "demo.py"
    path.write_text(CODE, encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_text(file, tokenizer, capsys):
    assert show.main([str(file), "--tokenizer", tokenizer]) == 0
    assert capsys.readouterr().out == TEXT.format(title=file) + "\n"


def test_windows_and_edges_of_tokens(file, tokenizer):
    view = show.view_file(file, tokenizer, num_roots=24)
    assert "".join(CODE[a:b] for w in view.windows for a, b in w.tokens) == CODE
    assert len(view.windows) > 1
    text = show.render_text(view, only=2, show_tokens=True, width=40)
    assert "== window 2" in text
    assert "== window 1" not in text
    assert max(map(len, text.split("\n"))) <= 40
    text = show.render_text(view, only=2, show_tokens=True)
    marked = "".join(line[8:] for line in text.split("\n") if re.match(r" +\d+ \|", line))
    assert marked.replace("¦", "") == "".join(CODE[a:b] for a, b in view.windows[1].tokens).replace("\n", "")
    assert marked.count("¦") > 3


class Page(HTMLParser):
    """Text of the code lines and of the facts, and every attribute."""

    def __init__(self, page):
        super().__init__()
        self.tokens, self.facts, self.attributes, self.open = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.attributes.append((tag, attributes))
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if "data-t" in attributes:
            self.tokens.append("")
        if "data-r" in attributes:
            self.facts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "code" in self.open:
            self.tokens[-1] += data
        elif "section" in self.open and "span" in self.open:
            self.facts[-1] += data


def test_page_shows_every_token_and_fact(file, tokenizer):
    view = show.view_file(file, tokenizer)
    text = render_html(view)
    page = Page(text)
    assert page.tokens == [CODE[a:b].replace("\n", "") for a, b in view.windows[0].tokens]
    assert len(page.facts) == len(view.windows[0].facts) == 8
    assert {"path has_type> str", "load_file calls> json.parse", "text <flows_to path"} <= set(page.facts)
    # Nothing is loaded: no addresses, no sources, no imports of style.
    assert not any({"src", "href", "action"} & set(attributes) for _, attributes in page.attributes)
    assert not re.search(r"https?:|@import|url\(|fetch\(", text)


def test_a_file_in_a_dataset_is_shown_as_it_stands_there(tmp_path, tokenizer, capsys):
    from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs

    for project in ("one", "two"):
        (tmp_path / "src" / project).mkdir(parents=True)
        (tmp_path / "src" / project / f"{project}.py").write_text(CODE.replace("mode", project), encoding="utf-8")
    output = str(tmp_path / "data")
    build_chain_graphs(BuildArguments([f"dir:{tmp_path / 'src'}"], output, 0.5, tokenizer=tokenizer))
    assert show.main(["two.py", "--dataset", output]) == 0
    shown = capsys.readouterr().out
    assert "two  <has_parameter load_file" in shown
    assert "text  <declares load_file  <flows_to path" in shown
    page = tmp_path / "page.html"
    assert show.main(["one/one.py", "--dataset", output, "--html", str(page)]) == 0
    assert "one" in "".join(Page(page.read_text(encoding="utf-8")).tokens)
    assert show.main(["three.py", "--dataset", output]) == 2
    assert "0 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.py", b"", "is empty"),
        ("x.py", b"\xff\xfe\x00", "is not text"),
        ("x.txt", b"a = 1\n", "is not read"),
        ("x.py", None, "cannot be read"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert show.main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "2"], "--window 2: "),
        (["--window", "0"], "has 1 windows; name one from 1 to 1"),
        (["--window", "-3"], "--window -3: "),
        (["--html", "OUT", "--window", "1"], "--window and --html"),
        (["--html", "OUT", "--tokens"], "--tokens and --html"),
    ],
)
def test_windows_that_are_not_shown_are_refused(file, tokenizer, tmp_path, capsys, options, message):
    page = tmp_path / "page.html"
    assert show.main([str(file), "--tokenizer", tokenizer, *(str(page) if o == "OUT" else o for o in options)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not page.exists()


@pytest.mark.parametrize("option", [["--nonsense"], ["--num-roots", "many"]])
def test_wrong_options_are_one_line(file, capsys, option):
    with pytest.raises(SystemExit) as stop:
        show.main([str(file), *option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert option[0] in error
    assert error.count("\n") == 1


def test_without_a_tokenizer_one_is_made(file, capsys):
    assert show.main([str(file)]) == 0
    assert "text  <flows_to path" in capsys.readouterr().out
