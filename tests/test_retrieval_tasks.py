"""Code search, clone retrieval and variable misuse on tiny corpora and a tiny checkpoint."""

import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from graphmert.chain_graphs.linking import LeafEncoder
from graphmert.chain_graphs.manifest import load_chain_graphs
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.modeling_graphmert import GraphMertForPreTraining
from graphmert.tasks.base import TaskArguments, TaskContext, run_task
from graphmert.tasks.clone_retrieval import chance_map_at_r
from graphmert.tasks.excerpts import cut_excerpts
from graphmert.tasks.fine_tuning import ContrastiveSettings, contrastive_loss, fine_tune
from graphmert.tasks.functions import dataset_functions, read_functions, searchable
from graphmert.tasks.queries import without_facts
from graphmert.tasks.retrieval import (
    TextWindows,
    bm25_scores,
    chance,
    deal_pools,
    embed,
    jaccard_scores,
    plain_excerpt,
    score_pools,
    subwords,
)
from graphmert.tasks.variable_misuse import (
    HOLE,
    Site,
    _with_holes,
    find_sites,
    judge,
    name_scores,
    site_windows,
    widened,
    without_hole,
)

NOUNS = {"train": ["apple", "bread", "candle"], "test": ["river", "stone"]}
FUNCTION = '''
    def {verb}_{noun}(self, path: str, limit: int) -> list:
        """{upper} every {noun} of the {verb} list."""
        items = {verb}_all(path, "{noun}")
        result = []
        for item in items[:limit]:
            result.append(item.{noun})
        count = len(result) + limit
        self.{noun}_count = count
        return result
'''
VERBS = ["load", "store", "merge", "print"]


