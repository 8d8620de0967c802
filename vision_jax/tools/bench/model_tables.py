"""What a benchmark of models found, as Markdown."""

import statistics

UNITS = {"forward": "inference", "train": "training step"}


def tables(results):
    """Lines: a table for inference and one for training steps, where there are any."""
    lines = []
    for kind, title in UNITS.items():
        rows = [row for row in results if row["kind"] == kind]
        if rows:
            lines += ["", f"**{title.capitalize()}**", "", *_table(rows), *_summary(rows)]
    return lines


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
        cells = [
            row["model"],
            str(row["batch"]),
            f"{row['batch'] / ours['seconds'][0]:.1f}",
            milliseconds(ours["seconds"]),
        ]
        for peer in peers:
            found = row["peers"].get(peer)
            cells += [milliseconds(found["seconds"]), times(found["ratio"])] if found else ["", ""]
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


def milliseconds(seconds):
    """A `timing.Spread` of seconds, as text."""
    median, low, high = (f"{1e3 * s:.1f}" for s in seconds)
    return f"{median} ({low} to {high})"


def times(ratio):
    """A `timing.Spread` of ratios, as text."""
    median, low, high = (f"{r:.2f}" for r in ratio)
    return f"**{median}** ({low} to {high})"
