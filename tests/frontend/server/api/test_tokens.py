"""The tokenizer by itself, over a real connection."""

import httpx
import jinja2

from tests.frontend.server.api.running import RunningEngine


def test_text_to_tokens_and_back(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "Hello world"}).json()
    assert ids == {"count": 2, "max_model_len": 8192, "tokens": [19556, 905]}
    assert http.post("/detokenize", json={"tokens": ids["tokens"]}).json() == {"prompt": "Hello world"}
    names = http.post("/tokenize", json={"prompt": "Hello world", "return_token_strs": True}).json()["token_strs"]
    assert names == ["Hello", "\u0120world"]
    assert http.post("/tokenize", json={}).status_code == 400


def test_a_conversation_to_tokens(http: httpx.Client) -> None:
    def prompt(**fields: object) -> str:
        messages = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "I am "}]
        answer = http.post("/tokenize", json={"messages": messages} | fields)
        assert answer.status_code == 200, answer.text
        text: str = http.post("/detokenize", json={"tokens": answer.json()["tokens"]}).json()["prompt"]
        return text

    opened = "<|im_start|>system\ns<|im_end|>\n<|im_start|>assistant\nI am "
    assert prompt() == prompt(add_generation_prompt=True) == opened + "<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(add_generation_prompt=False) == prompt(add_generation_prompt=False, tools=[]) == opened + "<|im_end|>\n"
    assert prompt(continue_final_message=True) == prompt(continue_final_message=True, add_generation_prompt=False) == opened
    messages = [{"role": "user", "content": "Hi"}]
    for fields, param in [
        ({"messages": messages, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": messages, "tools": [{"type": "function"}]}, "tools[0]"),
        ({"messages": messages, "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({}, "prompt"),
    ]:
        response = http.post("/tokenize", json=fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_who_tokenizes_elsewhere_finds_what_is_needed(http: httpx.Client, running: RunningEngine) -> None:
    info = http.get("/tokenizer_info").json()
    tokenizer = running.engine.tokenizer
    assert info["model_max_length"] == 8192
    assert info["vocab_size"] == tokenizer.vocab_size
    assert (info["eos_token"], info["bos_token"]) == ("<|im_end|>", "<|im_start|>")
    assert tokenizer.special.eos_ids[0] in info["eos_token_id"]
    assert not info["add_bos_token"]
    for token_id, token in info["added_tokens_decoder"].items():
        assert http.post("/tokenize", json={"prompt": token["content"]}).json()["tokens"] == [int(token_id)]
        break
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]
    text = jinja2.Template(info["chat_template"]).render(messages=messages, add_generation_prompt=True)
    tokens = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"] == tokens