def module(noun: str, change: str = "") -> str:
    parts = [FUNCTION.format(verb=verb, upper=verb.title(), noun=noun) for verb in VERBS]
    text = f"from {noun}_tools import load_all\n\n\nclass {noun.title()}Box(Base):\n" + "".join(parts)
    return text.replace("result = []", f"result = []\n        {change}") if change else text


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of a training corpus, a test corpus and checkpoints with and without leaves."""
    root = tmp_path_factory.mktemp("tasks")
    tokenizer = None
    for name, nouns in NOUNS.items():
        for noun in nouns:
            (root / name / noun).mkdir(parents=True)
            (root / name / noun / "code.py").write_text(module(noun), encoding="utf-8")
        build_chain_graphs(
            BuildArguments(
                [f"dir:{root / name},project=children"],
                str(root / f"{name}.data"),
                0.34,
                tokenizer=tokenizer,
                vocab_size=600,
                near_duplicates=0,
            )
        )
        tokenizer = str(root / "train.data" / "tokenizer")
    vocabulary = load_chain_graphs(root / "train.data")[2]
    for name, leaves in (("graph", 4), ("plain", 0)):
        torch.manual_seed(0)
        config = GraphMertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_roots=64,
            leaves_per_root=leaves,
            max_position_embeddings=400,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            relation_dropout=0.0,
            pad_token_id=vocabulary.pad_token_id,
        )
        model = GraphMertForPreTraining(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        vocabulary.save_pretrained(root / name)
        shutil.copy(root / "train.data" / "manifest.json", root / name)
    return root


def context_of(places, model: str = "graph", **values) -> TaskContext:
    arguments = TaskArguments(
        str(places / model), str(places / "test.data"), str(places / "train.data"), batch_size=4, **values
    )
    return TaskContext(arguments, show_progress=False)


def pairs_of(context, corpus=None):
    functions, _ = searchable(dataset_functions((corpus or context.training).rows, False))
    return functions, cut_excerpts(functions, 500)


def test_subwords_and_lexical_scores():
    assert subwords("def loadFile2(self, file_name): HTTPServer ü") == [
        "def", "load", "file", "2", "self", "file", "name", "http", "server", "ü",
    ]  # fmt: skip
    texts = ["load_file(path)", "storeFile(path)", "unrelated"]
    scores = bm25_scores(texts, ["load the file", "nothing of it"])
    assert scores.shape == (2, 3) and scores[0].argmax() == 0 and scores[0, 1] > scores[0, 2] == 0
    assert (scores[1] == 0).all()
    similar = jaccard_scores(texts)
    assert similar[0, 1] == pytest.approx(2 / 4) and similar[0, 2] == 0 and np.allclose(np.diag(similar), 1)


def test_pools_and_their_scores():
    pools = deal_pools(10, 4, 3, np.random.default_rng(0))
    assert len(pools) == 6 and all(len(set(pool.tolist())) == 4 for pool in pools)
    assert not set(pools[0]) & set(pools[1]) and not np.array_equal(pools[0], pools[2])
    assert [len(pool) for pool in deal_pools(3, 1000, 2, np.random.default_rng(0))] == [3, 3]
    # Query q is ranked second by all but query 0, which is first.
    scores = np.zeros((10, 10))
    np.fill_diagonal(scores, 1)
    for query in range(1, 10):
        for pool in pools:
            if query in pool:
                scores[query, next(other for other in pool if other != query)] = 2
    figures, spread, reciprocal = score_pools(lambda pool: scores[np.ix_(pool, pool)], pools[:2], 10)
    seen = np.concatenate(pools[:2])
    assert np.isnan(reciprocal[[i for i in range(10) if i not in seen]]).all()
    assert figures["mrr"] == pytest.approx(reciprocal[seen].mean()) and figures["recall_at_10"] == 1
    assert reciprocal[seen[seen != 0]] == pytest.approx(0.5) and spread["mrr"] >= 0
    # The expectation of a random order, against drawing one.
    rng = np.random.default_rng(0)
    ranks = np.array([rng.permutation(50)[0] + 1 for _ in range(20000)])
    expected = chance(50)
    assert expected["mrr"] == pytest.approx(np.mean(1 / ranks), abs=0.005)
    assert expected["recall_at_10"] == pytest.approx(np.mean(ranks <= 10), abs=0.02)


def test_windows_with_leaves_with_context_and_bare(places):
    context = context_of(places)
    functions, excerpts = pairs_of(context)
    graph, around, bare = (TextWindows(context, excerpts, 2, extra) for extra in ("graph", "context", "none"))
    assert len(graph) == len(around) == len(bare) > len(excerpts) and graph.num_cut == bare.num_extra == 0
    assert TextWindows(context, excerpts, 1, "graph").num_cut == len(graph) - len(excerpts)
    assert (graph.text_of == around.text_of).all() and graph.num_texts == len(functions)
    # As many tokens of context as there are leaves, wherever the file has so much text.
    assert graph.num_extra == around.num_extra > len(graph)
    assert (graph.lengths == around.lengths).all()
    for index in range(len(bare)):
        inputs, _ = bare.batch(np.array([index]), True)
        own = inputs["input_ids"][0].tolist()
        for texts, extra in ((graph, True), (graph, False), (around, True), (around, False)):
            found, mask = texts.batch(np.array([index]), extra)
            ids = found["input_ids"][0]
            assert ids[mask[0].bool()].tolist() == own
            assert ids.shape[0] == (texts.lengths[index] if extra else len(own))
        inside, mask = around.batch(np.array([index]), True)
        decoded = context.tokenizer.decode(inside["input_ids"][0][1:-1])
        assert decoded in functions[graph.text_of[index]].file
    # Some windows of a batch with their leaves, some without.
    inputs, _ = graph.batch(np.arange(2), np.array([True, False]))
    leaves = (inputs["leaf_index"] >= 0).sum(1).tolist()
    assert leaves[0] > 0 and leaves[1] == 0
    with pytest.raises(ValueError, match="extra must be one of"):
        TextWindows(context, excerpts, extra="leaves")
    with pytest.raises(ValueError, match="text 1 has no token"):
        TextWindows(context, [plain_excerpt("a b"), plain_excerpt("")])


def test_embedding_is_the_mean_over_all_windows(places):
    context = context_of(places)
    _, excerpts = pairs_of(context)
    texts = TextWindows(context, excerpts, 2, "graph")
    encoder = context.model().roberta
    given = embed(context, encoder, texts)
    number = 3
    states = []
    with torch.no_grad():
        for window in np.flatnonzero(texts.text_of == number):
            inputs, pooled = texts.batch(np.array([window]), True)
            states.append(encoder(**inputs).last_hidden_state[0][pooled[0].bool()])
    expected = torch.cat(states).mean(0)
    assert len(states) == 2 and torch.allclose(given[number], expected / expected.norm(), atol=1e-5)
    without = embed(context, encoder, texts, with_extra=False)
    plain = embed(context, encoder, TextWindows(context, excerpts, 2, "none"))
    assert torch.allclose(without, plain, atol=1e-5) and (without - given).abs().max() > 1e-3


def test_contrastive_loss_and_fine_tuning(places):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for i in range(5):
        cosines = [float(a[i] @ b[j] / a[i].norm() / b[j].norm()) / 0.1 for j in range(5)]
        expected += (np.log(np.sum(np.exp(cosines))) - cosines[i]) / 5
    assert float(contrastive_loss(a, b, 0.1)) == pytest.approx(expected)

    context = context_of(places)
    functions, excerpts = pairs_of(context)
    questions = TextWindows(context, [plain_excerpt(function.docstring) for function in functions])
    texts = TextWindows(context, excerpts, 1, "graph")
    settings = ContrastiveSettings(20, 4, 5e-3, 0.1, 0.5)
    before = {name: value.clone() for name, value in context.model().roberta.state_dict().items()}
    encoder, losses = fine_tune(context, questions, texts, settings)
    again, same = fine_tune(context_of(places), questions, texts, settings)
    assert losses == same and len(losses) == 20 and np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.2
    assert not encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        # The checkpoint stays as it is, and every parameter of its copy moves.
        assert torch.equal(before[name], context.model().roberta.state_dict()[name])
        assert value.dtype != torch.float32 or not torch.equal(value, before[name]), name
    with pytest.raises(ValueError, match="fewer than a batch"):
        fine_tune(context, questions, texts, ContrastiveSettings(1, 64))
    with pytest.raises(ValueError, match="temperature"):
        ContrastiveSettings(temperature=0)


SEARCH = dict(search_pool=6, search_rounds=2, search_steps=4, search_batch_size=4, search_windows=2)


def search(places, model="graph", **values):
    output = places / "report.json"
    options = {**SEARCH, "batch_size": 4, "output": str(output), "save_examples": True, **values}
    test = None if "search_files" in values else places / "test.data"
    report = run_task("code_search", places / model, test, training_dataset=str(places / "train.data"), **options)
    return report, dict(np.load(output.with_suffix(".code_search.npz")))


def test_code_search_from_end_to_end(places):
    report, examples = search(places)
    names = {
        f"{figure}{mask}"
        for figure in ("mrr", "recall_at_1", "recall_at_10")
        for mask in ("", "_name_masked", "_all_masked")
    }
    assert set(report["figures"]) == names == set(report["baselines"]["BM25"]) == set(report["baselines"]["random"])
    assert set(report["controls"]) == {"zero-shot", "zero-shot, without graph", "fine-tuned, without graph"}
    assert set(report["controls"]["fine-tuned, without graph"]) == names
    # Each docstring has the words of its function's name, which BM25 finds until they are masked.
    assert report["baselines"]["BM25"]["mrr"] > 0.9 > report["baselines"]["BM25"]["mrr_all_masked"]
    assert report["counts"]["functions"] == 8 and report["counts"]["pool"] == 6 and report["counts"]["pools"] == 2
    ranks = examples["fine-tuned: reciprocal_rank"]
    assert ranks.shape == (8,) and report["details"]["left_out"]["functions"] == 8
    again, same = search(places)
    assert again["figures"] == report["figures"] and np.array_equal(same["fine-tuned: reciprocal_rank"], ranks, True)
    other, _ = search(places, batch_size=8)
    assert other["figures"] == pytest.approx(report["figures"])


def test_code_search_without_a_graph(places):
    report, _ = search(places, "plain", search_steps=0, search_masks=["none"])
    assert report["details"]["extra"] == "none" and report["controls"] == {}
    report, _ = search(places, "plain", search_extra="context", search_steps=0, search_masks=["none"])
    assert set(report["controls"]) == {"zero-shot, without context"}
    assert report["details"]["extra_tokens_per_window"]["none"] > 5
    with pytest.raises(ValueError, match="--search-extra graph"):
        search(places, "plain", search_extra="graph")
    with pytest.raises(ValueError, match="--search-masks must be"):
        search(places, search_masks=["some"])


def test_code_search_on_files_of_code_search_net(places, tmp_path):
    rows = [
        {"repo": f"someone/{noun}", "func_name": f"{verb}_{noun}", "docstring": f"{verb.title()} every {noun} there.",
         "code": FUNCTION.format(verb=verb, upper="Text", noun=noun)}
        for noun in ("apple", "cloud") for verb in VERBS
    ]  # fmt: skip
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    report, _ = search(places, search_files=[str(file)], search_steps=0, search_masks=["name"])
    # A repository with the name of a project trained on is left out.
    trained = set(load_chain_graphs(places / "train.data")[1]["splits"]["train"]["projects"])
    assert ("apple" in trained) == ("repository trained on" in report["details"]["left_out"])
    assert report["counts"]["functions"] == 8 - 4 * ("apple" in trained)


def test_clone_retrieval_from_end_to_end(places, tmp_path):
    changes = ["", "limit = limit or 1", "path = str(path)"]
    for version, change in enumerate(changes):
        for noun in ("river", "stone"):
            text = module(noun, change).replace("load_all(path", f"load_all(path, {version}")
            # One function that never changes.
            text += f"\n\ndef same_{noun}(a):\n    b = a\n    return b\n"
            (tmp_path / str(version)).mkdir(exist_ok=True)
            (tmp_path / str(version) / f"{noun}.py").write_text(text, encoding="utf-8")
    sources = [f"dir:{tmp_path / str(version)}" for version in range(3)]
    report = run_task("clone_retrieval", places / "graph", clone_versions=sources, batch_size=8)
    assert report["counts"] == {"functions": 8, "queries": 24, "candidates": 23}
    assert report["details"]["left_out"]["without a changed version"] == 2
    assert report["baselines"]["BM25"]["map_at_r"] > 0.8 > report["baselines"]["random"]["map_at_r"]
    assert set(report["controls"]) == {"without graph"}
    assert set(report["figures"]) == {"map_at_r", "precision_at_1", "map_at_r_all_masked", "precision_at_1_all_masked"}
    with pytest.raises(ValueError, match="differ between versions"):
        run_task("clone_retrieval", places / "graph", clone_versions=sources[:1])
    name = load_chain_graphs(places / "train.data")[1]["splits"]["train"]["projects"][0]
    with pytest.raises(ValueError, match=f"the model was trained on {name}"):
        run_task(
            "clone_retrieval",
            places / "graph",
            clone_versions=[f"pypi:{name}==1.0"],
            clone_cache_dir=str(wheel(tmp_path, name)),
        )


def wheel(root, name):
    """A cache that holds version 1.0 of a package."""
    directory = root / "cache" / "wheels" / f"{name}-1.0"
    directory.mkdir(parents=True)
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/code.py", "def one(a):\n    b = a\n    return b\n")
    return root / "cache"


def test_chance_of_map_at_r():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20000):
        is_right = np.zeros(6, dtype=bool)
        is_right[rng.choice(6, 3, replace=False)] = True
        precision = np.cumsum(is_right)[:3] / np.arange(1, 4)
        found.append(np.mean(precision * is_right[:3]))
    assert chance_map_at_r([3] * 7)["map_at_r"] == pytest.approx(np.mean(found), abs=0.01)
    assert chance_map_at_r([3] * 7)["precision_at_1"] == pytest.approx(0.5)


def test_misuse_sites_and_their_names(places):
    context = context_of(places)
    sites, counts = find_sites(context, 3, 100)
    assert len(sites) == 8 and counts["functions"] == 8
    for site in sites:
        text = site.function.code
        assert text[site.start : site.start + len(HOLE)] == HOLE and site.right != site.wrong
        assert len(site.names) >= 3 and "self" not in site.names and site.names[:2] == ["path", "limit"]
        before = text[: site.start]
        for name, last in zip(site.names, site.last, strict=True):
            assert name in before and (last < 0 or text[last:].startswith(name))
    again, _ = find_sites(context_of(places), 3, 100)
    assert [s.names for s in again] == [s.names for s in sites] and [s.wrong for s in again] == [
        s.wrong for s in sites
    ]
    assert len({(site.start, site.names[site.right]) for site in sites}) > 1
    with pytest.raises(ValueError, match="has no function"):
        find_sites(context, 50, 10)


def test_the_graph_does_not_know_the_hidden_name(places):
    """Whatever name stood in the hole, the windows are the same to the last leaf."""
    code = "def f(path, mode):\n    text = load(path)\n    rows = parse({})\n    return rows\n"
    found = []
    for name in ("path", "mode", "text"):
        function = read_functions(code.format(name))[0]
        start = function.code.index("parse(") + 6
        site = Site(function, start, ["path", "mode", "text"], 0, 1, [0] * 3, [0] * 3)
        (site,) = _with_holes([(function, (start, start + len(name)), site)])
        context = context_of(places)
        (excerpt,) = cut_excerpts([site.function])
        windows, places_found = site_windows(context, [site])
        found.append((without_hole(excerpt), windows[0], places_found))
        # What would give it away is there where the name is not hidden.
        (known,) = cut_excerpts([function])
        assert (name, "flows_to", "rows") in {(t.head, t.relation, t.tail) for t in known.triples}
        assert not any(t.tail == "rows" and t.relation == "flows_to" for t in without_hole(excerpt).triples)
    for excerpt, window, where in found[1:]:
        assert excerpt == found[0][0] and where == found[0][2]
        assert all(np.array_equal(window[key], found[0][1][key]) for key in window)
    encode = LeafEncoder(context.tokenizer)
    assert HOLE.split("_")[0] not in context.tokenizer.decode(window["leaf_ids"])
    assert len(encode(HOLE)) == where[0][2]


def test_widened_windows_keep_their_facts():
    item = {
        "input_ids": np.array([0, 10, 11, 12, 13, 2]),
        "word_starts": np.array([1, 1, 1, 0, 1, 1], dtype=np.int8),
        "head_start": np.array([1, 4]),
        "leaf_root": np.array([1, 4]),
    }
    found = widened(item, 2, 2, 99, 3)
    assert found["input_ids"].tolist() == [0, 10, 99, 99, 99, 13, 2]
    assert found["word_starts"].tolist() == [1, 1, 1, 0, 0, 1, 1]
    assert found["head_start"].tolist() == [1, 5] == found["leaf_root"].tolist()
    assert widened(item, 2, 2, 99, 1)["head_start"].tolist() == [1, 3]


def test_name_scores_are_those_of_one_name_at_a_time(places):
    context = context_of(places)
    sites, _ = find_sites(context, 3, 4)
    windows, where = site_windows(context, sites)
    scores, calibrated = name_scores(context, sites, windows, where)
    model, collator = context.model(), context.collator(diagnostics=False)
    tokenizer = context.tokenizer
    # What calibration takes off depends on a name's tokens alone, not on the site.
    taken = {}
    for number, site in enumerate(sites):
        for index, name in enumerate(site.names):
            off = scores[number][index] - calibrated[number][index]
            assert taken.setdefault(name, off) == pytest.approx(off) and off < 0
    assert len(taken) > 3
    for number in (0, 3):
        window, root, hole = where[number]
        assert tokenizer.decode(windows[window]["input_ids"][root : root + hole]).strip() == HOLE
        for index, name in enumerate(sites[number].names):
            ids = tokenizer.backend_tokenizer.encode(name, add_special_tokens=False).ids
            item = widened(windows[window], root, hole, tokenizer.mask_token_id, len(ids))
            with torch.no_grad():
                logits = model(**context.inputs(collator([item]))).logits[0, root : root + len(ids)]
            expected = F.log_softmax(logits, -1)[torch.arange(len(ids)), ids].mean()
            assert scores[number][index] == pytest.approx(float(expected), abs=1e-4)
    assert not np.allclose(scores[0], name_scores(context, sites, windows, where, with_leaves=False)[0][0], atol=1e-4)
    assert without_facts(windows[0])["leaf_ids"].size == 0 < windows[0]["leaf_ids"].size


def test_judging_names():
    def site(right, wrong):
        return SimpleNamespace(right=right, wrong=wrong)

    scores = [np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0]), np.array([-np.inf, 0.0, -1.0])]
    figures, ranks = judge([site(0, 2), site(0, 1), site(2, 0)], scores)
    assert ranks.tolist() == [1, 1.5, 2] and figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["prefers_right_to_wrong"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert figures["mrr"] == pytest.approx((1 + 1 / 1.5 + 0.5) / 3)
    # Doubts: right -1, 0, 1; wrong 1, 0, 1e9.
    assert figures["detection_auc"] == pytest.approx((1 + 1 + 1 + 0.5 + 1 + 1 + 0.5 + 1 + 0) / 9)


def test_variable_misuse_from_end_to_end(places):
    report = run_task("variable_misuse", places / "graph", places / "test.data", batch_size=4, misuse_min_names=2)
    assert set(report["baselines"]) == {"most frequent name", "nearest name before", "random"}
    for figures in (report["figures"], report["controls"]["without graph"], *report["baselines"].values()):
        assert set(figures) == {"accuracy", "mrr", "prefers_right_to_wrong", "detection_auc"}
        assert all(0 <= value <= 1 for value in figures.values())
    plain = run_task("variable_misuse", places / "plain", places / "test.data", misuse_min_names=2)
    assert set(plain["controls"]) == {"calibrated"} and plain["baselines"]["random"] == report["baselines"]["random"]
    assert plain["baselines"]["most frequent name"] == report["baselines"]["most frequent name"]
