"""What a pretraining run leaves behind: the table beside the baselines, summary.json, and the loss plot."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

# Figure of the model, figure of the baseline, suffixes of the two parts, their names.
_TOKEN_PARTS = ("_in_leaf", "_not_in_leaf")
_FACT_PARTS = ("_visible", "_invisible")


def environment() -> dict:
    """Versions, device and source revision, for the record.

    Returns:
        `python`, `platform`, `device`, `num_threads`, `versions` by package, `git_commit` (None outside a clone).
    """
    versions = {}
    for name in ("graphmert", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy"):
        versions[name] = importlib.metadata.version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "num_threads": torch.get_num_threads(),
        "versions": versions,
        "git_commit": _git_commit(Path(__file__).resolve().parent),
    }


def _git_commit(root: Path) -> str | None:
    # An installed copy may lie inside somebody else's clone.
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "-C", root, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def held_out_rows(
    metrics: dict[str, float], unigram: dict[str, float] | None, lookups: dict[str, dict[str, float]] | None
) -> list[tuple[str, str, list[float | None]]]:
    """Rows of the comparison table.

    Args:
        metrics: figures of `GraphMertTrainer.evaluate`, with prefix `eval_`.
        unigram: `baselines.unigram_cross_entropy` on the same masks.
        lookups: `baselines.relation_baselines` on the same masks.

    Returns:
        (figure, who, [all, first part, second part]); parts are tokens in a leaf or not, tails visible or not.
    """
    relation, tail = names_of_facts(metrics)

    def model(name: str, parts: tuple[str, str]) -> list[float | None]:
        return [metrics.get(f"eval_{name}{suffix}") for suffix in ("", *parts)]

    rows = [("MLM loss (nats)", "model", model("mlm_loss", _TOKEN_PARTS))]
    if unigram is not None:
        rows.append(("MLM loss (nats)", "unigram", [unigram.get(f"loss{suffix}") for suffix in ("", *_TOKEN_PARTS)]))
    rows.append(("MLM accuracy", "model", model("mlm_accuracy", _TOKEN_PARTS)))
    if relation is not None:
        for figure, name in (("relation accuracy", "accuracy"), ("relation macro-F1", "macro_f1")):
            rows.append((figure, "model", model(f"{relation}_{name}", _FACT_PARTS)))
            for who, scores in (lookups or {}).items():
                rows.append((figure, who, [scores.get(f"{name}{suffix}") for suffix in ("", *_FACT_PARTS)]))
    if tail is not None:
        for figure, name in (("tail loss (nats)", f"{tail}_loss"), ("tail accuracy", f"{tail}_accuracy")):
            rows.append((figure, "model", model(name, _FACT_PARTS)))
    return [row for row in rows if row[2][0] is not None]


def names_of_facts(metrics: dict) -> tuple[str | None, str | None]:
    """How the figures of relations and those of tails begin, after `eval_`; None where there are none.

    A model that predicts one of the two calls it `mnm`.

    Args:
        metrics: figures of `GraphMertTrainer.evaluate`, with prefix `eval_`.
    """
    relation = next((name for name in ("mnm_relation", "mnm") if f"eval_{name}_macro_f1" in metrics), None)
    if "eval_mnm_tail_accuracy" in metrics:
        return relation, "mnm_tail"
    return relation, "mnm" if relation is None and "eval_mnm_accuracy" in metrics else None


def format_table(rows: list[tuple[str, str, list[float | None]]]) -> str:
    """The comparison table as text.

    Args:
        rows: of `held_out_rows`.
    """
    width = max((len(who) for _, who, _ in rows), default=0)
    lines, previous = [], None
    for figure, who, values in rows:
        if figure.split()[0] != previous:
            previous = figure.split()[0]
            parts = ("in a leaf", "not in a leaf") if previous == "MLM" else ("tail in window", "tail not in it")
            lines.append(f"{'':20}  {'':{width}}  {'all':>9}  {parts[0]:>14}  {parts[1]:>14}")
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"{figure:20}  {who:{width}}  {cells[0]:>9}  {cells[1]:>14}  {cells[2]:>14}")
    return "\n".join(lines)


def plot_history(
    history: list[dict],
    path: str | Path,
    unigram: dict[str, float] | None = None,
    lookups: dict[str, dict[str, float]] | None = None,
) -> None:
    """Draw losses and relation accuracy over steps, beside the baselines.

    Args:
        history: `trainer.state.log_history`.
        path: the PNG file to write.
        unigram, lookups: as for `held_out_rows`.
    """
    # Not pyplot: it would choose a window system.
    from matplotlib.figure import Figure

    def curve(name: str) -> tuple[list[int], list[float]]:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        return [step for step, _ in points], [value for _, value in points]

    both = any("mnm_relation_accuracy" in entry for entry in history)
    panels = (
        ("MLM loss (nats)", "mlm_loss", [("unigram", (unigram or {}).get("loss"))]),
        ("MNM loss (nats)", "mnm_loss", []),
        ("relation accuracy", "mnm_relation_accuracy", []) if both else ("MNM accuracy", "mnm_accuracy", []),
    )
    if lookups:
        best = max(lookups, key=lambda name: lookups[name].get("accuracy", 0.0))
        panels[2][2].append((f"lookup: {best}", lookups[best].get("accuracy")))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, name, lines) in zip(axes, panels, strict=True):
        axis.plot(*curve(name), color="tab:blue", alpha=0.6, label="training")
        axis.plot(*curve(f"eval_{name}"), color="tab:orange", marker="o", markersize=3, label="held out")
        for label, value in lines:
            if value is not None:
                axis.axhline(value, color="tab:gray", linestyle="--", label=label)
        axis.set(title=title, xlabel="optimizer steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
