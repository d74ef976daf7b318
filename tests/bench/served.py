"""The application that is measured, served like anyone's: `loopline serve served.py`."""

from __future__ import annotations

import os

from workloads import WORKLOADS, boosting, busy_table

from loopline import Every, Loopline

# Nothing here is promoted by itself, so that a training is measured without the swap after it.
NEVER = Every(outcomes=1_000_000_000, mode="propose")

app = Loopline()
model, table, target = WORKLOADS[os.environ.get("BENCH_WORKLOAD", "iris")].make()
app.add(
    *("bench", model),
    data=table,
    target=target,
    log=os.environ.get("BENCH_LOG", "async"),
    retrain=NEVER,
)
if os.environ.get("BENCH_BUSY"):
    app.add("busy", boosting(), data=busy_table, target="label", retrain=NEVER)
