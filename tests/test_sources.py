"""Sources: what is read, what is left out and why; nothing here reaches the network."""

import errno
import itertools
import os
import zipfile
from pathlib import Path

import datasets
import pytest

from graphmert.chain_graphs import sources
from graphmert.chain_graphs.languages import decode, is_table, is_test_path
from graphmert.chain_graphs.sources import BuildError, ReadOptions, SkippedFile, SourceFile, parse_source

CODE = "def f(x):\n    return x\n"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def read(spec: str, **options):
    """Kept files as {path: project}, skipped files as {path: reason}."""
    items = list(parse_source(spec, ReadOptions(**options)).files())
    kept = {item.path: item.project for item in items if isinstance(item, SourceFile)}
    skipped = {item.path: item.reason for item in items if isinstance(item, SkippedFile)}
    assert len(kept) + len(skipped) == len(items)
    return kept, skipped


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("x = 'ä'\n".encode(), "x = 'ä'\n"),
        (b"\xef\xbb\xbfx = 1\n", "x = 1\n"),
        ("# -*- coding: latin-1 -*-\nx = 'ä'\n".encode("latin-1"), "# -*- coding: latin-1 -*-\nx = 'ä'\n"),
        (
            "#!/usr/bin/python\n# vim: fileencoding=cp1252\n'€'".encode("cp1252"),
            "#!/usr/bin/python\n# vim: fileencoding=cp1252\n'€'",
        ),
        (b"a = 1\r\nb = 2\rc = 3\n", "a = 1\nb = 2\nc = 3\n"),
        (b"", ""),
    ],
)
def test_decode(data, text):
    assert decode(data) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x = 1\0", "null bytes"),
        ("x = 'ä'".encode("latin-1"), "unknown or contradictory encoding"),
        (b"a = 1\nb = 2\nc = '\xe4'\n", "not utf-8 text"),
        (b"# coding: no-such\n", "unknown or contradictory encoding"),
        (b"# coding: rot13\n", "unknown or contradictory encoding"),
        (b"\xef\xbb\xbf# coding: latin-1\n", "unknown or contradictory encoding"),
        ("x = 1\n".encode("utf-16"), "null bytes"),
        (b"# coding: ascii\n\xff", "not ascii text"),
    ],
)
def test_not_text(data, reason):
    with pytest.raises(UnicodeError) as error:
        decode(data)
    assert str(error.value) == reason


def test_tables_are_told_from_code():
    rows = "".join(f"    '\\x{i % 256:02x}'     #  0x{i:02x} -> SOME CHARACTER\n" for i in range(200))
    assert is_table(f"decoding_table = (\n{rows})\n")
    assert is_table("topics = {" + "'key': 'a long text of a help page',\n" * 300 + "}")
    assert not is_table(CODE * 300)
    assert not is_table('"""' + "Documentation of a small module. " * 300 + '"""\n' + CODE * 20)
    assert not is_table("x = {'a': 1}\n")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tests/a.py", True),
        ("pkg/test/a.py", True),
        ("pkg/idle_test/a.py", True),
        ("pkg/test_a.py", True),
        ("pkg/a_test.py", True),
        ("conftest.py", True),
        ("pkg/testing/a.py", False),
        ("pkg/latest/a.py", False),
        ("unittest/case.py", False),
        ("attest.py", False),
        ("contest.py", False),
        ("", False),
    ],
)
def test_test_paths(path, expected):
    assert is_test_path(path) is expected


