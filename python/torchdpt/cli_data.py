"""What the command `torchdpt data` does; its arguments are read by torchdpt_command."""

from __future__ import annotations

import argparse
import inspect
import json
import sys

from torchdpt.data import DATASETS, Report, check_dataset, open_dataset

EXAMPLES = 3


def check(args: argparse.Namespace) -> int:
    options = {"path": args.folder, **dict(args.option)}
    if args.type in DATASETS and "skip_incomplete" in inspect.signature(DATASETS[args.type]).parameters:
        options["skip_incomplete"] = True  # to be reported
    report = check_dataset(open_dataset(args.type, **options), progress=not args.json and sys.stderr.isatty())
    print(json.dumps(report.to_json(), indent=2) if args.json else text_of(report))
    return 1 if report.problems else 0


def text_of(report: Report) -> str:
    lines = [f"{report.dataset}: {report.samples:,} samples"]
    sizes = [f"{size} ({count:,})" for size, count in report.sizes.items()]
    if sizes:
        more = f" and {len(sizes) - 5} other sizes" if len(sizes) > 5 else ""
        lines.append(f"images      {', '.join(sizes[:5])}{more}")
    depth = report.depth
    if depth:
        kind, unit = depth["kind"].replace("_", " "), depth["unit"]
        unit = {"metre": "metres" if kind == "depth" else "1/metre"}.get(unit, unit)
        if "min" in depth:
            lines.append(f"depth       {kind}, {unit}: {depth['min']:.4g} to {depth['max']:.4g}")
            percentiles = [f"{name[1:]} %: {value:.4g}" for name, value in depth.items() if name[1:].isdecimal()]
            lines.append(f"percentiles {', '.join(percentiles)}")
        sky = f", {depth['sky']:.1%} sky" if depth["sky"] else ""
        lines.append(f"known       {depth['known']:.1%} of the pixels{sky}")
    if report.classes:
        shares = sorted(report.classes.items(), key=lambda item: -item[1])
        more = f" and {len(shares) - 10} others" if len(shares) > 10 else ""
        lines.append(f"classes     {', '.join(f'{name} {share:.1%}' for name, share in shares[:10])}{more}")
    for problem, found in report.problems.items():
        lines += [f"{problem}: {len(found):,}", *(f"  {where}" for where in found[:EXAMPLES])]
        lines += ["  ..."] if len(found) > EXAMPLES else []
    return "\n".join([*lines, *([] if report.problems else ["no problems found"])])
