"""The server under load: each figure over HTTP, from clients in another process.

    python benchmarks/serve.py models runs/bench                       # 10M models with random weights, a tokenizer
    python benchmarks/serve.py conversation runs/bench                 # time to the first token, turn by turn
    python benchmarks/serve.py many runs/bench --conversations 1000    # memory of open conversations
    python benchmarks/serve.py throughput runs/bench --llama-cpp /path/to/python-with-xllamacpp
    python benchmarks/serve.py faults runs/bench --requests 10000
    python benchmarks/serve.py soak runs/bench --minutes 30

Speeds do not depend on what weights say. Prompts are lists of random ids, answers have a fixed number of tokens. Memory
is the server's resident set. Each command prints a table; --out writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

VOCABULARY = 8000
KINDS = {"softmax": {}, "linear": {"attention": ("hybrid",), "exact": (64,), "state_update": "delta"}}
LLAMA_SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
port, room, rows, threads = map(int, sys.argv[2:])
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], port, room, rows
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.warmup, params.n_threads_http = False, rows + 8
server = xllamacpp.Server(params)
print("ready", server.listening_address, flush=True)
while True:
    time.sleep(1)
"""


def make_models(folder: Path, preset_name: str, context: int) -> None:
    """FOLDER/softmax and FOLDER/linear, with random weights, and FOLDER/f32.gguf and bf16.gguf of the first."""
    import yeoul
    from yeoul.data.builtin import generate_documents
    from yeoul.model.config import preset
    from yeoul.model.decoder import Decoder
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    train_tokenizer(
        generate_documents(seed=1, target_bytes=3_000_000), TokenizerConfig(vocab_size=VOCABULARY), folder / "tokenizer"
    )
    tokenizer = yeoul.Tokenizer.load(folder / "tokenizer")
    for kind, settings in KINDS.items():
        config = preset(preset_name, vocab_size=tokenizer.vocab_size, max_position_embeddings=context,
                        bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, **settings)  # fmt: skip
        yeoul.save(Decoder(config).eval(), folder / kind, tokenizer, overwrite=True)
        print(folder / kind)
    for dtype in ("f32", "bf16"):
        yeoul.export(folder / "softmax", folder / f"{dtype}.gguf", yeoul.ExportConfig(format="gguf", dtype=dtype))


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Served:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"
        self._watched = psutil.Process(process.pid)

    def resident(self) -> int:
        """Bytes of memory."""
        return int(self._watched.memory_info().rss)


@contextmanager
def yeoul_server(*models: Path, flags: tuple[str, ...] = ()) -> Iterator[Served]:
    """`yeoul serve`, until the end of the block."""
    port = free_port()
    command = [sys.executable, "-m", "yeoul", "serve", *map(str, models), "--port", str(port), *flags]
    with _running(command, port, log=Path("serve.log")) as served:
        yield served


@contextmanager
def llama_server(python: Path, model: Path, *, context: int, rows: int, threads: int) -> Iterator[Served]:
    """llama.cpp's server, with room for so many rows of so many tokens each."""
    port = free_port()
    numbers = map(str, (port, context * rows, rows, threads))
    with _running([str(python), "-c", LLAMA_SERVER, str(model), *numbers], port) as served:
        yield served


@contextmanager
def _running(command: list[str], port: int, log: Path | None = None) -> Iterator[Served]:
    errors = subprocess.DEVNULL if log is None else log.open("wb")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        for _ in range(600):
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {' '.join(command[:6])} ...")
            time.sleep(0.2)
        yield Served(process, port)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


async def completion(
    client: httpx2.AsyncClient, url: str, ids: list[int], tokens: int, **more: Any
) -> dict[str, float]:
    """One answer as a stream: seconds to its first token and to its end, and what usage says."""
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}, **more}  # fmt: skip
    began, first, usage = time.perf_counter(), 0.0, {}
    async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("choices") and not first:
                first = time.perf_counter() - began
            usage = chunk.get("usage") or usage
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "first": first,
        "whole": time.perf_counter() - began,
        "tokens": usage.get("completion_tokens", tokens),
        "cached": cached,
    }


def new_client() -> httpx2.AsyncClient:
    """One that waits as long as it takes; a connection for each request, as different clients have."""
    return httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0))


