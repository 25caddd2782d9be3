"""The engine's page in a real Chromium, by Selenium: `page_chromium.py ADDRESS CASE [KEY]`."""

import json
import math
import re
import shutil
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

LIMIT = 60  # seconds
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1440, 1000), (390, 844)


class Page:
    """The page in a window of its own."""

    def __init__(self, address: str, profile: str) -> None:
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_script_timeout(LIMIT)
        self.address = address

    def open(self) -> None:
        self.driver.get(self.address)

    def look(self, size: tuple[int, int], scheme: str = "light", motion: str = "no-preference") -> None:
        """How it is looked at."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def until(self, condition: Callable[[], object], what: str) -> None:
        WebDriverWait(self.driver, LIMIT, poll_frequency=0.05).until(lambda _: condition(), f"never came: {what}")

    def __getitem__(self, name: str):
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self[name].text

    def run(self, script: str, *arguments: object):
        """An expression of the page's own modules, once their promises are kept."""
        code = (
            f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().then(done, (e) => done('failed: ' + e))"
        )
        answer = self.driver.execute_async_script(code, *arguments)
        assert not (isinstance(answer, str) and answer.startswith("failed: ")), answer
        return answer

    def lane(self) -> list[int]:
        """The device's lane as it is drawn: the columns' colours."""
        return self.driver.execute_script(
            "const c = document.getElementById('overview');"
            "return [...c.getContext('2d').getImageData(0, Math.round(c.height * 0.68), c.width, 1).data]"
        )

    def lanes(self) -> str:
        """All lanes as they are drawn. The device's alone looks the same at any time where it never waits and is narrow."""
        return self.driver.execute_script("return document.getElementById('overview').toDataURL()")

    def shades(self) -> int:
        """How many colours it has, right of its name."""
        pixels = self.lane()[4 * 100 :]
        return len({tuple(pixels[at : at + 4]) for at in range(0, len(pixels), 4)})

    def serves(self) -> None:
        self.until(lambda: self["state"].get_attribute("data-state") == "ok", "the engine serves")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console; that pictures are read back is this program's doing."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING") and entry["source"] != "rendering"]

    def fits(self) -> None:
        """Nothing is wider than the window."""
        assert self.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"


