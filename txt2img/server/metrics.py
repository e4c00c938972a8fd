"""Counters of the server, in the text format that Prometheus reads."""

import time
from collections import Counter
from collections.abc import Mapping

KINDS = {
    "requests": "Answers by route and status.",
    "pictures": "Pictures drawn.",
    "drawing_seconds": "Seconds in which the device was drawing.",
    "jobs_refused": "Jobs refused because the queue was full.",
    "jobs_cancelled": "Jobs dropped or stopped because their client went.",
    "jobs_interrupted": "Jobs that their client interrupted.",
    "connections_closed": "Connections closed because there were too many, or they were too slow.",
}
GAUGES = {
    "jobs_waiting": "Jobs in the queue.",
    "jobs_running": "Jobs being drawn.",
    "connections": "Open connections.",
    "uptime_seconds": "Seconds since the start.",
}


class Metrics:
    """What was counted since the start."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.values: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, amount: float = 1, labels: str = "") -> None:
        """Add to a counter, whose labels are written as Prometheus writes them."""
        self.values[name, labels] += amount  # type: ignore[assignment]

    def answered(self, route: str, status: int) -> None:
        """Count an answer; `route` is a pattern, so that there is a bounded number of rows."""
        self.count("requests", labels=f'{{route="{route}",status="{status}"}}')

    def text(self, gauges: Mapping[str, float]) -> str:
        """All rows, with the gauges' values."""
        lines = []
        for name, help in KINDS.items():
            lines += [f"# HELP txt2img_{name}_total {help}", f"# TYPE txt2img_{name}_total counter"]
            rows = sorted((key, value) for key, value in self.values.items() if key[0] == name)
            for (_, labels), value in rows or [((name, ""), 0)]:
                if rows or name != "requests":
                    lines.append(f"txt2img_{name}_total{labels} {value:g}")
        now = {**gauges, "uptime_seconds": time.monotonic() - self.began}
        for name, help in GAUGES.items():
            lines += [f"# HELP txt2img_{name} {help}", f"# TYPE txt2img_{name} gauge"]
            lines.append(f"txt2img_{name} {now[name]:g}")
        return "\n".join(lines) + "\n"
