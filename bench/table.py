"""``python -m bench.table FILE...``: result files as Markdown, a line for each group of cases and number of threads.

The ratio is the fastest rival's time over ours, of the best samples: above 1 medmpi is faster.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def rows(paths: list[Path]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Results by family, group and threads; of a case measured twice the later one counts."""
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            if "ratio" in result and "threads" in result:
                latest[result["family"], result["case"], result["threads"]] = result
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for (family, case, threads), result in latest.items():
        groups.setdefault((family, result.get("group", case), threads), []).append(result)
    return groups


def main() -> int:
    """Print the table."""
    groups = rows([Path(word) for word in sys.argv[1:]])
    if not groups:
        sys.stderr.write("bench.table: no results; name files that python -m bench FAMILY --out FILE has written\n")
        return 2
    print(
        "| family | group | threads | cases | ratio (geometric mean) | worst |\n| --- | --- | --- | --- | --- | --- |"
    )
    for (family, group, threads), results in groups.items():
        ratios = [result["ratio"] for result in results]
        mean, worst = statistics.geometric_mean(ratios), min(ratios)
        print(f"| {family} | {group} | {threads} | {len(ratios)} | {mean:.2f} | {worst:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
