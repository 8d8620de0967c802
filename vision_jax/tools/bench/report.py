"""A benchmark's results as a table and as JSON."""

import json
import statistics

UNITS = {"forward": "inference", "train": "training step"}


def to_json(environment, results):
    """The whole, as text: {"environment": ..., "results": [one for each model, kind and batch size]}."""
    return json.dumps({"environment": environment, "results": results}, indent=1) + "\n"


def to_markdown(environment, results):
    """What it ran on, and a table for inference and one for training steps where there are any."""
    lines = [f"- {what}: `{text}`" for what, text in environment.items()]
    for kind, title in UNITS.items():
        rows = [row for row in results if row["kind"] == kind]
        if rows:
            lines += ["", f"**{title.capitalize()}**", "", *_table(rows), *_summary(rows)]
    return "\n".join(lines) + "\n"


def _table(rows):
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    roof = any("roofline" in row["ours"] for row in rows)
    processor = "CPU " if rows[0]["clock"] == "cpu" else ""
    head = ["model", "batch", f"images/{processor}s", f"{processor}ms"]
    for peer in peers:
        head += [f"{peer}, {processor}ms", "ratio"]
    head += ["compile, s", "memory, MiB"] + ["of the roof"] * roof
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for row in rows:
        ours = row["ours"]
        cells = [row["model"], str(row["batch"]), f"{row['batch'] / ours['seconds'][0]:.1f}", _ms(ours["seconds"])]
        for peer in peers:
            found = row["peers"].get(peer)
            cells += [_ms(found["seconds"]), _ratio(found["ratio"])] if found else ["", ""]
        memory = ours["memory_bytes"]
        cells += [f"{ours['compile_seconds']:.1f}", f"{memory / 2**20:.0f}" if memory else ""]
        cells += [f"{ours['roofline']:.0%}" if "roofline" in ours else ""] * roof
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _summary(rows):
    ratios = {}
    for row in rows:
        for peer, found in row["peers"].items():
            ratios.setdefault(peer, []).append(found["ratio"][0])
    texts = [
        f"Ratio to {peer}: median {statistics.median(found):.2f}, from {min(found):.2f} to {max(found):.2f}, "
        f"over {len(found)} {'row' if len(found) == 1 else 'rows'}."
        for peer, found in ratios.items()
    ]
    return ["", *texts] if texts else []


def _ms(seconds):
    median, low, high = (f"{1e3 * s:.1f}" for s in seconds)
    return f"{median} ({low} to {high})"


def _ratio(ratio):
    median, low, high = (f"{r:.2f}" for r in ratio)
    return f"**{median}** ({low} to {high})"
