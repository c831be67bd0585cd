"""Ablations: the same training with one part changed, over seeds, beside a baseline row.

    settings.py     a setting and its rows, read from YAML; which runs they make
    matching.py     whether a finished run is one that is wanted; runs adopted from elsewhere
    driver.py       trains and evaluates the runs, several at a time, and goes on where it was stopped
    step_time.py    steps that one row makes in another row's time
    statistics.py   means, spreads, paired differences with their intervals
    report.py       a record: tables, run.json, figures
    figures.py      curves, and bars of paired differences
    results.py      docs/RESULTS.md and the README's table from the records

The command is `python -m graphmert.ablations`; docs/ABLATIONS.md explains it.
"""
