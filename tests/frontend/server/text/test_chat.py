"""Chat templates."""

import pytest

from frontend.errors import InvalidRequest
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.tokenizer import Tokenizer
from protocol.errors import ModelError

_MESSAGES = [{"role": "user", "content": "Hello"}]


def test_the_demo_models_prompt(demo_tokenizer: Tokenizer) -> None:
    template = ChatTemplate(demo_tokenizer.chat_template, demo_tokenizer.special.texts)
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    expected = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(_MESSAGES) == expected
    assert template.render(_MESSAGES, add_generation_prompt=False) == expected.removesuffix("<|im_start|>assistant\n")


def test_the_last_message_is_left_open_to_be_continued(demo_tokenizer: Tokenizer) -> None:
    template = ChatTemplate(demo_tokenizer.chat_template, {})
    messages = [*_MESSAGES, {"role": "assistant", "content": "I think "}]
    text = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nI think ")
    assert template.render(messages, add_generation_prompt=False) == text + "<|im_end|>\n"
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        template.render(messages, continue_final_message=True)


_TRIMS = "{% for m in messages %}<{{ m.role }}>\n\n{{ m.content | trim }}<end>{% endfor %}"
_STRIPS = "{% for m in messages %}[{{ m.role }}] {{ m.content.strip() + ' ' + eos_token }}{% endfor %}"
_THINKS = (
    "{% for m in messages %}<{{ m.role }}>\n{% set content = m.content.split('</think>')[-1] %}"
    "{{ content.strip('\n') }}<end>{% endfor %}"
)
_PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}<end>{% endfor %}"


@pytest.mark.parametrize(
    ("source", "content", "end"),
    [
        # As transformers 5.24 renders them with continue_final_message.
        (_TRIMS, "I think ", "<assistant>\n\nI think"),
        (_TRIMS, "  I think", "<assistant>\n\nI think"),
        (_PARTS, "I think \n", "I think"),
        (_THINKS, "I think ", "<assistant>\nI think "),
        # Here transformers leaves white space that the template itself does not.
        (_STRIPS, "I think \n", "[assistant] I think"),
        (_THINKS, "I think\n\n", "<assistant>\nI think"),
        # Here it takes white space that is the template's.
        (_TRIMS, "", "<assistant>\n\n"),
        (_TRIMS, " \n", "<assistant>\n\n"),
        # And it refuses what a template shows in part.
        (_THINKS, "<think>\nhm\n</think>\n\nwell ", "<assistant>\nwell "),
    ],
)
def test_a_continued_message_ends_as_the_template_has_it(source: str, content: str, end: str) -> None:
    template = ChatTemplate(source, {"eos_token": "</s>"})
    messages = [*_MESSAGES, {"role": "assistant", "content": content}]
    text = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith(end)
    assert template.render(messages, add_generation_prompt=False).startswith(text)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages[:1] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.content == 'Well' %}{{ m.content }}{% else %}<{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_message_that_cannot_be_left_open_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot leave the last message open") as refused:
        ChatTemplate(source, {}).render(
            [*_MESSAGES, {"role": "assistant", "content": "Well"}], add_generation_prompt=False, continue_final_message=True
        )
    assert refused.value.param == "continue_final_message"


def test_whitespace_as_transformers_has_it() -> None:
    source = "{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m.content }}]\n  {% endif %}\n{% endfor %}\n{{ eos_token }}"
    assert ChatTemplate(source, {"eos_token": "</s>"}).render(_MESSAGES) == "[Hello]\n</s>"


def test_what_templates_call() -> None:
    source = (
        "{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}"
        "{{ {'k': '<\u00e4>'} | tojson }}{{ strftime_now('%Y') | length }}{{ tools is none }}"
    )
    assert ChatTemplate(source, {}).render(_MESSAGES) == '01{"k": "<\u00e4>"}4True'
    source = "{{ {'k': '\u00e4\U0001f600\ufdd0', 'a': 1} | tojson(true, separators=(',', ':'), sort_keys=true) }}"
    assert (
        ChatTemplate("{% generation %}" + source + "{% endgeneration %}", {}).render(_MESSAGES)
        == r'{"a":1,"k":"\u00e4\ud83d\ude00' + '\ufdd0"}'
    )


def test_a_template_may_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template.render(_MESSAGES)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].missing.deeper }}",
        "{{ 1 / 0 }}",
        "{% for a in range(10000000) %}x{% endfor %}",
    ],
)
def test_the_sandbox_turns_every_failure_into_a_bad_request(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, {}).render(_MESSAGES)


def test_no_template_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate(None, {}).render(_MESSAGES)


def test_no_messages_says_so(demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        ChatTemplate(demo_tokenizer.chat_template, {}).render([])


def test_a_broken_template_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="does not compile"):
        ChatTemplate("{% if %}", {})
