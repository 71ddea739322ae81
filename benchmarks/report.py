"""Writes the tables of docs/runtime.md and docs/runtime_curves.svg from benchmarks/results.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "runtime.md"
CURVES = ROOT / "docs" / "runtime_curves.svg"
DRAWN = "cpu_curves_dpt_base_float32"
BEGIN, END = "<!-- written by benchmarks/report.py -->\n", "<!-- as far as here -->\n"

Record = dict[str, Any]


def records(start: str) -> list[Record]:
    """The results whose names begin so."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob(f"{start}*.json"))]


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def is_peer(name: str) -> bool:
    return not name.startswith("ours") and "our rewrites" not in name


def milliseconds(row: Record) -> str:
    low, high = row["quartiles_ms"]
    return f"{row['median_ms']:.0f} ({low:.0f} to {high:.0f})"


def summary(found: list[Record]) -> str:
    """One row for each record: ours and the fastest peer."""
    head = ["network", "products", "AMX", "size", "batch", "threads", "ours, ms", "fastest peer, ms", "ratio", "error"]
    rows = [[*head, "of the peak"]]
    for record in found:
        own = next(row for row in record["rows"] if row["case"] == "ours")
        peers = [row for row in record["rows"] if is_peer(row["case"])]
        if not peers:
            continue
        peer = min(peers, key=lambda row: row["median_ms"])
        share = own.get("fraction_of_peak")
        rows.append(
            [
                *(str(record[name]) for name in ("model", "dtype")),
                {True: "yes", False: "no", None: ""}[record.get("amx")],
                *(str(record[name]) for name in ("size", "batch", "threads")),
                milliseconds(own),
                f"{peer['case']} {milliseconds(peer)}",
                f"{peer['median_ms'] / own['median_ms']:.2f}",
                own["error"],
                "" if share is None else f"{100 * share:.0f} %",
            ]
        )
    return table(rows)


def every_case(record: Record) -> str:
    """All cases of one record, with what the rewrites are worth."""
    rows = [["case", "ms", "over ours", "error", "ready, s", "first call, ms"]]
    own = next(row for row in record["rows"] if row["case"] == "ours")
    for row in record["rows"]:
        rows.append(
            [
                row["case"],
                milliseconds(row),
                f"{row['median_ms'] / own['median_ms']:.2f}",
                row["error"],
                str(row.get("ready_s", "")),
                str(row.get("first_call_ms", "")),
            ]
        )
    title = f"{record['model']}, {record['dtype']}, {record['size']} x {record['size']}, batch {record['batch']}"
    return f"{title}, {record['threads']} threads:\n\n{table(rows)}"


def starts(found: list[Record]) -> str:
    rows = [["network", "process", "first map, s", "peak memory, MB", "file, MB", "error"]]
    for record in found:
        for row in record["rows"]:
            facts = [f"{row['first_map_s']:.2f}", str(row["peak_mb"]), str(row["file_mb"]), row["error"]]
            rows.append([record["model"], row["case"], *facts])
    return table(rows)


def text() -> str:
    """What stands in the page between BEGIN and END."""
    found = [record for record in records("cpu_") if "size" in record]
    where = sorted({f"{record['cpu']} ({record['cpu_capability']})" for record in found})
    parts = [
        "Medians and quartiles of one run, in which all take turns; `ratio` is the fastest peer's time over ours,\n"
        "`error` the largest difference to float64 over the range of the map, `of the peak` the rate of the executed\n"
        "products over that of the fastest ones measured beside them. Measured on: "
        f"{'; '.join(where)}.\n",
        summary(found),
        *(every_case(record) for record in found if any("without" in row["case"] for row in record["rows"])),
    ]
    if begun := records("start_"):
        parts += [
            "A process that only loads its file and predicts once (`benchmarks/bench_start.py`):\n",
            starts(begun),
        ]
    if records(DRAWN):
        parts.append(f"![Time for an image against batch, size and threads]({CURVES.name})\n")
    return "\n".join(parts)


def page() -> str:
    """docs/runtime.md as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "\n" + text() + "\n" + END + rest.split(END)[1]


def draw(record: Record) -> None:
    """Milliseconds for an image against the batch, and against its pixels."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "torchdpt"  # the same file from the same numbers
    import matplotlib.pyplot as plt

    rows = record["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows if row["case"] == "ours" or is_peer(row["case"])))
    threads = sorted({row["threads"] for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for case, color in zip(cases, ("C0", "C1", "C2", "C3"), strict=False):
        for count in threads:
            own = [row for row in rows if row["case"] == case and row["threads"] == count]
            style = {"color": color, "linestyle": "-" if count == threads[-1] else ":", "marker": "o", "markersize": 3}
            label = f"{case}, {count} thread{'s' if count > 1 else ''}"
            batches = sorted((row["batch"], row["median_ms"] / row["batch"]) for row in own if row["size"] == 384)
            axes[0].plot(*zip(*batches, strict=True), label=label, **style)
            sizes = sorted((row["size"] ** 2 / 1e6, row["median_ms"]) for row in own if row["batch"] == 1)
            axes[1].plot(*zip(*sizes, strict=True), **style)
    axes[0].set(xlabel="batch, 384 x 384", ylabel="ms for an image", ylim=(0, None), xticks=[1, 2, 4, 8])
    axes[1].set(xlabel="megapixels, batch 1", ylabel="ms", ylim=(0, None), xlim=(0, None))
    axes[0].legend(fontsize=7)
    figure.suptitle(f"{record['model']}, {record['dtype']}, {record['cpu']}", fontsize=9)
    figure.savefig(CURVES, metadata={"Date": None})


if __name__ == "__main__":
    PAGE.write_text(page())
    for found in records(DRAWN):
        draw(found)
