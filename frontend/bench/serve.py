"""`engine-bench serve`: random-token load on any OpenAI server, measured as `vllm bench serve` measures."""

import argparse
import asyncio
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import msgspec
import uvloop

from frontend.bench.http_client import HttpClient, HttpError
from frontend.bench.load import LoadSpec, PlannedRequest, plan_load
from frontend.bench.metrics import RequestResult, summarize
from frontend.bench.report import ProgressBar, print_table
from frontend.bench.streams import stream_completion
from frontend.output_files import check_output_file
from protocol.clock import now
from protocol.errors import ConfigError, ExitCode

SUMMARY = "send random prompts to an OpenAI server and print throughput and latencies"


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Detokenized(msgspec.Struct):
    prompt: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags have vLLM's names where the meaning is the same."""
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--model", default="", help="default: the first that the server names")
    parser.add_argument("--num-prompts", type=int, default=200, metavar="N")
    parser.add_argument("--random-input-len", type=int, default=230, metavar="TOKENS")
    parser.add_argument("--random-output-len", type=int, default=120, metavar="TOKENS")
    parser.add_argument("--random-range-ratio", type=float, default=0.0, metavar="R", help="lengths vary by ±R of themselves (0)")
    parser.add_argument("--max-concurrency", type=int, default=0, metavar="N", help="requests at a time (0: no limit)")
    parser.add_argument(
        "--request-rate", type=float, default=float("inf"), metavar="R", help="per second, Poisson (inf: all at once)"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="every answer has its full length")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    parser.add_argument("--temperature", type=float, default=None, help="the server's own default when not given")
    parser.add_argument(
        "--prompt-kind", choices=("ids", "text"), default="ids", help="text needs a server with /detokenize, as ours and vLLM have"
    )
    parser.add_argument("--token-ids", type=int, nargs=2, default=(1000, 30000), metavar=("LOW", "HIGH"), help="range to draw from")
    parser.add_argument("--num-warmups", type=int, default=1, metavar="N", help="requests sent before, not measured (1)")
    parser.add_argument("--percentiles", type=float, nargs="+", default=[99.0], metavar="P")
    parser.add_argument("--api-key", default="", help="sent as a bearer token")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is standard output, in place of the table")
    parser.add_argument("--no-progress", action="store_true")


def run(options: argparse.Namespace) -> int:
    """Runs the load. Returns 0 when every request was answered. Raises ConfigError on absurd flags, HttpError without a server."""
    for flag in ("num_prompts", "random_input_len", "random_output_len"):
        if getattr(options, flag) < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: at least 1 is wanted")
    if not options.request_rate > 0 or not 0 <= options.random_range_ratio < 1 or options.max_concurrency < 0:
        raise ConfigError("--request-rate above 0, --random-range-ratio from 0 to below 1 and --max-concurrency from 0 are wanted")
    if not 0 <= options.token_ids[0] < options.token_ids[1] or not all(0 <= rank <= 100 for rank in options.percentiles):
        raise ConfigError("--token-ids LOW HIGH with 0 <= LOW < HIGH and --percentiles from 0 to 100 are wanted")
    if options.json not in (None, "-"):
        check_output_file("--json", options.json)
    results, duration, model = uvloop.run(_measure(options))
    summary = summarize(results, duration, options.percentiles)
    if options.json != "-":
        at_a_time = f"{options.max_concurrency} at a time" if options.max_concurrency else "no limit"
        load = f"{options.num_prompts} requests of {options.random_input_len} in, {options.random_output_len} out, {at_a_time}"
        print_table(summary, f"{model}: {load}")
    if options.json:
        facts = {"model": model, "base_url": options.base_url, "seed": options.seed, "prompt_kind": options.prompt_kind}
        size = {"num_prompts": options.num_prompts, "max_concurrency": options.max_concurrency or None}
        rate = options.request_rate if options.request_rate != float("inf") else None  # JSON has no infinity
        text = msgspec.json.encode({**facts, **size, "request_rate": rate, **summary.as_dict()}).decode()
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n")
    for reason, count in Counter(result.error for result in results if result.error).most_common(3):
        print(f"engine-bench: {count} failed: {reason}", file=sys.stderr)
    return ExitCode.OK if summary.failed == 0 else ExitCode.CRASHED


async def _measure(options: argparse.Namespace) -> tuple[list[RequestResult], float, str]:
    client = HttpClient(options.base_url, api_key=options.api_key)
    try:
        model = options.model or msgspec.json.decode(await client.fetch("GET", "/v1/models"), type=_Models).data[0].id
        spec = LoadSpec(
            num_prompts=options.num_prompts,
            input_len=options.random_input_len,
            output_len=options.random_output_len,
            range_ratio=options.random_range_ratio,
            request_rate=options.request_rate,
            token_ids=tuple(options.token_ids),
            seed=options.seed,
        )
        plan = plan_load(spec)
        bodies = [await _body(client, planned, model, options) for planned in plan]
        await _warm_up(client, spec, model, options)
        with ProgressBar(len(plan), enabled=not options.no_progress and sys.stderr.isatty()) as bar:
            results, duration = await _send_all(client, plan, bodies, options.max_concurrency, bar)
        return results, duration, model
    except (msgspec.DecodeError, IndexError) as error:
        raise HttpError(f"{options.base_url} does not answer like an OpenAI server: {error}") from error
    finally:
        client.close()


async def _body(client: HttpClient, planned: PlannedRequest, model: str, options: argparse.Namespace) -> bytes:
    prompt: str | list[int] = planned.token_ids
    if options.prompt_kind == "text":
        question = msgspec.json.encode({"model": model, "tokens": planned.token_ids})
        prompt = msgspec.json.decode(await client.fetch("POST", "/detokenize", question), type=_Detokenized).prompt
    fields = {
        "model": model,
        "prompt": prompt,
        "max_tokens": planned.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        fields["ignore_eos"] = True
    if options.temperature is not None:
        fields["temperature"] = options.temperature
    return msgspec.json.encode(fields)


async def _warm_up(client: HttpClient, spec: LoadSpec, model: str, options: argparse.Namespace) -> None:
    """Other prompts than the load's, so that no prefix cache has met them."""
    spec = dataclasses.replace(spec, num_prompts=options.num_warmups, seed=spec.seed + 1)
    for planned in plan_load(spec) if options.num_warmups > 0 else []:
        body = await _body(client, planned, model, options)
        result = await stream_completion(client, body, len(planned.token_ids), lambda _: None)
        if result.error:
            raise HttpError(f"the first request failed, so no load was sent: {result.error}")


async def _send_all(
    client: HttpClient, plan: list[PlannedRequest], bodies: list[bytes], max_concurrency: int, bar: "ProgressBar"
) -> tuple[list[RequestResult], float]:
    gate = asyncio.Semaphore(max_concurrency or len(plan))
    began = now()

    async def send(planned: PlannedRequest, body: bytes) -> RequestResult:
        if (wait := began + planned.at - now()) > 0:
            await asyncio.sleep(wait)
        async with gate:
            result = await stream_completion(client, body, len(planned.token_ids), bar.add_tokens)
        bar.finish_request()
        return result

    results = await asyncio.gather(*(send(planned, body) for planned, body in zip(plan, bodies, strict=True)))
    return results, now() - began
