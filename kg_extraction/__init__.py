"""A checkpoint and code in, a knowledge graph out: `python -m graphmert.kg_extraction --help`.

    project.py, entities.py          files -> code graphs, windows, and names that mean the same in every file
    candidates.py, decoding.py       what to ask: pairs of names, heads without a tail; the names a tail may be
    questions.py, scoring.py         a question becomes a leaf of a window; the checkpoint answers
    type_table.py, sign_classifier.py, type_evidence.py    types without the model: by name, by signs of use, together
    calibration.py                   probabilities that mean what they say
    facts.py                         answers -> facts, merged across windows
    extraction.py, __main__.py       all of it in one call; the command
    export.py, export_graph.py       JSONL, Parquet, Neo4j; GraphML, Turtle, JSON-LD
    page.py                          a page of the graph that needs nothing else
    type_proposals.py, stubs.py      missing annotations proposed as a patch or stubs

docs/KNOWLEDGE_GRAPH.md explains what is asked and what the figures mean.
"""
