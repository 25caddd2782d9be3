"""One line of the log for each request of a client: who, what, how much, how fast, how it ended. Never what was said."""

import logging
from collections.abc import Sequence

import msgspec

from frontend.server.measures import Timeline
from frontend.server.prompts import Asked
from frontend.server.visit import Visit, current
from frontend.wire import Conversation, TextPrompt, TokenPrompt
from protocol.clock import now_ns
from protocol.codec import unpack_int32

_LOG = logging.getLogger("frontend.access")

_MS = 1e-6  # of a nanosecond
_CLIENT_LEFT = 499  # as proxies log it: nobody was there to be answered
_LONGEST_TEXT = 200  # characters
_LONGEST_PROMPT = 16_384


def name_requests() -> None:
    """Has every line that is logged while this process works for a client's request say which one."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_name)


def in_log(text: str) -> str:
    """What strangers wrote, fit for a line: bounded, and without what would end the line or be obeyed by a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:_LONGEST_TEXT])


def shown(asked: Sequence[Asked]) -> str:
    """What was asked, for a log that is to say it: texts as they are, conversations and token ids as JSON."""
    texts = []
    for one in asked:
        match one:
            case TextPrompt(text):
                texts.append(text)
            case TokenPrompt(token_ids_i32):
                texts.append(msgspec.json.encode(unpack_int32(token_ids_i32[: 4 * _LONGEST_PROMPT]).tolist()).decode())
            case Conversation(turns):
                spoken = [{"role": turn.role, "content": turn.content} for turn in turns]
                texts.append(msgspec.json.encode(spoken).decode())
            case _:
                texts.append(msgspec.json.encode(one[:_LONGEST_PROMPT]).decode())
    return "\n".join(texts)[:_LONGEST_PROMPT]


def log_visit(visit: Visit, status: int | None, *, quiet: bool = False) -> None:
    """The request has ended. `status`: of the answer; None: none was begun. `quiet`: nobody asks about it."""
    level = logging.DEBUG if quiet else logging.INFO
    if not _LOG.isEnabledFor(level):
        return
    fields = _fields(visit, _CLIENT_LEFT if status is None else status)
    _LOG.log(level, "%s", _sentence(visit, fields), extra={"fields": fields, "request_id": visit.name})


def _fields(visit: Visit, status: int) -> dict[str, object]:
    fields: dict[str, object] = {"client": visit.client, "request": visit.what, "status": status}
    fields["duration_ms"] = round((now_ns() - visit.began_ns) * _MS, 1)
    if not visit.outputs:
        return fields
    prompts = visit.outputs[:: max(1, visit.outputs_per_prompt)]
    fields |= {
        "model": visit.model,
        "prompt_tokens": sum(output.num_prompt_tokens for output in prompts),
        "output_tokens": sum(output.num_tokens for output in visit.outputs),
        "cached_tokens": sum(output.num_cached_tokens for output in prompts),
        "finish_reason": ",".join(sorted({output.reason or "abort" for output in visit.outputs})),
    }
    if first := [output.first_ns for output in visit.outputs if output.first_ns]:
        fields["ttft_ms"] = round((min(first) - visit.began_ns) * _MS, 1)
    if (between := _between(visit.outputs)) is not None:
        fields["tpot_ms"] = round(between * _MS, 2)
    if visit.prompt is not None:
        fields["prompt"] = visit.prompt
    return fields


def _sentence(visit: Visit, fields: dict[str, object]) -> str:
    parts = [f"{visit.client or '-'} {visit.what} {fields['status']}"]
    if visit.outputs:
        parts.append(f"{fields['prompt_tokens']} + {fields['output_tokens']} tokens, {fields['cached_tokens']} cached")
        if "ttft_ms" in fields:
            parts.append(f"first after {fields['ttft_ms']} ms")
        if "tpot_ms" in fields:
            parts.append(f"then one in {fields['tpot_ms']} ms")
        parts.append(str(fields["finish_reason"]))
    parts.append(f"{fields['duration_ms']} ms in all")
    if "prompt" in fields:
        parts.append(f"prompt {fields['prompt']!r}")
    return ", ".join(parts)


def _between(outputs: list[Timeline]) -> float | None:
    """Mean nanoseconds from one token to the next."""
    several = [output for output in outputs if output.num_tokens > 1 and output.first_ns]
    spans = [(output.last_ns - output.first_ns, output.num_tokens - 1) for output in several]
    return sum(span for span, _ in spans) / sum(count for _, count in spans) if spans else None


def _name(record: logging.LogRecord) -> bool:
    visit = current()
    if visit is not None and not hasattr(record, "request_id"):
        record.request_id = visit.name
    return True
