"""Renders a conversation with the model's own chat template, in Jinja's immutable sandbox."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from frontend.errors import InvalidRequest
from protocol.errors import ModelError

Message: TypeAlias = Mapping[str, str]  # "role", "content", and what a template may read besides, such as "name"

# Marks where the last message ends while it is rendered to be continued; private-use characters, so no template trims them.
_END_MARK = "\ue000\ue001\ue000"
_MAX_RENDERED = 1 << 25  # characters; a template that multiplies its input beyond this is at fault


class _TemplateRefused(Exception):
    """A template called `raise_exception`: the conversation is not one that the model knows."""


class ChatTemplate:
    """One compiled template. `render` may run on any thread."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        """`source=None`: the model has none, and each `render` says so. Raises ModelError when it does not compile."""
        self._special_tokens = dict(special_tokens)
        self._template: jinja2.Template | None = None
        if source is None:
            return
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        arguments: Mapping[str, bool] | None = None,
    ) -> str:
        """The prompt's text. `continue_final_message` leaves the last message open, so that the model goes on in it.

        Raises InvalidRequest when there is no template, or it refuses the conversation.
        """
        if self._template is None:
            raise InvalidRequest("this model has no chat template: use completions with a prompt", "messages")
        if not messages:
            raise InvalidRequest("a conversation needs at least one message", "messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message leaves the last message open; set add_generation_prompt to false", "continue_final_message"
            )
        if continue_final_message:
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + _END_MARK}]
        context: dict[str, Any] = {**self._special_tokens, **(arguments or {})}
        context |= {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(context):
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_RENDERED:
                    raise InvalidRequest("the rendered conversation is too long", "messages")
        except _TemplateRefused as error:
            raise InvalidRequest(f"the model's chat template refuses the conversation: {error}", "messages") from error
        except InvalidRequest:
            raise
        except Exception as error:  # a template is a program: on odd messages it may raise anything
            raise InvalidRequest(
                f"the model's chat template fails on these messages: {type(error).__name__}", "messages"
            ) from error
        text = "".join(pieces)
        if continue_final_message:
            text, mark, _ = text.rpartition(_END_MARK)
            if not mark:
                raise InvalidRequest("the model's chat template cannot leave the last message open", "continue_final_message")
        return text


def _refuse(message: object = "") -> NoReturn:
    raise _TemplateRefused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON as models saw it in training: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