def test_directory_of_projects(tmp_path):
    write(
        tmp_path,
        {
            "one/a.py": CODE,
            "one/deep/b.py": CODE,
            "two/c.py": CODE,
            "top.py": CODE,
            "one/readme.md": "no code",
            "one/__pycache__/x.py": CODE,
            "one/.venv/y.py": CODE,
            "one/env/pyvenv.cfg": "",
            "one/env/lib/z.py": CODE,
            "two/empty.py": " \n\n",
            "two/null.py": b"x\0",
            "two/big.py": "x = 1\n" * 100,
            "two/tests/t.py": CODE,
        },
    )
    (tmp_path / "two" / "gone.py").symlink_to(tmp_path / "nowhere.py")
    kept, skipped = read(f"dir:{tmp_path}", max_file_bytes=500)
    assert kept == {"one/a.py": "one", "one/deep/b.py": "one", "two/c.py": "two", "top.py": tmp_path.name}
    assert skipped == {
        "two/big.py": "larger than 500 bytes (--max-file-bytes)",
        "two/empty.py": "empty",
        "two/gone.py": "cannot be read (FileNotFoundError)",
        "two/null.py": "null bytes",
        "two/tests/t.py": "test code (--include-tests keeps it)",
    }
    assert "two/tests/t.py" in read(f"dir:{tmp_path}", include_tests=True)[0]
    assert read(f"dir:{tmp_path}", min_file_chars=1000)[0] == {}
    assert set(read(f"dir:{tmp_path},project=single")[0].values()) == {tmp_path.name}
    assert read(f"dir:{tmp_path},project=children")[0]["top.py"] == "top"


def test_directories_that_are_not_entered_are_named(tmp_path, monkeypatch):
    write(tmp_path / "elsewhere", {"a.py": CODE})
    write(tmp_path / "code", {"one/a.py": CODE, "two/b.py": CODE, "two/shut/c.py": CODE, "zoo/d.py": CODE})
    for name in ("one/link", "top", "one/.hidden", "one/node_modules"):
        (tmp_path / "code" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "code" / "one" / "circle").symlink_to(tmp_path / "code")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith(("shut", "all")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    kept, skipped = read(f"dir:{tmp_path / 'code'}")
    assert kept == {"one/a.py": "one", "two/b.py": "two", "zoo/d.py": "zoo"}
    link = "link to a directory (not followed; give it as a source)"
    shut = "cannot be read (PermissionError)"
    assert skipped == {"one/circle": link, "one/link": link, "top": link, "two/shut": shut}
    (tmp_path / "all").mkdir()
    assert read(f"dir:{tmp_path / 'all'}") == ({}, {".": shut})


def test_files_that_cannot_be_examined_are_named_and_pipes_are_not_opened(tmp_path, monkeypatch):
    write(tmp_path, {"a.py": CODE, "b.py": CODE})
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "to_pipe.py").symlink_to("pipe.py")
    stat = Path.stat

    def refuse(path, **options):
        if path.name == "b.py":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    def refuse_bytes(path):
        refuse(path)
        return read_bytes(path)

    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse_bytes)
    kept, skipped = read(f"dir:{tmp_path}")
    assert set(kept) == {"a.py"} and skipped == {"b.py": "cannot be read (PermissionError)"}


def test_files_of_other_languages_are_counted(tmp_path):
    write(
        tmp_path, {"a.py": CODE, "b.java": "class B {}", "c/d.java": "class D {}", "e.go": "package e", "f.md": "text"}
    )
    source = parse_source(f"dir:{tmp_path}", ReadOptions())
    assert [item.path for item in source.files()] == ["a.py"]
    assert source.num_not_asked == {"java": 2, "go": 1} and source.num_files == 1
    source = parse_source(f"dir:{tmp_path}", ReadOptions(languages=("java", "go")))
    assert len(list(source.files())) == 3 and source.num_not_asked == {"python": 1}
    with zipfile.ZipFile(tmp_path / "demo.whl", "w") as archive:
        archive.writestr("demo/a.py", CODE)
        archive.writestr("demo/static/a.js", "f();")
    (tmp_path / "cache" / "wheels" / "demo-1").mkdir(parents=True)
    (tmp_path / "demo.whl").rename(tmp_path / "cache" / "wheels" / "demo-1" / "demo.whl")
    source = parse_source("pypi:demo==1", ReadOptions(cache_dir=tmp_path / "cache"))
    assert [item.path for item in source.files()] == ["demo/a.py"] and source.num_not_asked == {"javascript": 1}


