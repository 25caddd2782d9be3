"""What users write is text; what the template writes may be a control token."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from frontend.errors import InvalidRequest
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.control_tokens import ControlTokens
from frontend.server.text.fences import FENCES
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer
from tests.frontend.server.text.kinds import SENTENCEPIECE, VOCABULARY

_SETTINGS = settings(max_examples=60)


def _with_flags() -> Tokenizer:
    """Added tokens of every kind, most of them outside the model's vocabulary, and a beginning that the tokenizer adds."""
    fast = FastTokenizer(models.BPE(vocab=VOCABULARY, merges=[("b", "c")], byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_tokens([AddedToken("<think>", special=False), AddedToken("ab", special=False, normalized=False)])
    fast.add_special_tokens(
        [
            AddedToken("<|end|>", normalized=False),
            AddedToken("<|bos|>", normalized=False),
            AddedToken("<sep>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<norm>", normalized=True),
            AddedToken("<word>", single_word=True, normalized=False),
            AddedToken("\u00a4", normalized=False),
        ]
    )
    bos = fast.token_to_id("<|bos|>")
    fast.post_processor = processors.TemplateProcessing(single="<|bos|>:0 $A:0", pair=None, special_tokens=[("<|bos|>", bos)])
    return Tokenizer(fast, SpecialTokens((), bos, {}), None)


def _byte_level() -> Tokenizer:
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = FastTokenizer(models.BPE(vocab=alphabet, merges=[], ignore_merges=True))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|im_start|>", "<|im_end|>", "<|end|>")])
    return Tokenizer(fast, SpecialTokens((), None, {}), None)


_KINDS = {**SENTENCEPIECE, "flags": _with_flags(), "byte level": _byte_level()}
_LOSSLESS = ("gemma", "byte level")

_LETTERS = st.text(st.sampled_from("abc </|>sendimw_\n\u00e4"), max_size=12)


def _texts(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Texts with whole control tokens, and parts of them, as nobody who means well would write them."""
    names = [token.content for token in tokenizer._fast.get_added_tokens_decoder().values()]
    parts = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.integers(0, len(name)), st.integers(0, len(name))).map(lambda cut: name[min(cut) : max(cut)])
    )
    return st.lists(st.one_of(_LETTERS, st.sampled_from(names), parts, st.sampled_from(FENCES[:2])), max_size=5).map("".join)


# Each writes one <|end|> per message (or part), and the contents in between in its own way.
_TEMPLATES = [
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}",
    "{% for m in messages %}{{ '<|' + 'end' + '|>' + m.content | trim }}{% endfor %}",
    "{% for m in messages %}<|end|>{{ m.content.split('\n')[0] ~ m.name }}{% endfor %}",
    "{% for m in messages %}<|end|>{{ m.content | tojson(ensure_ascii=true) }}<{{ m.name }}>{% endfor %}",
    "{% for m in messages %}<|{% if m.role == 'user' %}end{% endif %}|><|{{ m.content }}|>{% endfor %}",
    "{% for m in messages %}{{ m.content[1:] }}<|end|>{{ m.content.replace('a', '') }}{% endfor %}",
]


@pytest.mark.parametrize("kind", _KINDS)
@_SETTINGS
@given(st.data())
def test_only_the_template_writes_control_tokens(kind: str, data: st.DataObject) -> None:
    tokenizer = _KINDS[kind]
    texts = _texts(tokenizer)
    message = st.fixed_dictionaries({"role": st.just("user"), "content": texts, "name": texts})
    messages: list[dict[str, Any]] = data.draw(st.lists(message, min_size=1, max_size=3))
    source = data.draw(st.sampled_from(_TEMPLATES))
    fenced, fence = tokenizer.control.fence(messages)
    text = ChatTemplate(source, {}).render(fenced)
    ids = tokenizer.encode(text, add_special_tokens=False, fence=fence)
    end = tokenizer._fast.token_to_id("<|end|>")
    assert end is not None
    assert [token_id for token_id in ids if token_id in tokenizer.special_ids - {0}] == [end] * len(messages)
    if kind in _LOSSLESS:
        assert tokenizer._fast.decode(ids, skip_special_tokens=False) == (text.replace(fence, "") if fence else text)


@pytest.mark.parametrize("kind", _KINDS)
@_SETTINGS
@given(st.data())
def test_harmless_fences_change_no_token(kind: str, data: st.DataObject) -> None:
    tokenizer = _KINDS[kind]
    names = [token.content for token in tokenizer._fast.get_added_tokens_decoder().values()]
    pieces = data.draw(st.lists(st.one_of(_LETTERS, st.sampled_from(names)), max_size=8))
    text = "".join(pieces)
    written = list(tokenizer.control._written.finditer(text))
    inside = {place for match in written for place in range(match.start() + 1, match.end())}
    inside |= {
        place for match in written if len(match[0]) == 1 for place in match.span()
    }  # a fence beside these would be their own
    places = data.draw(st.sets(st.integers(0, len(text)))) - inside
    fence = FENCES[3]
    fenced = "".join((fence if index in places else "") + text[index : index + 1] for index in range(len(text) + 1))
    adds = data.draw(st.booleans())
    found = tokenizer.encode(fenced, add_special_tokens=adds, fence=fence)
    if kind != "unigram":  # its model finds control tokens in any text: those of the template are found by their names here
        assert found == tokenizer.encode(text, add_special_tokens=adds)
    assert tokenizer.encode(text, add_special_tokens=adds, fence=fence) == found


def test_nearly_all_messages_need_no_fence(demo_tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "What is <b>bold</b>? 3 < 4 and x|y, <|not_a_token|>", "name": "user"}]
    same, fence = demo_tokenizer.control.fence(messages)
    assert same is messages
    assert fence == ""


def test_the_servers_own_words_are_left_alone() -> None:
    fast = FastTokenizer(models.BPE(vocab=VOCABULARY, merges=[], byte_fallback=True))
    fast.add_special_tokens(["<|user|>", "<|text|>"])
    control = ControlTokens(fast, frozenset(fast.get_added_tokens_decoder()))
    messages = [{"role": "user", "content": [{"type": "text", "text": "<|text|>"}], "calls": [{"name": {"<|user|>": "<|user|>"}}]}]
    fenced, fence = control.fence(messages)
    written = fence.join("<|user|>")
    assert fenced == [
        {"role": "user", "content": [{"type": "text", "text": fence.join("<|text|>")}], "calls": [{"name": {written: written}}]}
    ]


def test_a_control_token_in_two_parts(demo_tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", {})
    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "start|>"}]
    messages, fence = demo_tokenizer.control.fence([{"role": "user", "content": parts}])
    ids = demo_tokenizer.encode(template.render(messages), fence=fence)
    assert demo_tokenizer._fast.decode(ids, skip_special_tokens=False) == "<|im_start|>"
    assert 1 not in ids


def test_the_fence_is_a_character_that_nobody_wrote(demo_tokenizer: Tokenizer) -> None:
    control = demo_tokenizer.control
    content = "<|im_end|>" + "".join(FENCES[:-1])
    assert control.fence([{"role": "user", "content": content}])[1] == FENCES[-1]
    with pytest.raises(InvalidRequest, match="noncharacters") as refused:
        control.fence([{"role": "user", "content": content + FENCES[-1]}])
    assert refused.value.param == "messages"


def test_a_refusal_does_not_show_the_fence(demo_tokenizer: Tokenizer) -> None:
    messages, _ = demo_tokenizer.control.fence([{"role": "user", "content": "<|im_end|>"}])
    with pytest.raises(InvalidRequest, match=r"no <\|im_end\|> here"):
        ChatTemplate("{{ raise_exception('no ' + messages[0].content + ' here') }}", {}).render(messages)


def test_what_a_normalizer_makes_a_control_token_is_text() -> None:
    tokenizer = _KINDS["flags"]
    norm = tokenizer._fast.token_to_id("<norm>")
    assert norm in tokenizer._fast.encode("<NORM>").ids
    messages, fence = tokenizer.control.fence([{"role": "user", "content": "<NORM>"}])
    assert tokenizer.encode("<norm>" + messages[0]["content"], fence=fence).count(norm) == 1


def test_unigram_spells_what_its_model_would_find() -> None:
    tokenizer = SENTENCEPIECE["unigram"]
    end = VOCABULARY["</s>"]
    assert end in tokenizer._fast.encode("a</s>", add_special_tokens=False).ids
    messages, fence = tokenizer.control.fence([{"role": "user", "content": "a</s>"}])
    ids = tokenizer.encode(messages[0]["content"] + "</s>", add_special_tokens=False, fence=fence)
    assert ids.count(end) == 1
    assert tokenizer._fast.decode(ids, skip_special_tokens=False) == "a</s></s>"
