"""Chat templates render as Hugging Face transformers renders them, on templates that use all that those of models use."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from frontend.errors import InvalidRequest
from frontend.server.text.chat import ChatTemplate
from tests.clients.environments import Environment
from tests.clients.test_clients import PROGRAMS, run
from tests.frontend.server.text.tools.families import HARMONY

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

TRANSFORMERS = Environment("transformers", ("transformers==5.*", "jinja2>=3.1.6", "numpy>=2"), without=("torch",))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# Roles that have to take turns, system texts folded into the first of them, and contents in parts.
FOLDED = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) + '\n\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Turns of user and assistant have to alternate: ' ~ message.role) }}
    {%- endif -%}
    {%- set role = {'assistant': 'model'}.get(message['role'], message['role']) -%}
    {{ '<turn>' + role + '\n' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '</turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}
"""
# Tools as JSON of several kinds, a date, loop controls, macros, namespaces and the marks of training.
TOOLS = """
{%- macro described(spec, depth=0) -%}
    {%- if spec.type == 'object' -%}
        { {%- for key, value in spec.properties | items -%}
            {{ key }}{{ '' if key in spec.get('required', []) else '?' }}: {{ described(value, depth + 1) }}
            {{- ', ' if not loop.last }}
        {%- endfor -%} }
    {%- elif spec.enum is defined -%}{{ spec.enum | map('tojson') | join(' | ') }}
    {%- else -%}{{ spec.type | default('any', true) | upper }}{%- endif -%}
{%- endmacro %}
{% set ns = namespace(calls=0, last=messages | length - 1) %}
{%- if tools is not none and tools %}
# Tools, {{ strftime_now('%Y') | length }}
    {%- for tool in tools %}
        {%- if tool.type != 'function' %}{% continue %}{% endif %}
{{ tool.function | tojson(indent=2) }}
{{ tool | tojson(separators=(',', ':'), sort_keys=true) }}
{{ tool.function.name | tojson(ensure_ascii=true) }} {{ described(tool.function.parameters) }}
    {%- endfor %}
{%- endif %}
{% for message in messages %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}<|assistant|>
{{ message.content or '' }}
            {%- for call in message.tool_calls or [] %}
                {%- set ns.calls = ns.calls + 1 %}
<call {{ ns.calls }}>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</call>
            {%- endfor %}{{ eos_token }}{% endgeneration %}
    {%- elif message.role == 'tool' %}
<|tool|>{{ message.content | tojson }}
    {%- else %}
<|{{ message.role }}|>{{ message.content.split('\n')[-1] | trim if message.content is string else message.content | tojson }}
    {%- endif %}
{% endfor %}
{%- if not tools and (enable_thinking is defined and enable_thinking is false) %}<think></think>{% endif %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}{% if documents %}{{ documents | length }}{% endif %}"""
# What older templates do: no white space is taken away but by the environment.
PLAIN = """{% for m in messages %}
    {% if m['role'] not in ['user', 'assistant', 'system', 'tool'] %}
        {{ raise_exception("unknown role: " + m['role']) }}
    {% endif %}
[{{ loop.index }}/{{ loop.length }}] {{ m['role'].title() }}: {{ m['content'] }}{{ '' if loop.last else ',' }}
{% endfor %}{{ 'Assistant:' if add_generation_prompt else unk_token }}{{ missing | default('') }}{{ 1 / 2 }}{{ [1, 2][::-1] }}
"""
TEXTS = ("Hello", "  two\n\nlines \n", "é 日本 \U0001f600 <b>&'\"</b>", "", "{{ not a template }} {% endif %}")
TOOL = {
    "type": "function",
    "function": {
        "name": "größe",
        "description": "<b>'How' \"big\"?</b> & more",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "unit": {"enum": ["m", "ft", None]}, "n": {"type": "integer"}},
            "required": ["place"],
        },
    },
}


def conversations() -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    for text, other in itertools.product(TEXTS, TEXTS):
        user, assistant = {"role": "user", "content": text}, {"role": "assistant", "content": other}
        system = {"role": "system", "content": other}
        found += [
            [user],
            [system, user],
            [user, assistant],
            [system, user, assistant, user],
            [user, assistant, user, assistant] * 2,
        ]
    call = {
        "type": "function",
        "id": "c1",
        "function": {"name": "größe", "arguments": {"place": "Köln <3", "n": 1.5, "unit": None}},
    }
    calling = {"role": "assistant", "content": "", "tool_calls": [call, call]}
    found.append([{"role": "user", "content": "?"}, calling, {"role": "tool", "tool_call_id": "c1", "content": '{"é": 1}'}])
    return [*found, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]]


def conversations_of_channels() -> list[list[dict[str, Any]]]:
    """With one call in an answer, as its template has it, and thoughts under its own name."""
    found: list[list[dict[str, Any]]] = []
    arguments = {"place": "Köln <3", "n": 1.5, "unit": None}
    call = {"type": "function", "id": "c1", "function": {"name": "größe", "arguments": arguments}}
    for text, other in itertools.product(TEXTS, TEXTS):
        user, developer = {"role": "user", "content": text}, {"role": "developer", "content": other}
        calling = {"role": "assistant", "content": "", "thinking": other or "Hm", "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "c1", "content": text}
        final = {"role": "assistant", "content": other, "thinking": "So."}
        found += [
            [user],
            [developer, user],
            [developer, user, calling, result],
            [user, calling, result, calling, result, final, user],
            [user, {**calling, "content": text, "thinking": ""}, result],
            [user, {**calling, "content": "both", "thinking": "both"}, result],
            [user, final],
            [user, result],
        ]
    return found


def ours(source: str, context: dict[str, Any]) -> dict[str, str]:
    arguments: dict[str, Any] = {name: context[name] for name in ("enable_thinking", "reasoning_effort") if name in context}
    try:
        text = ChatTemplate(source, SPECIAL).render(
            context["messages"],
            add_generation_prompt=context["add_generation_prompt"],
            continue_final_message=context.get("continue_final_message", False),
            tools=context["tools"] or (),
            arguments=arguments,
        )
    except InvalidRequest as error:
        return {"error": str(error)}
    return {"text": text}


def test_texts_are_those_of_transformers(tmp_path: Path) -> None:
    jobs = []
    for source, messages, prompt, tools, think in itertools.product(
        (FOLDED, TOOLS, PLAIN), conversations(), (True, False), (None, [TOOL]), (None, False)
    ):
        context = {"messages": messages, "add_generation_prompt": prompt, "tools": tools, **SPECIAL}
        jobs.append({"source": source, "context": context if think is None else {**context, "enable_thinking": think}})
    for messages, prompt, tools, effort in itertools.product(
        conversations_of_channels(), (True, False), (None, [TOOL]), (None, "high")
    ):
        context = {"messages": messages, "add_generation_prompt": prompt, "tools": tools, **SPECIAL}
        jobs.append({"source": HARMONY, "context": context if effort is None else {**context, "reasoning_effort": effort}})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run(TRANSFORMERS.python(), PROGRAMS / "transformers_templates.py", tmp_path / "jobs.json", tmp_path / "texts.json")
    wanted = json.loads((tmp_path / "texts.json").read_text())
    refused = 0
    for job, expected in zip(jobs, wanted, strict=True):
        found = ours(job["source"], job["context"])
        if "error" in expected:
            refused += 1
            assert expected["error"] in found["error"]  # the template's own words
        else:
            assert found == expected, job
    assert 0 < refused < len(jobs) / 2
