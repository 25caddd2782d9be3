"""Whether a template takes texts or parts is read off the template."""

import pytest

from frontend.server.text.chat import ChatTemplate

_TEXTS = {
    "a text": "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}",
    "a trimmed text": "{% set loop_messages = messages %}{% for m in loop_messages %}{{ m.content | trim }}{% endfor %}",
    "lines of a text": "{% for m in messages %}{% for line in m.content.split('\n') %}{{ line }}{% endfor %}{% endfor %}",
    "another list": "{% for m in messages %}{% for call in m.tool_calls %}{{ call }}{% endfor %}{{ m.content }}{% endfor %}",
}
_LOOP = "{% for part in CONTENT %}({{ part.text }}){% endfor %}"
_ONLY_PARTS = {
    "an item": "{% for m in messages %}" + _LOOP.replace("CONTENT", "m['content']") + "{% endfor %}",
    "get": "{% for m in messages %}" + _LOOP.replace("CONTENT", "m.get('content', [])") + "{% endfor %}",
    "a selection": "{% for m in messages %}"
    + _LOOP.replace("CONTENT", "m.content | selectattr('type', 'equalto', 'text')")
    + "{% endfor %}",
    "a variable": "{% for m in messages %}{% set c = m.content %}" + _LOOP.replace("CONTENT", "c[0:]") + "{% endfor %}",
    "or": "{% for m in messages %}" + _LOOP.replace("CONTENT", "(m.content or [])") + "{% endfor %}",
}
_BOTH = {
    "is string": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    + _LOOP.replace("CONTENT", "m.content")
    + "{% endif %}{% endfor %}",
    "macro": "{% macro show(c, n=0) %}{% if c is not string %}"
    + _LOOP.replace("CONTENT", "c")
    + "{% else %}{{ c }}{% endif %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
    "macro by name": "{% macro show(c) %}{% if c is string %}{{ c }}{% else %}"
    + _LOOP.replace("CONTENT", "c")
    + "{% endif %}{% endmacro %}{% for m in messages %}{{ show(c=m['content']) }}{% endfor %}",
}


def _rendered(source: str, content: str | list[str], role: str = "user") -> str:
    parts = content if isinstance(content, str) else [{"type": "text", "text": text} for text in content]
    return ChatTemplate(source, {}).render([{"role": role, "content": parts}])


@pytest.mark.parametrize("source", _TEXTS.values(), ids=_TEXTS)
def test_texts(source: str) -> None:
    assert _rendered(source, ["a", "b"]) == _rendered(source, "a\nb")


@pytest.mark.parametrize("source", _ONLY_PARTS.values(), ids=_ONLY_PARTS)
def test_only_parts(source: str) -> None:
    assert _rendered(source, ["a", "b"]) == _rendered(source, ["a", "b"], "tool") == "(a)(b)"
    assert _rendered(source, "ab") == "(ab)"


@pytest.mark.parametrize("source", _BOTH.values(), ids=_BOTH)
def test_both(source: str) -> None:
    assert _rendered(source, ["a", "b"]) == "(a)(b)"
    assert _rendered(source, "ab") == "ab"
    assert _rendered(source, ["a", "b"], "tool") == "a\nb"  # the results of tools are texts, where texts are known