def test_languages_that_are_not_read_have_no_remedy(tmp_path):
    datasets.Dataset.from_dict({"code": [CODE]}).to_parquet(tmp_path / "data.parquet")
    spec = f"hf:{tmp_path / 'data.parquet'},text_column=code,language="
    with pytest.raises(BuildError, match=r"language klingon is not read; choose from python, java, .*php$"):
        parse_source(spec + "Klingon", ReadOptions())
    with pytest.raises(BuildError, match="language java is not asked for; add --languages java"):
        parse_source(spec + "Java", ReadOptions())


@pytest.mark.parametrize("marker", ["setup.py", "pyproject.toml", "__init__.py"])
def test_directory_that_is_one_project(tmp_path, marker):
    write(tmp_path / "repo", {"src/a.py": CODE, "docs/b.py": CODE, marker: "x = 1\n"})
    assert set(read(f"dir:{tmp_path / 'repo'}")[0].values()) == {"repo"}
    assert read(f"dir:{tmp_path / 'repo'},project=children")[0]["src/a.py"] == "src"


def test_order_is_fixed_and_commas_in_paths_are_kept(tmp_path):
    write(tmp_path / "a,b", {f"{name}/{name}.py": CODE for name in "zyxab"})
    kept, _ = read(f"dir:{tmp_path / 'a,b'},project=children")
    assert list(kept) == sorted(kept) and len(kept) == 5


def test_single_file(tmp_path):
    write(tmp_path, {"a.py": CODE, "b.py": b"\0\1\2", "c.txt": "text"})
    assert read(f"dir:{tmp_path}/a.py")[0] == {"a.py": "a"}
    with pytest.raises(BuildError, match=r"b\.py is not text: null bytes"):
        read(f"dir:{tmp_path}/b.py")
    with pytest.raises(BuildError, match=r"c\.txt is not a directory nor a file of python"):
        read(f"dir:{tmp_path}/c.txt")


def test_standard_library():
    source = parse_source("stdlib", ReadOptions())
    items = list(itertools.islice(source.files(), 260))
    projects = {item.path: item.project for item in items if isinstance(item, SourceFile)}
    assert projects["argparse.py"] == "argparse"
    assert projects["asyncio/base_events.py"] == "asyncio"
    assert not any("site-packages" in item.path for item in items)
    assert source.describe()["version"].startswith("3.")


def make_wheel(directory: Path, name="demo", version="1.0") -> Path:
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "from .core import f\n")
        archive.writestr(f"{name}/core.py", CODE)
        archive.writestr(f"{name}/tests/test_core.py", CODE)
        archive.writestr(f"{name}/data.bin", b"\0")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_wheel_is_read_without_unpacking(tmp_path):
    downloads = []

    def download(requirement, directory):
        downloads.append(requirement)
        return make_wheel(directory)

    options = ReadOptions(cache_dir=tmp_path / "cache", download=download)
    source = parse_source("pypi:Demo==1.0", options)
    items = list(source.files())
    assert [(i.project, i.path) for i in items if isinstance(i, SourceFile)] == [
        ("demo", "demo/__init__.py"),
        ("demo", "demo/core.py"),
    ]
    assert [i.path for i in items if isinstance(i, SkippedFile)] == ["demo/tests/test_core.py"]
    described = source.describe()
    assert (described["version"], described["licence"], len(described["sha256"])) == ("1.0", "MIT", 64)
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["demo-1.0-py3-none-any.whl"]
    parse_source("pypi:demo==1.0", options)
    assert downloads == ["demo==1.0"]