async def converse(url: str, model: str, turns: int, said: int, answered: int, seed: int) -> list[dict[str, float]]:
    """Turns that each add so many tokens; then one after an edit three turns back."""
    dice, talk, found = random.Random(seed), [], []
    async with new_client() as client:
        marks = []
        for _ in range(turns):
            marks.append(len(talk))
            talk += [dice.randrange(300, VOCABULARY) for _ in range(said)]
            found.append({"prompt": len(talk), **await completion(client, url, talk, answered, model=model)})
            talk += [dice.randrange(300, VOCABULARY) for _ in range(answered)]  # as if the answer had been edited
        edited = talk[: marks[-3]] + [dice.randrange(300, VOCABULARY) for _ in range(said)]
        found.append({"prompt": len(edited), **await completion(client, url, edited, answered, model=model)})
    return found


def conversation(args: argparse.Namespace) -> dict[str, Any]:
    """Time to the first token of each turn, one model after the other."""
    result: dict[str, Any] = {}
    with yeoul_server(args.folder / "softmax", args.folder / "linear") as served:
        for name in ("softmax", "linear"):
            runs = [
                asyncio.run(converse(served.url, name, args.turns, args.said, args.answered, seed))
                for seed in range(args.repeats)
            ]
            turns = [
                {"prompt": runs[0][turn]["prompt"], "first": statistics.median(run[turn]["first"] for run in runs),
                 "cached": statistics.median(run[turn]["cached"] for run in runs)}
                for turn in range(args.turns + 1)
            ]  # fmt: skip
            result[name] = turns
            second, last, edited = turns[1]["first"], turns[-2]["first"], turns[-1]["first"]
            print(f"{name:<8} first token: turn 2 {second * 1e3:7.1f} ms, turn {args.turns} at {turns[-2]['prompt']:,} "
                  f"tokens {last * 1e3:7.1f} ms ({last / second:.2f} x), after an edit {edited * 1e3:7.1f} ms "
                  f"({edited / second:.2f} x); cached {turns[-2]['cached']:,.0f}, {turns[-1]['cached']:,.0f}",
                  flush=True)  # fmt: skip
    return result


def many(args: argparse.Namespace) -> dict[str, Any]:
    """Memory of open conversations of a linear model, each with its state kept."""
    flags = ("--snapshot-mb", str(args.snapshot_mb), "--max-rows", "8")
    with yeoul_server(args.folder / "linear", flags=flags) as served:
        model = httpx2.get(f"{served.url}/v1/models").json()["data"][0]["meta"]

        async def run() -> list[tuple[int, int]]:
            dice, seen = random.Random(0), []
            async with new_client() as client:
                base = [dice.randrange(300, VOCABULARY) for _ in range(args.tokens - 16)]
                for number in range(args.conversations):
                    # what all have in common is read once; the state of each is its own
                    ids = base + [dice.randrange(300, VOCABULARY) for _ in range(16)]
                    await completion(client, served.url, ids, 1)
                    if number % max(1, args.conversations // 10) == 0 or number == args.conversations - 1:
                        seen.append((number + 1, served.resident()))
            return seen

        before, seen = served.resident(), asyncio.run(run())
        metrics = httpx2.get(f"{served.url}/metrics").text
    kept = sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("yeoul_snapshots{"))
    grown = seen[-1][1] - before
    print(f"{args.conversations:,} conversations of {args.tokens:,} tokens: memory rose by {grown / 2**20:,.0f} MiB, "
          f"{grown / args.conversations / 2**10:,.0f} KiB each; a state has {model['state_bytes'] / 2**10:,.0f} KiB; "
          f"{kept:,.0f} states are kept")  # fmt: skip
    return {"before": before, "resident": seen, "state_bytes": model["state_bytes"], "kept": kept}


