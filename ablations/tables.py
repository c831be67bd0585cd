"""Tables of a record's figures, in Markdown and in plain text, from what its `run.json` holds."""


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference."""
    return f"{value:+.4f}"


def interval(bounds: list[float] | tuple[float, float] | None) -> str:
    """An interval, or a dash."""
    return "-" if bounds is None else f"[{bounds[0]:+.4f}, {bounds[1]:+.4f}]"


def mean_and_spread(cell: dict) -> str:
    """Mean and standard deviation over seeds."""
    return number(cell["mean"]) + ("" if cell["deviation"] is None else f" ± {cell['deviation']:.4f}")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def short_table(figures: dict) -> str:
    """Headline rows and metrics: means and spreads, in bold where the difference to the baseline is shown."""
    metrics, names = figures["headline"]["metrics"], figures["headline"]["rows"]
    rows = []
    for metric in metrics:
        found = figures["metrics"][metric]
        cells = []
        for name in names:
            cell = found["rows"].get(name)
            text = "-" if cell is None else mean_and_spread(cell)
            if cell is not None and cell["difference"] and cell["difference"]["verdict"] != "not shown":
                text = f"**{text}** ({cell['difference']['verdict']})"
            cells.append(text)
        rows.append([f"{metric} ({'higher' if found['higher_is_better'] else 'lower'} is better)", *cells])
    return markdown(["metric", *names], rows)


def metric_table(figures: dict, metric: str) -> str:
    """All rows of one metric with their differences, and the trivial methods below."""
    found = figures["metrics"][metric]
    rows = []
    for name, cell in found["rows"].items():
        difference = cell["difference"]
        if difference is None:
            rest = [
                "baseline" if name == found["against"] else "-",
                "",
                "",
                "" if cell["comparable"] else "other examples",
            ]
        else:
            bounds = [interval(difference[kind]) for kind in ("t_interval", "bootstrap_interval")]
            rest = [signed(difference["mean"]), *bounds, difference["verdict"]]
        rows.append([name, str(len(cell["values"])), mean_and_spread(cell), *rest])
    task, figure = metric.rsplit("/", 1)
    for method, values in figures["baselines"].get(task, {}).items():
        if values.get(figure) is not None:
            rows.append([f"*{method}*", "", number(values[figure]), "", "", "", ""])
    header = ["row", "seeds", "mean ± sd", _difference_to(found["against"]), "95 % over seeds"]
    return markdown([*header, "95 % over seeds and examples", ""], rows)


def control_table(figures: dict, metric: str) -> str | None:
    """The figure when the input of the same checkpoints is changed; None where no task has a control."""
    against = figures["metrics"][metric]["against"]
    rows = []
    for row, controls in (figures["controls"].get(metric) or {}).items():
        for control, cell in controls.items():
            cells = [_difference(cell[kind]) for kind in ("to_model", "to_baseline")]
            rows.append([row, control, mean_and_spread(cell), *cells])
    header = ["row", "change of the input", "mean ± sd", "difference to the row itself", _difference_to(against)]
    return markdown(header, rows) if rows else None


def _difference_to(against: str | None) -> str:
    """The head of a column; neither the baseline nor the recipe may have a figure."""
    return "difference" if against is None else f"difference to {against}"


def _difference(difference: dict | None) -> str:
    """A difference with its interval over seeds and what may be said of it."""
    if difference is None:
        return "-"
    return f"{signed(difference['mean'])} {interval(difference['t_interval'])} {difference['verdict']}"


def claims(figures: dict) -> list[str]:
    """The differences in headline metrics whose intervals leave out zero, in sentences; those not shown are counted."""
    lines, not_shown = [], 0
    for metric in figures["headline"]["metrics"]:
        found = figures["metrics"][metric]
        for name, cell in found["rows"].items():
            difference = cell["difference"]
            if difference is None:
                continue
            if difference["verdict"] == "not shown":
                not_shown += 1
                continue
            lines.append(
                f"{name} is {difference['verdict']} than {found['against']} in {metric}: {signed(difference['mean'])} "
                f"{interval(difference['t_interval'])}"
            )
    lines.append(f"Differences in headline metrics that are not shown, since an interval holds zero: {not_shown}.")
    return lines


def rows_table(run: dict) -> str:
    """What each row changes, its steps and its seconds of training."""
    rows = []
    for name, row in run["setting"]["rows"].items():
        own = [item for item in run["runs"] if item["row"] == name]
        if own:
            steps = sorted({f"{item['optimizer_steps']:,}" for item in own})
            nodes = sum(item["nodes_per_window"] for item in own) / len(own)
            rows.append([name, row["description"], ", ".join(steps), f"{nodes:.0f}"])
    return markdown(["row", "what it changes", "steps", "nodes per window"], rows)


def plain_text(figures: dict) -> str:
    """Every metric of every row, for log.txt."""
    lines = []
    for metric, found in figures["metrics"].items():
        lines.append(f"{metric} ({'higher' if found['higher_is_better'] else 'lower'} is better)")
        width = max(map(len, found["rows"]), default=0)
        for name, cell in found["rows"].items():
            text = f"  {name:{width}}  {mean_and_spread(cell):>18}  n={len(cell['values'])}"
            difference = cell["difference"]
            if difference is not None:
                text += f"  {signed(difference['mean'])}  seeds {interval(difference['t_interval'])}"
                text += f"  both {interval(difference['bootstrap_interval'])}  {difference['verdict']}"
            lines.append(text)
        lines.append("")
    return "\n".join(lines)
