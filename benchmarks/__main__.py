"""`make bench`: run every benchmark and print each figure with its budget beside it.

Figures are medians of several repeats in this process unless the name says otherwise; CPU is process or thread time, so other work
on the machine disturbs it little. Name modules on the command line to run only those.
"""

import importlib
import platform
import sys
from os import cpu_count

MODULES = (
    "tracing",
    "framing",
    "framing_loopback",
    "splitting",
    "store_writes",
    "first_token",
    "many_streams",
    "webhook_ack",
    "recovery",
    "segments",
    "ledger",
)


def main(names: list[str]) -> int:
    print(f"Python {platform.python_version()}, {cpu_count()} cores, {platform.system()} {platform.machine()}")
    num_over = 0
    for name in names or MODULES:
        rows = importlib.import_module(f"benchmarks.{name}").measure()
        print(f"\n{name}")
        for what, value, unit, budget in rows:
            verdict = ""
            if budget is not None:
                is_rate = unit.endswith("/s")
                is_within = value >= budget if is_rate else value <= budget
                num_over += not is_within
                verdict = f"budget {budget:>10,g}  {'ok' if is_within else 'OVER'}"
            print(f"  {what:<74} {value:>14,.3f} {unit:<10} {verdict}")
    print(f"\n{num_over} figures over budget")
    return 1 if num_over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
