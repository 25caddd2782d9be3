"""Bodies that become a chat's: whatever is in them, there is an answer that says what is wrong with them, or none."""

import httpx
import pytest

_DEEP = b'{"a":' * 600 + b"1" + b"}" * 600
_ODD = [b"[" * 600 + b"]" * 600, _DEEP, b'{"\xff":1}', b'{"a":"\xff"}', b'"\\ud800"', b'{"a":"\\ud800"}', b"1", b"1e999", b"null"]

_START = {
    "/v1/responses": b'{"input":"x","max_output_tokens":2',
    "/v1/messages": b'{"messages":[{"role":"user","content":"x"}],"max_tokens":2',
    "/v1/messages/count_tokens": b'{"messages":[{"role":"user","content":"x"}]',
    "/v1/chat/completions": b'{"messages":[{"role":"user","content":"x"}],"max_tokens":2',
}
_HOLDS = {
    "/v1/responses": (
        b'"tools":[{"type":"function","name":"f","parameters":%b}]',
        b'"text":{"format":{"type":"json_schema","name":"x","schema":%b}}',
        b'"previous_response_id":%b',
        b'"metadata":%b',
    ),
    "/v1/messages": (
        b'"tools":[{"name":"f","input_schema":%b}]',
        b'"output_config":{"format":{"type":"json_schema","schema":%b}}',
        b'"mcp_servers":%b',
        b'"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"i","name":"f","input":%b}]}]',
    ),
    "/v1/messages/count_tokens": (b'"tools":[{"name":"f","input_schema":%b}]',),
    "/v1/chat/completions": (b'"tools":[{"type":"function","function":{"name":"f","parameters":%b}}]',),
}


@pytest.mark.parametrize("path", _START)
def test_odd_json_in_any_place(http: httpx.Client, path: str) -> None:
    for place in _HOLDS[path]:
        for value in _ODD:
            response = http.post(path, content=_START[path] + b"," + place % value + b"}")
            assert response.status_code in (200, 400), (place, value[:40], response.text)


@pytest.mark.parametrize("depth", [63, 64, 65, 300, 900])
def test_arguments_of_any_depth_are_told(http: httpx.Client, depth: int) -> None:
    arguments = '{"a":' * depth + "1" + "}" * depth
    call = {"id": "i", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    response = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert response.status_code == 200, response.text