async def load(
    url: str, clients: int, requests: int, new: int, longest: int, seed: int, **more: Any
) -> dict[str, float]:
    """Clients that each ask one thing after another; prompts of 128 to `longest` tokens, evenly in the logarithm."""
    dice = random.Random(seed)
    lengths = [round(128 * (longest / 128) ** dice.random()) for _ in range(requests)]
    prompts = [[dice.randrange(300, VOCABULARY) for _ in range(length)] for length in lengths]
    waiting, found = list(range(requests)), []

    async def one(client: httpx2.AsyncClient, delay: float) -> None:
        await asyncio.sleep(delay)
        while waiting:
            found.append(await completion(client, url, prompts[waiting.pop()], new, **more))

    async with new_client() as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, dice.random()) for _ in range(clients)))
        seconds = time.perf_counter() - began
    first = sorted(answer["first"] for answer in found)
    return {
        "seconds": seconds, "tokens_per_second": sum(answer["tokens"] for answer in found) / seconds,
        "read_per_second": sum(lengths) / seconds, "first_median": statistics.median(first),
        "first_p99": first[min(len(first) - 1, int(0.99 * len(first)))],
    }  # fmt: skip


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Ours with softmax and linear, and llama.cpp's with the same softmax."""
    result: dict[str, Any] = {}

    def measured(name: str, served: Served) -> None:
        runs = [
            asyncio.run(load(served.url, args.clients, args.requests, args.new, args.longest, seed))
            for seed in range(args.repeats)
        ]
        result[name] = runs
        line = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"{name:<22} {line['tokens_per_second']:9,.0f} tokens/s written, {line['read_per_second']:9,.0f} read; "
              f"first token {line['first_median']:.2f} s, p99 {line['first_p99']:.2f} s", flush=True)  # fmt: skip

    flags = ("--max-rows", str(args.clients), "--snapshot-mb", "0", "--dtype", args.dtype)
    for kind in ("softmax", "linear"):
        with yeoul_server(args.folder / kind, flags=flags) as served:
            measured(kind, served)
    if args.llama_cpp is not None:
        room = args.longest + args.new + 64
        file = args.folder / ("bf16.gguf" if args.dtype == "bfloat16" else "f32.gguf")
        with llama_server(args.llama_cpp, file, context=room, rows=args.clients,
                          threads=args.threads) as served:  # fmt: skip
            measured("llama.cpp softmax", served)
    return result


BAD_BODIES = (
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe\x00", b'{"messages": 1}', b'{"messages": []}', b"[" * 20_000,
    b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 2}',
    '{"messages": [{"role": "user", "content": "\x00\x1b[2J안녕"}], "max_tokens": 2}'.encode(),
    b'{"prompt": [99999999], "max_tokens": 1}', b'{"prompt": "x", "max_tokens": -1}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "max_tokens": 2, "seed": 99999999999999999999999}', b'{"prompt": "x", "n": 100000}',
    b'{"prompt": "x", "max_tokens": 2, "logit_bias": {"-1": 5}}', b'{"model": "../../etc/passwd", "prompt": "x"}',
    b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": '
    b'{"schema": {"$ref": "#"}}}}',
    b'{"prompt": "x", "stop": ["' + b"a" * 5000 + b'"]}', b'{"prompt": ["x", 1]}', b'{"prompt": {}}',
)  # fmt: skip


