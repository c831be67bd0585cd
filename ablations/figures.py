"""Figures of a record: curves over training, and bars of paired differences with their intervals."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from .collect import VALIDATION, Result, held_out_name

_CURVES = (("mlm_loss", "MLM loss (nats)"), ("relation_macro_f1", "relation macro-F1"))


def curves_of(results: list[Result], name: str) -> tuple[dict[str, dict[int, list[float]]], str]:
    """A figure over training: row -> step -> values of the seeds, and of what.

    Held-out figures where any run was evaluated while it trained, those of the training batches elsewhere.
    """
    held_out: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    training: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        target = result.summary["arguments"]["model"]["mnm_target"]
        for entry in result.history:
            for key, value in entry.items():
                if held_out_name(key, target) == name:
                    chosen = held_out if key.startswith("eval_") else training
                    chosen[result.run.row.name][entry["step"]].append(value)
    if any(len(steps) > 1 for steps in held_out.values()):
        return held_out, "held out"
    return training, "training batches"


def draw_curves(results: list[Result], rows: list[str], path: str | Path) -> None:
    """Curves of masked tokens and relations over steps: mean over seeds, shaded from lowest to highest.

    Args:
        results: finished runs.
        rows: which rows to draw.
        path: the PNG file.
    """
    # Not pyplot: it would choose a window system.
    from matplotlib.figure import Figure

    panels = [(title, *curves_of(results, name)) for name, title in _CURVES]
    panels = [panel for panel in panels if any(row in panel[1] for row in rows)]
    figure = Figure(figsize=(6 * max(len(panels), 1), 4.5), layout="constrained")
    for axis, (title, curves, source) in zip(
        np.atleast_1d(figure.subplots(1, max(len(panels), 1))), panels, strict=False
    ):
        for row in rows:
            if row not in curves:
                continue
            steps = sorted(curves[row])
            values = [curves[row][step] for step in steps]
            (line,) = axis.plot(steps, [np.mean(group) for group in values], marker="o", markersize=3, label=row)
            axis.fill_between(
                steps, [min(g) for g in values], [max(g) for g in values], color=line.get_color(), alpha=0.2
            )
        axis.set(title=f"{title}, {source}", xlabel="optimizer steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_differences(figures: dict, path: str | Path) -> bool:
    """Bars of the paired differences to the baseline in the headline metrics, with their intervals over seeds.

    Args:
        figures: of `analyse`.
        path: the PNG file.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    panels = []
    for metric in figures["headline"]["metrics"]:
        found = figures["metrics"][metric]
        bars = [(name, cell["difference"]) for name, cell in found["rows"].items() if cell["difference"]]
        if bars:
            panels.append((metric, found, bars))
    if not panels:
        return False
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(len(bars) for _, _, bars in panels)
    figure = Figure(figsize=(6 * columns, lines * (1.2 + 0.28 * tallest)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    colours = {"better": "tab:green", "worse": "tab:red", "not shown": "tab:gray"}
    for axis, (metric, found, bars) in zip(axes, panels, strict=False):
        means = np.array([difference["mean"] for _, difference in bars])
        bounds = [difference["t_interval"] or (mean, mean) for mean, (_, difference) in zip(means, bars, strict=True)]
        errors = np.abs(np.array(bounds).T - means)
        places = np.arange(len(bars))[::-1]
        axis.barh(
            places,
            means,
            xerr=errors,
            color=[colours[difference["verdict"]] for _, difference in bars],
            error_kw={"capsize": 2, "linewidth": 1},
        )
        axis.set_yticks(places, [name for name, _ in bars], fontsize="small")
        axis.axvline(0, color="black", linewidth=0.8)
        better = "right" if found["higher_is_better"] else "left"
        task = "" if metric.startswith(VALIDATION) else "held-out corpus, "
        axis.set_title(f"{metric}\n({task}against {found['against']}; {better} is better)", fontsize="small")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    return True
