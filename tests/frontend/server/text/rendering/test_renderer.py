"""Chat templates run where they can be killed, and what one does with a message harms no other."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from frontend.errors import EngineUnavailable, InvalidRequest
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.rendering.renderer import Renderer, RenderLimits, render_job
from protocol.errors import ModelError

Result = TypeVar("Result")

_FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
_PLAIN = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
_QUICK = RenderLimits(processor_seconds=0.3, memory=64 << 20)


def _with(source: str | None, work: Callable[[Renderer], Awaitable[Result]], limits: RenderLimits = _QUICK) -> Result:
    async def run() -> Result:
        renderer = Renderer(source, {"eos_token": "</s>"}, limits)
        try:
            await renderer.start()
            return await work(renderer)
        finally:
            await renderer.close()
            assert not renderer._processes

    return asyncio.run(run())


def _job(*contents: str, **options: Any) -> bytes:
    return render_job([{"role": "user", "content": content} for content in contents], **options)


def test_a_text_is_what_the_template_makes_of_it_anywhere() -> None:
    source = _PLAIN + "{{ eos_token }}{{ enable_thinking }}{{ messages | tojson }}"
    contents = ["\ufdd0 <ä> \U0001f600\n", "", "x" * 300_000]
    options = {"arguments": {"enable_thinking": False}, "add_generation_prompt": False}

    async def work(renderer: Renderer) -> str:
        return await renderer.render(_job(*contents, **options))

    here = ChatTemplate(source, {"eos_token": "</s>"}).render([{"role": "user", "content": one} for one in contents], **options)  # type: ignore[arg-type]
    assert _with(source, work) == here


def test_conversations_are_answered_each_by_its_own_text() -> None:
    async def work(renderer: Renderer) -> list[str]:
        return await asyncio.gather(*(renderer.render(_job(str(number))) for number in range(200)))

    assert _with(_PLAIN, work) == [f"[{number}]" for number in range(200)]


def test_a_refusal_names_its_field() -> None:
    async def work(renderer: Renderer) -> None:
        with pytest.raises(InvalidRequest, match="roles must alternate") as refused:
            await renderer.render(_job("Hi"))
        assert refused.value.param == "messages"
        with pytest.raises(InvalidRequest) as refused:
            await renderer.render(_job("Hi", continue_final_message=True))
        assert refused.value.param == "continue_final_message"

    _with("{{ raise_exception('roles must alternate') }}", work)


@pytest.mark.parametrize(
    "trap",
    [
        _FOREVER,
        "{{ (messages[0].content * 10000000) * 100 }}",
        "{% set ns = namespace(a=messages[0].content) %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "{{ (messages | length + 9) ** (10 ** 9) }}",
    ],
)
def test_what_a_message_sets_off_harms_that_message_alone(trap: str) -> None:
    source = "{% if messages[0].content == 'trap' %}" + trap + "{% endif %}" + _PLAIN

    async def work(renderer: Renderer) -> None:
        caught = [asyncio.ensure_future(renderer.render(_job("trap"))) for _ in range(3)]
        for number in range(20):
            assert await renderer.render(_job(str(number))) == f"[{number}]"
        for one in caught:
            with pytest.raises(InvalidRequest, match="chat template") as refused:
                await one
            assert refused.value.param == "messages"
        assert await renderer.render(_job("Hi")) == "[Hi]"
        assert len(renderer._processes) <= renderer.limits.processes

    _with(source, work)


def test_a_client_that_leaves_takes_no_process_with_it() -> None:
    async def work(renderer: Renderer) -> None:
        for _ in range(20):
            waiting = [asyncio.ensure_future(renderer.render(_job("Hi"))) for _ in range(10)]
            await asyncio.sleep(0)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert await renderer.render(_job("Hi")) == "[Hi]"

    _with(_PLAIN, work)


def test_processes_that_are_killed_from_outside_are_replaced() -> None:
    async def work(renderer: Renderer) -> None:
        for _ in range(3):
            for process in [*renderer._processes]:
                os.kill(process._process.pid, signal.SIGKILL)
            try:
                assert await renderer.render(_job("Hi")) == "[Hi]"
            except EngineUnavailable:  # both that it tried were killed while it asked
                pass
        assert await renderer.render(_job("Hi")) == "[Hi]"
        while len(renderer._idle) < renderer.limits.standing_by:
            await asyncio.sleep(0.01)
        assert await renderer.render(_job("Hi")) == "[Hi]"

    _with(_PLAIN, work)


@pytest.mark.parametrize(
    "source",
    [
        _FOREVER,
        "{{ 'a' * 10**9 }}",  # folded when it is compiled
        "{{ 9 ** (9 ** 9) }}",
        "{% set x = range(99999) | map('string') | join %}" + _FOREVER,
    ],
)
def test_a_template_that_does_not_end_is_noticed_at_the_start(source: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(renderer: Renderer) -> None:
        assert "chat template" in renderer.fault
        with pytest.raises(InvalidRequest, match="not used"):
            await renderer.render(_job("Hi"))

    _with(source, work)
    assert "chat template" in caplog.text


def test_a_template_that_does_not_compile_is_the_models_fault() -> None:
    async def work(renderer: Renderer) -> None:
        raise AssertionError("it started")

    with pytest.raises(ModelError, match="does not compile"):
        _with("{% if %}", work)


def test_a_model_without_a_template_needs_no_process() -> None:
    async def work(renderer: Renderer) -> None:
        with pytest.raises(InvalidRequest, match="no chat template"):
            await renderer.render(_job("Hi"))
        assert not renderer._processes

    _with(None, work)
