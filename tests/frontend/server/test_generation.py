"""Tokens of the router to text: the real generation object, its tokens pushed by hand."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from frontend.server.generation import TextDelta, TextGeneration
from frontend.server.journal import Journal
from frontend.server.measures import Timeline
from frontend.server.text.stops import StopPatterns
from frontend.server.text.tokenizer import Tokenizer, load_tokenizer
from frontend.server.text_request import TextRequest
from frontend.server.token_stream import Generation
from protocol.codec import pack_float32, pack_int32
from protocol.messages import AddRequest, Finished, FinishReason, TopLogprobs
from protocol.params import EngineParams, SamplingParams
from tests.frontend.server.api.running import demo_config


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_config())


@pytest.fixture
def generation() -> Generation:
    request = AddRequest(1, bytes(4), 1, EngineParams(max_tokens=9))
    timeline = Timeline(num_prompt_tokens=1, max_tokens=9, submitted_ns=0)
    return Generation(Journal(0, 0, lambda _: None), request, timeline)


def _finished(reason: FinishReason = "length", stop_token_id: int = -1) -> Finished:
    return Finished(1, reason, stop_token_id, num_cached_tokens=3)


def _logprobs(logprob: float, *candidates: tuple[int, float]) -> TopLogprobs:
    ids, values = [item[0] for item in candidates], [item[1] for item in candidates]
    return TopLogprobs(logprob, 2, pack_int32(ids), pack_float32(values))


def _output(generation: Generation, tokenizer: Tokenizer, params: SamplingParams, prompt: Sequence[int] = (33,)) -> TextGeneration:
    stops = StopPatterns(params.stop, include_in_output=params.include_stop_str_in_output) if params.stop else None
    request = TextRequest(np.array(prompt, np.int32), params, EngineParams(max_tokens=1), tokenizer, stops=stops)
    return TextGeneration(generation, request)


def _read(output: TextGeneration) -> list[TextDelta]:
    async def collect() -> list[TextDelta]:
        return [delta async for delta in output]

    return asyncio.run(collect())


def _push(generation: Generation, token_ids: list[int]) -> None:
    for token_id in token_ids:
        generation.push(token_id, None)


def test_merged_tokens_come_as_one_delta(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One, two, three")
    _push(generation, ids)
    generation.finish(_finished())
    output = _output(generation, tokenizer, SamplingParams())
    assert _read(output) == [TextDelta("One, two, three", ids, [], "length")]
    assert (output.num_output_tokens, output.num_cached_tokens) == (len(ids), 3)


def test_tokens_merged_behind_a_stop_string_are_neither_shown_nor_counted(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One, two, three")
    _push(generation, ids)
    generation.finish(_finished())
    output = _output(generation, tokenizer, SamplingParams(stop=["wo"]))
    end = next(size for size in range(len(ids)) if "wo" in tokenizer._fast.decode(ids[:size]))
    assert _read(output) == [TextDelta("One, t", ids[:end], [], "stop", "wo")]
    assert output.num_output_tokens == end


def test_held_back_text_is_shown_at_the_end(generation: Generation, tokenizer: Tokenizer) -> None:
    _push(generation, tokenizer.encode("a ##"))
    generation.finish(_finished())
    assert [delta.text for delta in _read(_output(generation, tokenizer, SamplingParams(stop=["###"])))] == ["a ##"]


def test_stop_strings_wait_for_min_tokens(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x y x y x")
    _push(generation, ids)
    generation.finish(_finished())
    output = _output(generation, tokenizer, SamplingParams(stop=["x"], min_tokens=2))
    assert "".join(delta.text for delta in _read(output)) == "x y "


def test_the_end_of_sequence_has_no_stop_reason_and_no_text(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("Done"), 2]
    _push(generation, ids)
    generation.finish(_finished("stop", 2))
    (delta,) = _read(_output(generation, tokenizer, SamplingParams(skip_special_tokens=False)))
    assert delta == TextDelta("Done", ids, [], "stop", None)


def test_a_stop_token_is_shown_where_asked(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One two")
    _push(generation, ids)
    generation.finish(_finished("stop", ids[-1]))
    params = SamplingParams(stop_token_ids=[ids[-1]], include_stop_str_in_output=True)
    (delta,) = _read(_output(generation, tokenizer, params))
    assert (delta.text, delta.stop_reason) == ("One two", ids[-1])


def test_logprobs_know_where_their_tokens_stand(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One two")
    for token_id in ids:
        generation.push(token_id, _logprobs(-0.5, (7, -0.25), (token_id, -0.5), (9, float("-inf"))))
    generation.finish(_finished())
    (delta,) = _read(_output(generation, tokenizer, SamplingParams(logprobs=3)))
    assert [entry.text_offset for entry in delta.logprobs] == [0, 3]
    assert delta.logprobs[0].top == [(7, -0.25), (ids[0], -0.5), (9, -9999.0)]
    assert (delta.logprobs[0].logprob, delta.logprobs[0].rank) == (-0.5, 2)
    assert delta.text == "One two"


def _with_logprobs(generation: Generation, ids: list[int]) -> None:
    for token_id in ids:
        generation.push(token_id, _logprobs(-0.5, (7, -0.25)))


def test_a_completion_goes_on_where_its_prompt_ends(generation: Generation, tokenizer: Tokenizer) -> None:
    *prompt, last = tokenizer.encode("x\N{GRINNING FACE}")
    _push(generation, [last])
    generation.finish(_finished())
    (delta,) = _read(_output(generation, tokenizer, SamplingParams(), prompt))
    assert delta.text == "\N{GRINNING FACE}"


def test_logprobs_of_a_stop_string_have_no_bytes(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One ##! two")
    _with_logprobs(generation, ids)
    generation.finish(_finished())
    (delta,) = _read(_output(generation, tokenizer, SamplingParams(logprobs=1, stop=["##!"])))
    assert (delta.text, delta.stop_reason) == ("One ", "##!")
    assert delta.token_ids == [entry.token_id for entry in delta.logprobs] == ids[: len(delta.token_ids)]
    assert b"".join(entry.data for entry in delta.logprobs) == b"One "
    assert max(entry.text_offset for entry in delta.logprobs) == 4


def test_with_logprobs_a_token_comes_with_its_text(generation: Generation, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a##")

    async def read() -> list[TextDelta]:
        output = _output(generation, tokenizer, SamplingParams(logprobs=1, stop=["###"]))
        deltas = []
        for token_id in ids:
            _with_logprobs(generation, [token_id])
            deltas.append(await anext(output))
        generation.finish(_finished())
        return [*deltas, await anext(output)]

    deltas = asyncio.run(read())
    assert [b"".join(entry.data for entry in delta.logprobs).decode() for delta in deltas] == [delta.text for delta in deltas]
    assert deltas[-1].text == "##"
    assert [token_id for delta in deltas for token_id in delta.token_ids] == ids


@pytest.mark.parametrize(("stop_id", "include", "data"), [(2, False, b""), (905, False, b""), (905, True, b" world")])
def test_logprobs_of_a_token_that_ends_the_text(
    generation: Generation, tokenizer: Tokenizer, stop_id: int, include: bool, data: bytes
) -> None:
    _with_logprobs(generation, [19556, stop_id])
    generation.finish(_finished("stop", stop_id))
    params = SamplingParams(logprobs=1, stop_token_ids=[905], include_stop_str_in_output=include, skip_special_tokens=False)
    (delta,) = _read(_output(generation, tokenizer, params))
    assert [entry.data for entry in delta.logprobs] == [b"Hello", data]
    assert delta.text.encode() == b"Hello" + data
    assert delta.logprobs[1].text_offset == 5


def test_a_device_without_logprobs(generation: Generation, tokenizer: Tokenizer) -> None:
    _push(generation, [19556, 905])
    generation.finish(_finished())
    (delta,) = _read(_output(generation, tokenizer, SamplingParams(logprobs=1)))
    assert (delta.text, delta.token_ids, delta.logprobs) == ("Hello world", [19556, 905], [])


def test_without_detokenization_only_ids_come(generation: Generation, tokenizer: Tokenizer) -> None:
    _push(generation, [1000, 2000])
    generation.finish(_finished())
    assert _read(_output(generation, tokenizer, SamplingParams(detokenize=False))) == [TextDelta("", [1000, 2000], [], "length")]


def test_nothing_follows_a_cancel(generation: Generation, tokenizer: Tokenizer) -> None:
    output = _output(generation, tokenizer, SamplingParams())
    _push(generation, [1000])
    output.cancel()
    output.cancel()
    assert _read(output) == []
