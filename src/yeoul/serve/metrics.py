"""`GET /metrics`, as Prometheus reads them: what came in, how long it took, and what the engines hold."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yeoul.serve.served import Models

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

GAUGES = {
    "waiting": "Requests that nothing was done for yet", "reading": "Prompts that are being read",
    "decoding": "Answers that are being written", "cache_bytes": "Bytes that requests in flight remember",
    "snapshots": "States that are kept for requests to come", "snapshot_bytes": "Bytes of these states",
}  # fmt: skip
COUNTERS = {
    "requests": "Requests that were taken", "hits": "Requests that went on from a kept state",
    "prompt_tokens": "Tokens of prompts that were read", "cached_tokens": "Tokens of prompts that were known",
    "completion_tokens": "Tokens drawn", "steps": "Decode steps",
}  # fmt: skip


class Engines(Collector):
    """What the engines say at the moment of asking."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        """Families of figures, labelled by the model."""
        stats = {model.name: model.engine.stats() for model in self.models}
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"yeoul_{name}", text, labels=["model"])
            for model, found in stats.items():
                gauge.add_metric([model], getattr(found, name))
            yield gauge
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"yeoul_{name}", text, labels=["model"])
            for model, found in stats.items():
                counter.add_metric([model], getattr(found, name))
            yield counter
        ended = CounterMetricFamily("yeoul_finished", "Answers at their end", labels=["model", "reason"])
        for model, found in stats.items():
            for reason, number in found.finished.items():
                ended.add_metric([model, reason], number)
        yield ended


class Requests:
    """ASGI middleware that counts requests and measures how long they take to their first and their last byte."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        labels = ("route",)
        self.count = Counter("yeoul_requests", "Requests", (*labels, "status"), registry=registry)
        self.first = Histogram("yeoul_first_byte_seconds", "To the first piece of the body", labels, buckets=SECONDS,
                               registry=registry)  # fmt: skip
        self.whole = Histogram("yeoul_request_seconds", "To the end", labels, buckets=SECONDS, registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, first = time.perf_counter(), 500, None

        async def watched(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first is None and message.get("body"):
                first = time.perf_counter() - began
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            found = scope.get("route")
            route = getattr(found, "path", "other")  # a path that is none of ours is no label: there are endless many
            self.count.labels(route, str(status)).inc()
            if first is not None:
                self.first.labels(route).observe(first)
            self.whole.labels(route).observe(time.perf_counter() - began)


def install(app: FastAPI, models: Models) -> None:
    """The route and what it counts."""
    registry = CollectorRegistry()
    registry.register(Engines(models))
    app.add_middleware(Requests, registry=registry)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