async def misbehave(url: str, requests: int, seed: int, say: Any) -> dict[str, int]:
    """Requests with faults among good ones, 16 at a time; returns how often each status came."""
    dice, statuses, waiting = random.Random(seed), {}, list(range(requests))
    good = {"messages": [{"role": "user", "content": "안녕?"}], "max_tokens": 8}

    async def one(client: httpx2.AsyncClient) -> str:
        kind = dice.randrange(8)
        route = dice.choice(
            ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/chat", "/tokenize", "/v1/embeddings")
        )
        if kind < 3:
            answer = await client.post(
                url + route, content=dice.choice(BAD_BODIES), headers={"content-type": "application/json"}
            )
        elif kind == 3:  # goes away while it is answered
            try:
                async with client.stream(
                    "POST", f"{url}/v1/chat/completions", json={**good, "stream": True, "max_tokens": 400}
                ) as stream:
                    async for _ in stream.aiter_bytes():
                        if dice.random() < 0.3:
                            break
            except httpx2.HTTPError:
                pass
            return "left"
        elif kind == 4:  # goes away before it is answered
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
            body = json.dumps({**good, "max_tokens": 400}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            writer.write(body if dice.random() < 0.5 else body[:10])
            await writer.drain()
            await asyncio.sleep(dice.random() * 0.1)
            writer.close()
            return "gone"
        elif kind == 5:
            answer = await client.get(
                url
                + dice.choice(
                    ("/", "/nowhere", "/v1/models/%00", "/v1/models/../../x", "/metrics", "/v1/chat/completions")
                )
            )
        elif kind == 6 and dice.random() < 0.05:  # a huge body
            answer = await client.post(
                url + route,
                content=b'{"prompt": "' + b"x" * (20 * 2**20) + b'"}',
                headers={"content-type": "application/json"},
            )
        else:
            answer = await client.post(f"{url}/v1/chat/completions", json=good)
            assert answer.status_code in (200, 429), answer.text[:300]
        assert "Traceback" not in answer.text, answer.text[:300]
        return str(answer.status_code)

    async def work(client: httpx2.AsyncClient) -> None:
        while waiting:
            number = waiting.pop()
            status = await one(client)
            statuses[status] = statuses.get(status, 0) + 1
            if number % 1000 == 0:
                say(number)

    async with new_client() as client:
        await asyncio.gather(*(work(client) for _ in range(16)))
    return statuses


def faults(args: argparse.Namespace) -> dict[str, Any]:
    """No traceback, no row that stays, memory that is flat once warm."""
    memory: list[int] = []
    with yeoul_server(args.folder / "linear", flags=("--snapshot-mb", "64")) as served:
        asyncio.run(misbehave(served.url, args.requests // 5, 1, lambda _: None))  # warms up
        memory.append(served.resident())
        statuses = asyncio.run(misbehave(served.url, args.requests, 2, lambda _: memory.append(served.resident())))
        time.sleep(2)
        memory.append(served.resident())
        metrics = httpx2.get(f"{served.url}/metrics").text
        alive = served.process.poll() is None
    busy = sum(
        float(line.split()[-1])
        for line in metrics.splitlines()
        if line.startswith(("yeoul_decoding{", "yeoul_reading{", "yeoul_waiting{"))
    )
    tracebacks = Path("serve.log").read_text(errors="replace").count("Traceback")
    growth = max(memory[1:]) / memory[0] - 1
    print(f"{args.requests:,} requests: {dict(sorted(statuses.items()))}; alive {alive}, rows that stay {busy:.0f}, "
          f"tracebacks {tracebacks}, memory {memory[0] / 2**20:,.0f} MiB, at most {100 * growth:+.1f} %")  # fmt: skip
    return {"statuses": statuses, "alive": alive, "busy": busy, "tracebacks": tracebacks, "resident": memory}


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Load for minutes: memory and the slowest first tokens, minute by minute."""
    minutes = []
    with yeoul_server(args.folder / "linear") as served:
        end, number = time.monotonic() + 60 * args.minutes, 0
        while time.monotonic() < end:
            number += 1
            found = asyncio.run(load(served.url, args.clients, args.requests, args.new, args.longest, number))
            minutes.append({"resident": served.resident(), **found})
            print(f"{number:3d}: {found['tokens_per_second']:8,.0f} tokens/s, first p99 {found['first_p99']:.2f} s,"
                  f" {served.resident() / 2**20:,.0f} MiB", flush=True)  # fmt: skip
    return {"rounds": minutes}


def main() -> None:
    """See the module."""
    from yeoul import runtime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("models", "conversation", "many", "throughput", "faults", "soak"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="10m")
    parser.add_argument("--context", type=int, default=16_384, help="of the models")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--said", type=int, default=700, help="tokens that each turn adds")
    parser.add_argument("--answered", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--snapshot-mb", type=int, default=8192)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--longest", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the throughput")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=runtime.usable_cpus())
    parser.add_argument("--llama-cpp", type=Path, help="interpreter with xllamacpp")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "models":
        make_models(args.folder, args.preset, args.context)
        return
    print(f"{runtime.cpu_name()}, {runtime.usable_cpus()} cores, preset {args.preset}", flush=True)
    work = {"conversation": conversation, "many": many, "throughput": throughput, "faults": faults, "soak": soak}
    result = work[args.what](args)
    if args.out is not None:
        values = {"command": " ".join(["python", *sys.argv]), "cpu": runtime.cpu_name(), args.what: result}
        args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
