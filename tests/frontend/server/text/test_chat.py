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
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        template.render(messages, continue_final_message=True)


def test_whitespace_as_transformers_has_it() -> None:
    source = "{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m.content }}]\n  {% endif %}\n{% endfor %}\n{{ eos_token }}"
    assert ChatTemplate(source, {"eos_token": "</s>"}).render(_MESSAGES) == "[Hello]\n</s>"


def test_what_templates_call() -> None:
    source = (
        "{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}"
        "{{ {'k': '<\u00e4>'} | tojson }}{{ strftime_now('%Y') | length }}{{ tools is none }}"
    )
    assert ChatTemplate(source, {}).render(_MESSAGES) == '01{"k": "<\u00e4>"}4True'


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
