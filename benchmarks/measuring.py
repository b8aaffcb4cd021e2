"""How good the measuring is: one table a part, on the family of the demo.

    mergefront demo --dir demo --trials 20
    OMP_NUM_THREADS=1 python benchmarks/measuring.py --family demo

Parts: racing (items saved by stopping early, and what it costs), first_rung (whether likelihoods may stop a race),
calibration (do intervals cover what they should), garbage (what a merge of noise scores on safety), throughput (items
a second against lm-evaluation-harness).
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

PARTS = ("racing", "first_rung", "calibration", "garbage", "throughput")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; 2 where the family is not there."""
    parser = argparse.ArgumentParser(description="How good the measuring is: one table a part.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--seeds", type=int, default=10, help="how often a part that takes seeds is repeated")
    parser.add_argument("--family", type=Path, default=Path("demo"), help="directory that `mergefront demo` made")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"a part must be one of {', '.join(PARTS)}, but got {unknown[0]}.")
    if not (options.family / "study.yaml").is_file():
        print(f"--family must be a directory that `mergefront demo` made, but got {options.family}.", file=sys.stderr)
        return 2
    for name in options.parts or PARTS:
        table = importlib.import_module(f"measuring_parts.{name}").table
        takes = inspect.signature(table).parameters
        show(name, table(options.family.absolute(), **({"seeds": options.seeds} if "seeds" in takes else {})))
    return 0


def show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
    print(f"\n## {name}\n", *(f"| {' | '.join(line)} |" for line in lines), sep="\n", flush=True)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
