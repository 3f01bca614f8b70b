"""`yeoul serve`: an OpenAI-compatible server with a web page."""

from __future__ import annotations

import json
import logging
import socket
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.infer.params import SamplingParams
from yeoul.recipes.screen import ScreenOptions
from yeoul.recipes.serve import ServeConfig


@dataclass(frozen=True)
class Config:
    """Serve models to OpenAI's clients, Ollama's, and a web page.

    The memory of a linear model's conversation does not grow with it, and a conversation that goes on, is edited or
    branches is not read again.
    """

    models: tuple[Place, ...]
    """Models: folders, GGUF files, runs, or ids on the hub; or NAME=FOLDER. The first answers where a request names
    none."""
    _: KW_ONLY
    settings: Annotated[ServeConfig, Parameter(name="*")] = field(default_factory=ServeConfig)
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every network of this machine (then set a key)."""
    port: int = 8000
    """Port; 0 takes a free one."""
    temperature: float = 0.8
    """Divides the logits where a request does not say by what; 0 always takes the likeliest token."""
    top_p: float = 0.95
    """Draw from the smallest set of tokens whose probability reaches p, where a request does not say."""
    safety: Annotated[ScreenOptions, Parameter(name="*")] = field(default_factory=ScreenOptions)
    """The safety screen."""
    log_json: bool = False
    """Log as lines of JSON."""
    drain_seconds: int = 30
    """How long answers may go on after SIGTERM or Ctrl-C."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("no model was given", fix="give one or more model folders")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port is {self.port}, but must be between 0 and 65535")
        if self.drain_seconds < 0:
            raise UserError(f"--drain-seconds is {self.drain_seconds}, but must be 0 or more")


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        made = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name,
                "message": record.getMessage(), **getattr(record, "fields", {})}  # fmt: skip
        if record.exc_info:
            made["traceback"] = self.formatException(record.exc_info)
        return json.dumps(made, ensure_ascii=False)


def run(config: Config) -> int:
    """Opens the models and answers until it is told to stop."""
    import uvicorn

    from yeoul.recipes.serve import server_app

    listener = _listen(config.host, config.port)  # before models are loaded, which takes longer
    _log(config.log_json)
    app = server_app(
        config.models, config.settings, safety=config.safety, device=config.device, dtype=config.dtype,
        sampling=SamplingParams(temperature=config.temperature, top_p=config.top_p),
        say=lambda what: print(what, file=sys.stderr, flush=True),
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
    print(f"Ready: http://{shown}:{port} is the page, http://{shown}:{port}/v1 for OpenAI's clients. Ctrl-C ends it.",
          file=sys.stderr, flush=True)  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=config.drain_seconds, server_header=False,
    ))  # fmt: skip
    server.run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = "choose another with --port, or --port 0 for a free one"
        raise UserError(f"cannot listen at {host}, port {port} ({reason})", None, fix) from None


def _log(as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("yeoul.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "yeoul.serve" else logging.WARNING)
