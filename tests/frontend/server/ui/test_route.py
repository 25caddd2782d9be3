"""The page's files and its stream of events, over HTTP."""

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from frontend.server.ui import feed as feed_module
from frontend.server.ui import files
from tests.frontend.server.api.running import RunningEngine, another_front
from tests.frontend.server.ui.watching import Watching

FILES = sorted(path.name for path in Path(files.__file__).parent.iterdir() if path.suffix in (".css", ".js", ".svg"))
LOAD = {"prompt": [1, 2, 3], "max_tokens": 50, "ignore_eos": True}


def test_the_page_loads_nothing_but_its_own_files(http: httpx.Client) -> None:
    answer = http.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    named = set(re.findall(r'(?:href|src)="([^"]*)"', answer.text))
    assert named >= {"ui/style.css", "ui/app.js"}
    assert all(http.get(f"/{name}").status_code == 200 for name in named)
    assert "style=" not in answer.text and not re.search(r"<script(?![^>]*src=)|\son\w+=", answer.text), "nothing inline"


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_its_type_and_is_not_sent_twice(http: httpx.Client, name: str) -> None:
    answer = http.get(f"/ui/{name}")
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kinds[Path(name).suffix])
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = http.get(f"/ui/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert not re.search(r"innerHTML|insertAdjacentHTML|eval\(|https?://(?!www\.w3\.org)", answer.text), "text stays text"


def test_no_other_file_of_the_folder_is_shown(http: httpx.Client) -> None:
    for path in ("/ui/feed.py", "/ui/index.html", "/ui/../ui/feed.py", "/ui/%2e%2e/ui/feed.py", "/ui", "/ui/"):
        assert http.get(path).status_code == 404


def test_without_the_page_there_is_nothing(running: RunningEngine) -> None:
    for keys, status in (((), 404), (("one",), 401)):
        with another_front(running, ui=False, api_keys=keys) as http:
            assert {http.get(path).status_code for path in ("/", "/ui/app.js", "/ui/events")} == {status}


def test_without_a_key_only_the_shell_is_shown(running: RunningEngine, http: httpx.Client) -> None:
    with another_front(running, api_keys=("one",)) as keyed:
        page = keyed.get("/")
        assert page.status_code == 200 and 'data-key="wanted"' in page.text and 'data-key="none"' in http.get("/").text
        assert page.headers["etag"] != http.get("/").headers["etag"]
        assert "demo" not in page.text
        assert keyed.get("/ui/app.js").content == http.get("/ui/app.js").content
        refused = keyed.get("/ui/events")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        with keyed.stream("GET", "/ui/events", headers={"authorization": "Bearer one"}) as response:
            assert Watching(response).about["model"] == "demo"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_holds_no_stream_open(http: httpx.Client, site: str) -> None:
    answer = http.get("/ui/events", headers={"sec-fetch-site": site})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")


def test_the_host_rules_hold(http: httpx.Client) -> None:
    for path in ("/", "/ui/app.js", "/ui/events"):
        assert http.get(path, headers={"host": "rebound.example.com"}).status_code == 421


def test_a_watcher_hears_of_each_new_step_once(http: httpx.Client) -> None:
    http.post("/v1/completions", json=LOAD)  # what was before is not told
    with http.stream("GET", "/ui/events") as response:
        watching = Watching(response)
        assert (watching.about["queue_depth"], watching.about["workers"], watching.about["chats"]) == (2, 1, True)
        first = next(watching.ticks())
        assert (first["status"], first["workers"]) == ("ok", 1)
        assert first["counts"]["workers"][0]["alive"]
        http.post("/v1/completions", json=LOAD)
        steps = watching.steps(50)
        http.post("/v1/completions", json=LOAD)
        steps += watching.steps(50)
    numbers = [step["step_id"] for step in steps]
    assert numbers == list(range(numbers[0], numbers[0] + 100))
    for step in steps:
        assert 0 <= step["sent"] and step["received"] <= step["prepared"] <= step["dispatched"]
        assert step["started"] < step["finished"] <= step["collected"] <= step["answered"] < 10**7
    assert sum(step["num_decodes"] for step in steps) == 2 * 49


def test_it_is_told_what_the_engine_counts(http: httpx.Client, running: RunningEngine) -> None:
    with http.stream("GET", "/ui/events") as response:
        ticks = Watching(response).ticks()
        told = [next(tick["counts"] for tick in ticks if "counts" in tick)]
        while len(told) < 2 or told[-1]["generated"] != told[-2]["generated"]:  # what the tests before left is counted by then
            told.append(next(tick["counts"] for tick in ticks if "counts" in tick))
        before = told[-1]
        http.post("/v1/completions", json=LOAD)
        after = next(tick["counts"] for tick in ticks if tick.get("counts", before)["generated"] > before["generated"])
    assert after["generated"] - before["generated"] <= 50
    assert after["first_tokens"] - before["first_tokens"] == 1
    assert after["first_token_seconds"] > before["first_token_seconds"]
    assert after["at"] > before["at"]


def test_so_many_watch_and_no_more(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_WATCHERS", 1)
    with another_front(running) as http:
        with http.stream("GET", "/ui/events") as response:
            watching = Watching(response)
            refused = http.get("/ui/events")
            watching.event()  # it watched all the while
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert "1 pages watch this engine" in refused.json()["error"]["message"]
        status = 429
        while status == 429:  # until it is noticed that the first has left; the test's own time limit bounds it
            with http.stream("GET", "/ui/events") as response:
                status = response.status_code
        assert status == 200


def test_a_page_that_reads_nothing_is_dropped(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Events that fill the kernel's buffers in no time, and hundreds of them a second.
    monkeypatch.setattr(feed_module, "_TICK_SECONDS", 0.005)
    monkeypatch.setattr(feed_module, "_TICK_NS", 5_000_000)
    monkeypatch.setattr(feed_module, "_SILENCE_NS", 0)
    monkeypatch.setattr(feed_module, "tick", lambda *_: b"event: tick\ndata: {}" + b" " * 500_000 + b"\n\n")
    url, connections = urlsplit(running.url), running.server.connections

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    with httpx.Client(base_url=running.url, timeout=60) as client, client.stream("GET", "/ui/events") as response:
        reading = Watching(response)
        before = set(connections)
        with socket.create_connection((url.hostname, url.port), timeout=60) as silent:
            silent.sendall(b"GET /ui/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            running.run(until(lambda: bool(connections - before)))
            while connections - before:
                reading.event()  # who reads goes on
            reading.event()
    running.run(until(lambda: not any(connection.paused for connection in connections)))
