"""Embedding functions with their graph against plain RoBERTa: `python -m graphmert.benchmarks.encode_speed --record DIR`.

Each round encodes the same functions with each encoder in turn: RoBERTa with mean pooling, the same weights and the same
windows of tokens; GraphMERT on tokens alone; GraphMERT with the graph, which is read from the code in the measured time. The
times are CPU seconds of one thread, so that other work on the machine changes little. Then it is checked that the vectors of
all functions are the same in other batches, in another order, and through sentence-transformers.
"""

import argparse
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from transformers import RobertaConfig, RobertaModel

from graphmert import GraphMertConfig, GraphMertModel, GraphMertProcessor, load_encoder, save_for_sentence_transformers
from graphmert.chain_graphs.sources import ReadOptions, SourceFile, parse_source
from graphmert.code_graph.functions import list_functions
from graphmert.embedding_graphmert import CodeEmbeddingMixin

from .record import text_table, write_record

BATCH_SIZE = 32
# Functions of one line hold nothing to embed.
MIN_LINES = 3


class PlainEncoder(CodeEmbeddingMixin, RobertaModel):
    """RoBERTa with the loop of `GraphMertModel.encode`: batches by length, windows of one text pooled."""


def plain_encoder(model: GraphMertModel) -> PlainEncoder:
    """RoBERTa with a GraphMERT's weights, without H-GAT and decay."""
    names = RobertaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    config = RobertaConfig(**{name: value for name, value in model.config.to_dict().items() if name in names})
    config.num_roots = model.config.num_roots
    plain = PlainEncoder(config, add_pooling_layer=False).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(("hgat.", "decay."))})
    return plain


