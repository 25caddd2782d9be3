"""Embeddings of texts, for HTTP and the Python client alike: requests of the engine's that only read their prompts."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest, RequestLost
from frontend.server.access import shown
from frontend.server.generation import TextEngine
from frontend.server.prompt_scores import PromptEmbedding
from frontend.server.prompts import off_loop
from frontend.server.token_stream import Generation
from frontend.server.visit import current
from frontend.wire import TextPrompt, TokenPrompt
from protocol.codec import Float32Array, Int32Array, unpack_int32
from protocol.config import EmbeddingSettings
from protocol.errors import ProtocolError
from protocol.params import EngineParams

MOST_INPUTS = 2048  # of one request, as OpenAI has it: each is a request of the engine's own
_AT_A_TIME = 16  # started before others get their turn: some milliseconds with long inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is wanted of all inputs of a request."""

    dimensions: int | None = None  # fewer numbers than the model has
    truncate: int | None = None  # tokens that are left of a longer input, from its beginning; -1: as many as the context holds
    cache_salt: str = ""
    priority: int = 0
    field: str = "input"  # what its sender calls the inputs


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Of some inputs, in their order."""

    vectors: Float32Array  # [inputs, dimensions]
    num_prompt_tokens: int
    num_cached_tokens: int


async def embed(engine: TextEngine, inputs: Sequence[TextPrompt | TokenPrompt | list[int]], wanted: Wanted) -> Embeddings:
    """The embeddings of all inputs; what runs is aborted when the caller is cancelled, or one fails.

    Raises InvalidRequest naming the input or field that is wrong, RequestLost when the engine failed on one, and what the router
    raises.
    """
    _check(engine, len(inputs), wanted)
    if engine.config.log_prompts and (visit := current()) is not None:
        visit.prompt = shown(inputs)
    prompts = await off_loop(sum(map(_size, inputs)), lambda: [_encoded(engine, wanted, *one) for one in enumerate(inputs)])
    if (visit := current()) is not None:
        visit.outputs_per_prompt = 1
    params = EngineParams(max_tokens=1, pooling=engine.config.embedding.pooling)
    started: list[tuple[Generation, PromptEmbedding]] = []
    try:
        for prompt in prompts:
            embedding = PromptEmbedding()
            options = {"priority": wanted.priority, "cache_salt": wanted.cache_salt}
            started.append((engine.router.submit(prompt, params, stream=False, scores=embedding, **options), embedding))  # type: ignore[arg-type]
            if len(started) % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        pooled = [await _result(generation, embedding) for generation, embedding in started]
    finally:
        for generation, _ in started:
            generation.cancel()
    vectors = await off_loop(
        len(pooled) * len(pooled[0]), lambda: finished(np.stack(pooled), wanted.dimensions, engine.config.embedding)
    )
    return Embeddings(vectors, sum(map(len, prompts)), sum(generation.num_cached_tokens for generation, _ in started))


def finished(pooled: Float32Array, dimensions: int | None, settings: EmbeddingSettings) -> Float32Array:
    """pooled [inputs, size] -> [inputs, dimensions], cut first and then normalised, as Matryoshka embeddings are (Kusupati et al.
    2022). Raises RequestLost on numbers that are not finite."""
    if not np.isfinite(pooled).all():
        raise RequestLost("the model's output was not finite")
    vectors = pooled[:, :dimensions].astype(np.float64)
    if settings.normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.astype(np.float32)


def _check(engine: TextEngine, count: int, wanted: Wanted) -> None:
    size, limit, settings = engine.capacity.embedding_size, engine.capacity.max_model_len, engine.config.embedding
    if not size:
        raise InvalidRequest("the family of this model gives no embeddings", "model", "unsupported_parameter")
    if not 1 <= count <= MOST_INPUTS:
        raise InvalidRequest(f"{wanted.field}: 1 to {MOST_INPUTS} inputs in one request, not {count}", wanted.field)
    if wanted.truncate is not None and wanted.truncate != -1 and not 1 <= wanted.truncate <= limit:
        raise InvalidRequest(f"truncate_prompt_tokens must be -1, or between 1 and {limit}", "truncate_prompt_tokens")
    if wanted.dimensions is None or wanted.dimensions == size:
        return
    if not settings.shortens:
        text = f"dimensions: this model was not trained for shorter embeddings than its {size} numbers: leave it out"
        raise InvalidRequest(text, "dimensions", "unsupported_parameter")
    if settings.sizes and wanted.dimensions not in settings.sizes:
        allowed = ", ".join(map(str, settings.sizes))
        raise InvalidRequest(f"dimensions must be one of {allowed}, not {wanted.dimensions}", "dimensions")
    if not 1 <= wanted.dimensions <= size:
        raise InvalidRequest(f"dimensions must be between 1 and {size}, not {wanted.dimensions}", "dimensions")


def _encoded(engine: TextEngine, wanted: Wanted, index: int, one: TextPrompt | TokenPrompt | list[int]) -> Int32Array:
    """Token ids of an input, which fit the context: int32, shape [tokens]. Raises InvalidRequest."""
    where, limit = f"{wanted.field}[{index}]", engine.capacity.max_model_len
    keep = limit if wanted.truncate == -1 else wanted.truncate
    ids: list[int] | Int32Array
    match one:
        case TextPrompt(text, add_special_tokens):
            ids = engine.tokenizer.encode_beginning(text, keep, add_special_tokens=add_special_tokens, limit=limit, field=where)
        case TokenPrompt(token_ids_i32):
            try:
                ids = unpack_int32(token_ids_i32)[:keep]
            except ProtocolError as error:
                raise InvalidRequest(f"{where}: {error}", wanted.field) from error
        case _:
            ids = one[:keep]
    if len(ids) > limit:
        text = f"This model's maximum context length is {limit} tokens; {where} has {len(ids)}"
        raise InvalidRequest(f"{text}: shorten it, or set truncate_prompt_tokens", wanted.field, CONTEXT_LENGTH_EXCEEDED)
    if not len(ids):
        raise InvalidRequest(f"{where} is empty", wanted.field)
    size = engine.capacity.vocab_size
    if not 0 <= min(ids) <= max(ids) < size:
        raise InvalidRequest(f"{where} holds token ids outside the vocabulary of {size}", wanted.field)
    return np.array(ids, np.int32)


async def _result(generation: Generation, embedding: PromptEmbedding) -> Float32Array:
    async for delta in generation:
        if delta.finish_reason == "error":
            raise RequestLost(delta.message or "the engine failed on this request")
    if embedding.pooled is None:
        raise RequestLost("the engine ended the request without its embedding")
    return embedding.pooled


def _size(one: TextPrompt | TokenPrompt | list[int]) -> int:
    match one:
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(packed):
            return len(packed) // 8
    return len(one)