class Load:
    """Requests that go on until the end of the block."""

    def __init__(self, address: str, key: str = "", clients: int = 8) -> None:
        self._request = urllib.request.Request(
            f"{address}/v1/completions",
            json.dumps({"prompt": [5, 6, 7], "max_tokens": 100, "ignore_eos": True}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {key}"},
        )
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._over.is_set():
            urllib.request.urlopen(self._request, timeout=LIMIT).read()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def shares(page: Page) -> tuple[float, float]:
    page.until(lambda: page.text("real").endswith("%") and page.text("single").endswith("%"), "both idle shares")
    real, single = (float(page.text(name).removesuffix(" %")) for name in ("real", "single"))
    return real, single


def lanes(page: Page) -> None:
    """Still without work, moving under load; the switch shows what depth 1 would be; light, dark, wide and narrow."""
    page.look(DESKTOP)
    page.open()
    page.serves()
    assert "demo" in page.text("about") and "depth 2" in page.text("about")
    page.until(lambda: page.text("remark") == "Nothing ran in the last two seconds.", "that nothing runs")
    page.until(lambda: page.text("running") == "0 run", "the count of requests")
    assert page.shades() == 1, "the device's lane shows steps and nothing runs"
    with Load(page.address):
        page.until(lambda: page.shades() > 1, "the steps")
        busy = page.lane()
        page.until(lambda: page.lane() != busy, "the next steps")
        page.until(lambda: page.text("running") == "8 run", "the running requests")
        page.until(lambda: page.text("rate") not in ("–", "0") and page.text("first") != "–", "rates")
        real, single = shares(page)
        assert 0 <= real <= 100 and 0 < single < 100
        page.until(lambda: "8 rows decode in each" in page.text("remark"), "what steps are like")
        page["hold"].click()
        page.until(lambda: page.lane() == page.lane() and page.shades() > 1, "that the picture holds still")
        held = page.lane()
        page.driver.find_element(By.CSS_SELECTOR, "input[value=single] + span").click()
        page.until(lambda: page.lane() != held, "depth 1")
        page.driver.find_element(By.CSS_SELECTOR, "input[value=real] + span").click()
        page.until(lambda: page.lane() == held, "the same picture again")
        page["hold"].click()
        for scheme in ("light", "dark"):
            for size in (DESKTOP, PHONE):
                look_around(page, size, scheme)
        page.look(DESKTOP, motion="reduce")
        moving = page.lanes()
        page.until(lambda: page.lanes() != moving, "that it moves, calmly")
    page.until(lambda: page.text("remark") == "Nothing ran in the last two seconds.", "the end")
    # By the keyboard alone: the first stops are the switch and the button beside it.
    page.driver.execute_script("document.querySelector('input[name=depth]').focus()")
    page.driver.switch_to.active_element.send_keys("\ue014")  # right
    assert page["single-share"].get_attribute("class") == "share shown"


def look_around(page: Page, size: tuple[int, int], scheme: str) -> None:
    page.look(size, scheme)
    page.until(lambda: page.driver.execute_script("return innerWidth") == size[0], "the window")
    ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    (red,) = re.findall(r"^rgb\((\d+)", ground)
    assert (int(red) > 200) == (scheme == "light"), ground
    moving = page.lanes()
    page.until(lambda: page.lanes() != moving, "that it moves")
    page.fits()
    for name in ("steps", "chat", "overview", "close", "rate-plot"):
        assert page[name].size["width"] > 100, name


def answers(page: Page) -> None:
    """A conversation: streamed, stopped, refused; what is said is text."""
    page.look(DESKTOP)
    page.open()
    page.serves()
    bubbles = lambda: page.driver.find_elements(By.CSS_SELECTOR, ".bubble.model .said")  # noqa: E731
    page["input"].send_keys("<b>bold</b> <img src=x onerror=alert(1)>\n")
    page.until(lambda: bubbles() and bubbles()[0].text, "the first words")
    assert page.driver.find_element(By.CSS_SELECTOR, ".bubble.you .said").text == "<b>bold</b> <img src=x onerror=alert(1)>"
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#log b, #log img")
    page["stop"].click()
    page.until(lambda: "stopped" in page.text("log"), "that it was stopped")
    page.until(page["send"].is_displayed, "that one may send again")
    page.until(lambda: page.text("running") == "0 run", "that the engine stopped too")
    page["clear"].click()
    assert page.text("log").startswith("Say something")
    page.driver.execute_script(
        "const i = document.getElementById('input'); i.value = 'word '.repeat(20000); i.form.requestSubmit()"
    )
    page.until(lambda: page.driver.find_elements(By.CSS_SELECTOR, "#log .fault"), "why it is refused")
    assert "8192" in page.driver.find_element(By.CSS_SELECTOR, "#log .fault").text


def computation(page: Page) -> None:
    """The steps laid out one after the other, against what follows from their durations."""
    page.open()
    names = ("scheduled", "sent", "received", "prepared", "dispatched", "started", "finished", "collected", "answered")

    def step(number: int, *times: float) -> dict[str, float]:
        return {"worker": 0, "id": number, **dict(zip(names, times, strict=True))}

    # Two in flight: the second waits for the device, which is busy until 12. Then a pause of 100 without work.
    steps = [
        step(0, 0, 1, 2, 3, 4, 4, 12, 13, 15),
        step(1, 5, 6, 8, 9, 10, 12, 20, 21, 22),
        step(2, 122, 123, 122.5, 124, 126, 125, 130, 131, 132),  # received before it was sent, begun before it was dispatched
    ]
    laid = page.run(
        "const { OneAtATime } = await import('/ui/depth.js'); const all = new OneAtATime();"
        "return arguments[0].map((step) => all.add(step))",
        steps,
    )
    wanted = [
        (0, 1, 2, 3, 4, 4, 12, 13, 15),
        (15, 16, 18, 19, 20, 20, 28, 29, 30),
        (130, 131, 131, 132.5, 134.5, 133.5, 138.5, 139.5, 140.5),
    ]
    assert [tuple(one[name] for name in names) for one in laid] == wanted, laid
    pairs = [list(pair) for pair in zip(steps, laid, strict=True)]
    compared = page.run("return (await import('/ui/depth.js')).compare([arguments[0]], -10, 200)", pairs)
    # Under way: 0 to 22 and 122 to 132; running: 8 + 8 + 5. Laid out: 15 + 15 + 10.5.
    assert math.isclose(compared["real"], 1 - 21 / 32) and math.isclose(compared["single"], 1 - 21 / 40.5), compared
    nothing = page.run("return (await import('/ui/depth.js')).compare([arguments[0], []], 40, 100)", pairs)
    assert nothing == {"real": None, "single": None}
    at = page.run(
        "const { timeAtDepthOne } = await import('/ui/records.js');"
        "return arguments[1].map((time) => timeAtDepthOne(arguments[0], time))",
        pairs,
        [-4, 15, 18.5, 22, 132, 142],
    )
    assert at == [-4, 15, 22.5, 30, 140.5, 150.5], at
    events = page.run(
        "const { EventReader } = await import('/ui/source.js'); const found = [];"
        "const reader = new EventReader((name, data) => found.push([name, data]));"
        "for (const byte of new TextEncoder().encode(arguments[0])) reader.feed(Uint8Array.of(byte)); return found",
        ': hello\n\nevent: tick\ndata: {"a":\ndata: "é"}\n\n0data: x\n\ndata:[DONE]\n\n',
    )
    assert events == [["tick", '{"a":\n"é"}'], ["message", "[DONE]"]], events


def at_depth_one(page: Page) -> None:
    """An engine that really runs at depth 1 is shown as what it is: both shares tell the same."""
    page.open()
    page.serves()
    assert page.text("real-name") == "As it runs"
    with Load(page.address):
        page.until(lambda: page.text("running") == "8 run", "the load")

        def agree() -> bool:
            real, single = shares(page)
            return single > 1 and abs(real - single) < 0.02 * single + 1.5

        page.until(agree, "that both agree")


def key(page: Page, right: str) -> None:
    """Without the key only the shell is there; a wrong one is refused; it is kept in the tab."""
    page.open()
    page.until(page["key-form"].is_displayed, "that a key is wanted")
    assert not page["main"].is_displayed() and page.complaints() == []
    assert "demo" not in page.driver.find_element(By.TAG_NAME, "body").text
    page["key"].send_keys("wrong\n")
    page.until(lambda: page.text("key-fault") == "The engine does not know this key.", "that it is refused")
    assert page.complaints(), "the browser tells of the status 401"
    page["key"].send_keys(f"{right}\n")
    page.serves()
    assert page["main"].is_displayed() and not page["key-form"].is_displayed()
    page["input"].send_keys("Hello\n")
    page.until(lambda: [one for one in page.driver.find_elements(By.CSS_SELECTOR, ".bubble.model .said") if one.text], "an answer")
    page.driver.refresh()
    page.serves()
    page["forget"].click()
    page.until(page["key-form"].is_displayed, "that the key is forgotten")


def several(page: Page) -> None:
    """Two workers have two devices; one of them has all its lanes, and the page says which."""
    page.look(DESKTOP)
    page.open()
    page.serves()
    with Load(page.address):
        page.until(page["pick"].is_displayed, "the choice of a worker")
        assert page.driver.execute_script("return document.getElementById('worker').options.length") == 2
        before = page["overview"].size["height"]
        assert before > 150, "a lane more"


def loss(page: Page) -> None:
    """Workers are lost and come back, then the engine ends and another comes: said, and gone on from, by itself. The test that runs
    this ends them; each word on standard output says that it may."""
    page.open()
    page.serves()
    print("serves", flush=True)
    page.until(lambda: page["state"].get_attribute("data-state") == "recovering", "that no worker is alive")
    assert "No worker is alive" in page.text("notice")
    page.serves()
    assert page.text("notice") == ""
    print("recovered", flush=True)
    page.until(lambda: page["state"].get_attribute("data-state") in ("away", "draining"), "that the engine is gone")
    page.until(lambda: "tries again by itself" in page.text("notice"), "what it does about it")
    print("away", flush=True)
    page.serves()


CASES: dict[str, Callable[..., None]] = {
    case.__name__: case for case in (lanes, answers, computation, at_depth_one, key, several, loss)
}
QUIET = ("lanes", "computation", "at_depth_one", "several")  # in which nothing is refused, and so nothing is complained about


def main(address: str, case: str, *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        page = Page(address, profile)
        try:
            CASES[case](page, *arguments)
            complaints = page.complaints()
            assert case not in QUIET or complaints == [], complaints
        finally:
            page.driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