def functions_of(specs: list[str], number: int) -> list[str]:
    """Functions of all sources: so many, evenly spread over files that are evenly spread."""
    files = []
    for spec in specs:
        found = parse_source(spec, ReadOptions(include_tables=True)).files()
        files += [file for file in found if isinstance(file, SourceFile)]
    # Standard files hold about 20 functions each; more files than needed would only be parsed for nothing.
    wanted = min(len(files), max(10, number // 10))
    texts = []
    for index in np.linspace(0, len(files) - 1, wanted).astype(int):
        file = files[index]
        texts += [
            file.text[each.start : each.end]
            for each in list_functions(file.text, file.language)
            if each.last_line - each.first_line + 1 >= MIN_LINES
        ]
    if len(texts) < number:
        raise ValueError(f"{len(texts)} functions in {', '.join(specs)}, but --functions is {number}")
    return spread(texts, number)


def spread(texts: list[str], number: int) -> list[str]:
    """So many of the texts, evenly spread."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, number).astype(int)]


def measure(model: GraphMertModel, processor: GraphMertProcessor, texts: list[str], rounds: int) -> dict:
    """CPU seconds of each encoder in each round, and of reading the code alone."""
    tokenizer, plain = processor.tokenizer, plain_encoder(model)
    options = {"batch_size": BATCH_SIZE, "show_progress_bar": False}
    ways = {
        "RoBERTa": lambda: plain.encode(texts, tokenizer, **options),
        "GraphMERT, tokens alone": lambda: model.encode(texts, tokenizer, **options),
        "GraphMERT, with graph": lambda: model.encode(texts, processor, **options),
        "reading the code, of it": lambda: processor.read_windows(texts),
    }
    for run in (plain, model):
        run.encode(texts[:BATCH_SIZE], tokenizer, **options)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    windows = processor.read_windows(texts)
    num_tokens = sum(len(ids) + 2 for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    nodes = [len(item["input_ids"]) + len(item["leaf_ids"]) for item in windows]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [
        plain_s / graph_s
        for plain_s, graph_s in zip(seconds["RoBERTa"], seconds["GraphMERT, with graph"], strict=True)
    ]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "functions": len(texts),
        "characters": sum(map(len, texts)),
        "windows": len(windows),
        "nodes_per_window": float(np.mean(nodes)),
        "nodes_per_token": sum(nodes) / num_tokens,
        "roots_per_window": float(np.mean([len(item["input_ids"]) for item in windows])),
        "cpu_s": seconds,
        "functions_per_cpu_s": {name: len(texts) / value for name, value in medians.items()},
        "ratio_of_each_round": ratios,
        "ratio": statistics.median(ratios),
    }


def check_vectors(model: GraphMertModel, processor: GraphMertProcessor, texts: list[str]) -> dict:
    """Largest differences of the vectors of `texts` to themselves, computed otherwise."""
    vectors = model.encode(texts, processor, batch_size=BATCH_SIZE, show_progress_bar=False)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = model.encode([texts[i] for i in order], processor, batch_size=7, show_progress_bar=False)
    result = {
        "functions": len(texts),
        "largest_entry": float(np.abs(vectors).max()),
        "difference_batch_size_and_order": float(np.abs(shuffled - vectors[order]).max()),
    }
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return result | {"difference_sentence_transformers": None}
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        save_for_sentence_transformers(scratch)
        loaded = SentenceTransformer(scratch, trust_remote_code=True, device="cpu")
        others = loaded.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)
    return result | {"difference_sentence_transformers": float(np.abs(others - vectors).max())}


def random_model(processor: GraphMertProcessor, **sizes) -> GraphMertModel:
    """A model with random weights; speed does not depend on them."""
    config = GraphMertConfig(
        vocab_size=len(processor.tokenizer), pad_token_id=processor.tokenizer.pad_token_id, **sizes
    )
    return GraphMertModel(config, add_pooling_layer=False).eval()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a checkpoint; its tokenizer is used for all sizes")
    parser.add_argument("--source", action="append", help="where functions come from, default stdlib")
    parser.add_argument("--functions", type=int, default=1000, help="whose vectors are compared, default 1000")
    parser.add_argument("--timed", type=int, default=200, help="of them are timed, default 200")
    parser.add_argument("--timed-base", type=int, default=8, help="at CodeBERT's size, default 8; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", metavar="DIR", help="write a record")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    texts = functions_of(arguments.source or ["stdlib"], arguments.functions)
    model, processor = load_encoder(arguments.model)
    results = [measure(model, processor, spread(texts, arguments.timed), arguments.rounds)]
    if arguments.timed_base:
        some = spread(texts, arguments.timed_base)
        results.append(measure(random_model(processor), processor, some, arguments.rounds))
    checks = check_vectors(model, processor, texts)
    names = list(results[0]["functions_per_cpu_s"])
    table = text_table(
        [
            *("layers x width", "functions", "windows", "nodes each", "per token"),
            *[f"{name}, per CPU s" for name in names],
            "ratio",
        ],
        [
            [
                f"{r['layers']} x {r['hidden_size']}", r["functions"], r["windows"], f"{r['nodes_per_window']:.0f}",
                f"{r['nodes_per_token']:.2f}",
                *[f"{r['functions_per_cpu_s'][name]:.1f}" for name in names], f"{r['ratio']:.2f}",
            ]
            for r in results
        ],
    )  # fmt: skip
    table += "\n\n" + text_table(
        ["largest difference of a vector's entry, " + f"{checks['functions']} functions", ""],
        [
            ["other batch size and order", f"{checks['difference_batch_size_and_order']:.1e}"],
            ["through sentence-transformers", f"{checks['difference_sentence_transformers'] or 0:.1e}"],
            ["(largest entry)", f"{checks['largest_entry']:.2f}"],
        ],
    )
    print(table)
    if arguments.record:
        given = ("functions", "timed", "timed_base", "rounds")
        options = " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in given)
        command = f"python -m graphmert.benchmarks.encode_speed --model {arguments.model} {options}"
        write_record(
            arguments.record,
            "Speed of embedding functions",
            command,
            {"speed": results, "vectors": checks, "torch": torch.__version__, "batch_size": BATCH_SIZE},
            table,
            "Functions of the standard library, evenly spread, in CPU seconds of one thread; medians of the rounds, in "
            "which the encoders take turns. RoBERTa has the checkpoint's weights, mean pooling, and the same windows of "
            "at most 128 tokens; the ratio is its time over GraphMERT's with the graph, reading the code included. Nodes "
            "per token is the work that the graph adds: at the same cost for each node the ratio would be one over it. "
            "The second size is CodeBERT's, with random weights.",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
