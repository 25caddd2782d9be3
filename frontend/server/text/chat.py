"""Renders a conversation with the model's own chat template, in Jinja's immutable sandbox."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from frontend.errors import InvalidRequest
from frontend.server.text.content_format import content_format
from frontend.server.text.fences import FENCES, Messages
from frontend.server.text.tools.generic import without_system, without_tools
from frontend.server.text.tools.history import CallForm, with_calls, with_thinking
from protocol.errors import ModelError

# Marks where the last message ends while it is rendered to be continued; private-use characters, so no template trims them.
_END_MARK = "\ue000\ue001\ue000"
_MAX_RENDERED = 1 << 25  # characters; a template that multiplies its input beyond this is at fault


class _TemplateRefused(Exception):
    """A template called `raise_exception`: the conversation is not one that the model knows."""


class _Generation(Extension):
    """`{% generation %}`, with which templates mark the answers for training: here, the block is its contents."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        """`source=None`: the model has none, and each `render` says so. Raises ModelError when it does not compile."""
        self._special_tokens = dict(special_tokens)
        self._template: jinja2.Template | None = None
        self.takes_tools = False  # whether it tells the model of tools
        self._call_form: CallForm | None = None  # how it takes calls, once somebody has asked
        self._takes_thinking = source is not None and "message.thinking" in source  # its own name for thoughts
        if source is None:
            return
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
            self._format = content_format(tree)
            self.takes_tools = any(name.name == "tools" for name in tree.find_all(nodes.Name))
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template does not compile: {error}") from error

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        arguments: Mapping[str, bool | str] | None = None,
        tools: Sequence[dict[str, Any]] = (),
        rewrites_tools: bool = False,
    ) -> str:
        """The prompt's text. `messages`: each with "role", "content" (a text, or a list of parts {"type": "text", "text": …}), and
        what a template may read besides. `continue_final_message` leaves the last message open: the model goes on in it.
        `tools`: as OpenAI writes them. `rewrites_tools`: the template cannot tell of tools and calls, so texts of messages do.

        Raises InvalidRequest when there is no template, or it refuses the conversation. What a template takes of time and memory is
        not bounded here: see `rendering`.
        """
        if self._template is None:
            raise InvalidRequest("this model has no chat template: use completions with a prompt", "messages")
        if not messages:
            raise InvalidRequest("a conversation needs at least one message", "messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message leaves the last message open; set add_generation_prompt to false", "continue_final_message"
            )
        if continue_final_message and messages[-1].get("tool_calls"):
            raise InvalidRequest("a message that calls tools cannot be continued", "continue_final_message")
        context: dict[str, Any] = {**self._special_tokens, **(arguments or {})}
        context |= {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        if rewrites_tools:
            messages = without_tools(messages, tools)
        else:
            if self._takes_thinking:
                messages = with_thinking(messages)
            messages = self._with_calls(self._template, messages)
            context["tools"] = list(tools) or None
        try:
            text = self._run(self._template, context | {"messages": self._format.shaped(messages)})
        except InvalidRequest:
            if not (rewrites_tools and tools):
                raise
            messages = without_system(messages)  # which this template may not know either
            text = self._run(self._template, context | {"messages": self._format.shaped(messages)})
        messages = self._format.shaped(messages)
        if not continue_final_message:
            return text
        # What follows the last message is what follows a mark at its end. Without it, the text ends with what the template makes of
        # the message: trimmed, where it trims.
        marked = self._run(self._template, context | {"messages": [*messages[:-1], _with_mark(messages[-1])]})
        before, mark, after = marked.rpartition(_END_MARK)
        opened = text.removesuffix(after)
        if not mark or not text.endswith(after) or before.removeprefix(opened).strip():
            raise InvalidRequest("the model's chat template cannot leave the last message open", "continue_final_message")
        return opened

    def _with_calls(self, template: jinja2.Template, messages: Messages) -> Messages:
        if not any("tool_calls" in message or "tool_call_id" in message for message in messages):
            return messages
        if self._call_form is None:
            context = {**self._special_tokens, "add_generation_prompt": False, "tools": None, "documents": None}
            shaped = self._format.shaped
            self._call_form = CallForm.found(lambda trial: self._run(template, context | {"messages": shaped(trial)}))
        return with_calls(messages, self._call_form)

    def _run(self, template: jinja2.Template, context: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(context):
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_RENDERED:
                    raise InvalidRequest("the rendered conversation is too long", "messages")
        except _TemplateRefused as error:
            raise InvalidRequest(f"the model's chat template refuses the conversation: {error}", "messages") from error
        except (InvalidRequest, MemoryError):
            raise
        except Exception as error:  # a template is a program: on odd messages it may raise anything
            raise InvalidRequest(
                f"the model's chat template fails on these messages: {type(error).__name__}", "messages"
            ) from error
        return "".join(pieces)


def _with_mark(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + _END_MARK}
    *parts, last = content
    return {**message, "content": [*parts, {**last, "text": last["text"] + _END_MARK}]}


def _refuse(message: object = "") -> NoReturn:
    raise _TemplateRefused(re.sub(f"[{FENCES[0]}-{FENCES[-1]}]", "", str(message)))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models saw it in training: Jinja's own filter escapes for HTML. Fences stay what they are."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text


_ESCAPED = re.compile(f"[^\0-\x7f{FENCES[0]}-{FENCES[-1]}]")