def test_pip_download_from_a_local_folder(tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    make_wheel(tmp_path / "links")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    kept, _ = read("pypi:demo==1.0", cache_dir=tmp_path / "cache")
    assert kept == {"demo/__init__.py": "demo", "demo/core.py": "demo"}


def test_missing_release_and_damaged_wheel(tmp_path, monkeypatch):
    class Failed:
        returncode = 1
        stderr = "ERROR: Could not find a version\nERROR: No matching distribution found for demo==2.0\n"

    commands = []
    monkeypatch.setattr(sources.subprocess, "run", lambda command, **_: commands.append(command) or Failed)
    with pytest.raises(BuildError, match=r"pypi:demo==2\.0: pip found no wheel \(No matching .* dir:PATH"):
        parse_source("pypi:demo==2.0", ReadOptions(cache_dir=tmp_path))
    assert len(commands) == 5 and all("--only-binary=:all:" in command for command in commands)

    def download(_, directory):
        (directory / "demo.whl").write_bytes(b"cut short")
        return directory / "demo.whl"

    with pytest.raises(BuildError, match="is not a wheel"):
        parse_source("pypi:demo==3.0", ReadOptions(cache_dir=tmp_path, download=download))


@pytest.mark.parametrize("spec", ["demo", "demo>=1", "demo==1.*", "demo==1,!=2", "demo @ file:///x.whl"])
def test_versions_must_be_pinned(spec):
    with pytest.raises(BuildError, match="pin one version, pypi:demo==VERSION"):
        parse_source(f"pypi:{spec}", ReadOptions(download=None))


def test_hugging_face_dataset(tmp_path):
    rows = {
        "content": [CODE, CODE + "\n", "fn main() {}", None, "bad \ud800"[:4]],
        "repo_name": ["a/b", "c/d", "a/b", "a/b", None],
        "path": ["x.py", "y.py", "z.rs", "w.py", None],
        "language": ["Python", "python", "Rust", "Python", None],
    }
    data = datasets.Dataset.from_dict(rows)
    data.to_parquet(tmp_path / "data.parquet")
    data.to_json(tmp_path / "data.jsonl")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "disk")
    for name in ("data.parquet", "data.jsonl", "disk"):
        kept, skipped = read(f"hf:{tmp_path / name},text_column=content")
        assert kept == {"x.py": "a/b", "y.py": "c/d", "row-4.py": f"{tmp_path / name}#4"}
        assert skipped == {"z.rs": "language rust is not read", "w.py": "column content holds no text"}
    with pytest.raises(BuildError, match="add ,text_column=NAME; the columns are content, repo_name, path, language"):
        read(f"hf:{tmp_path / 'data.parquet'}")
    with pytest.raises(BuildError, match="no column 'code'; the columns are content"):
        read(f"hf:{tmp_path / 'disk'},text_column=code")
    with pytest.raises(BuildError, match="no split 'test'; the splits are train"):
        read(f"hf:{tmp_path / 'disk'},text_column=content,split=test")
    with pytest.raises(BuildError, match="does not exist"):
        read(f"hf:{tmp_path / 'nowhere'},text_column=content")


def test_rows_without_projects_are_projects_with_a_warning(tmp_path):
    datasets.Dataset.from_dict({"code": [CODE, "x = 1\n"]}).to_csv(tmp_path / "data.csv")
    source = parse_source(f"hf:{tmp_path / 'data.csv'},text_column=code", ReadOptions())
    assert len({item.project for item in source.files()}) == 2
    assert "every row is its own project" in source.warning and source.describe()["warning"] == source.warning


@pytest.mark.parametrize("spec", ["ftp:x", "stdlib:x", "dir:", "pypi:", "hf:", "", "/some/path"])
def test_unknown_source(spec):
    with pytest.raises(BuildError, match=r"unknown source .*: use stdlib, dir:PATH"):
        parse_source(spec, ReadOptions())


def test_missing_directory():
    with pytest.raises(BuildError, match="source dir:/nowhere/at/all: /nowhere/at/all does not exist"):
        parse_source("dir:/nowhere/at/all", ReadOptions())
    with pytest.raises(BuildError, match="project=many is not one of auto, single, children"):
        parse_source("dir:/,project=many", ReadOptions())
