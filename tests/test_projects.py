"""`--across-files`: what another file of the project declares reaches the rows, whatever the number of processes."""

import pickle

import pytest
from tiny import tiny_tokenizer

from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from graphmert.chain_graphs.manifest import load_chain_graphs
from graphmert.chain_graphs.projects import ProjectExtractor, index_path, index_projects
from graphmert.code_graph import RELATION_IDS, extract

SHAPES = "class Shape(Base):\n    size: int = 0\n\ndef area() -> float:\n    return 1.0\n"
USE = "from .shapes import Shape, area\n\ndef main(shape: Shape):\n    area()\n    return shape.size\n"


def staged(*names):
    return [
        {"project": project, "path": f"{project}/{name}.py", "language": "python", "code": code}
        for project in names
        for name, code in (("__init__", "x = 1\n"), ("shapes", SHAPES), ("use", USE))
    ]


def test_extractor_sees_the_file_s_own_project_only(tmp_path):
    files = staged("one", "two")
    files[4]["code"] = SHAPES.replace("float", "int")
    mixed = [*files[0:2], *files[3:6], files[2], files[5] | {"project": "alone"}]
    extractor = pickle.loads(pickle.dumps(index_projects(lambda: iter(mixed), tmp_path / "x")))

    def returned(file):
        return {t.tail for t in extractor.of_file(file).triples if t.relation == "returns" and t.is_use}

    assert returned(files[2]) == {"float"}
    assert returned(files[5]) == {"int"}
    assert returned(files[5] | {"project": "alone"}) == set()
    assert extractor(USE, "python") == extract(USE)
    assert not index_path(tmp_path / "x", "alone").exists()


def test_index_is_written_once_and_whole(tmp_path):
    files = staged("one", "two")
    index_projects(lambda: iter(files), tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(kept) == {index_path(tmp_path, name).name for name in ("one", "two")}
    index_path(tmp_path, "one").write_bytes(b"[]")
    (tmp_path / "half.writing").write_bytes(b"")
    index_projects(lambda: iter(files), tmp_path)
    assert index_path(tmp_path, "one").read_bytes() == b"[]"
    assert isinstance(ProjectExtractor(tmp_path).of_file(files[5]).triples, list)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("across")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for file in staged("one", "two"):
        path = tmp_path / "src" / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["code"].replace("x = 1", f"x = '{file['project']}'").replace("main", file["project"]))
    files = {"two": "int"}
    for project, kind in files.items():
        path = tmp_path / "src" / project / "shapes.py"
        path.write_text(path.read_text().replace("float", kind))

    def build(name, **options):
        arguments = BuildArguments(
            [f"dir:{tmp_path / 'src'}"], str(tmp_path / name), 0.5, tokenizer=str(tmp_path / "tokenizer"), **options
        )
        build_chain_graphs(arguments)
        return load_chain_graphs(tmp_path / name)

    return build("alone"), build("across", across_files=True), build("processes", across_files=True, num_proc=2)


def test_rows_gain_what_other_files_declare(built):
    def facts(loaded, relation):
        splits, _, tokenizer = loaded
        found = set()
        for split in splits.values():
            for row in split:
                for k, number in enumerate(row["anchor_relation"]):
                    first = row["anchor_start"][k]
                    last = first + row["anchor_length"][k] - 1
                    head = row["code"][row["char_starts"][first] : row["char_ends"][last]].strip()
                    leaf = row["leaf_ids"][row["leaf_offsets"][k] : row["leaf_offsets"][k + 1]]
                    if number == RELATION_IDS[relation] and row["path"].endswith("use.py"):
                        found.add((row["project"], head, tokenizer.decode(leaf).strip()))
        return found

    alone, across, _ = built
    assert facts(alone, "returns") == set()
    assert facts(across, "returns") == {("one", "area", "float"), ("two", "area", "int")}
    assert facts(across, "inherits") == {("one", "Shape", "Base"), ("two", "Shape", "Base")}
    assert ("one", "size", "int") in facts(across, "has_type")
    assert across[1]["arguments"]["across_files"] is True


def test_processes_change_nothing(built):
    _, (one, _, _), (two, _, _) = built
    assert {name: split.to_dict() for name, split in one.items()} == {n: s.to_dict() for n, s in two.items()}
