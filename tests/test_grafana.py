"""The dashboard asks for nothing that /metrics does not tell, and the page that explains the metrics leaves none out."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import parser

from tests.integration.launching import SIMULATED, launch

_ROOT = Path(__file__).parent.parent
_DASHBOARD = json.loads((_ROOT / "scripts/grafana/engine.json").read_text())
_ADDED = {"instance", "job"}  # labels that Prometheus gives to what it scrapes
_METRIC = re.compile(r"\b(?:vllm|twodeep):\w+")
_BY = re.compile(r"\bby \(([\w, ]+)\)")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_SHOWN = re.compile(r"\{\{(\w+)\}\}")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What an engine tells that has answered requests and has lost a worker: so every metric has samples."""
    flags = ("--restart-delay", "0.05", "--pulse-timeout", "2")
    with launch(tmp_path_factory.mktemp("engine"), *SIMULATED, *flags) as engine:
        engine.complete([5, 6, 7], max_tokens=4, no_such_field=1)
        engine.child("tpu_worker-0").kill()
        engine.complete([5, 6, 7], max_tokens=4)
        while True:  # the scheduler tells where it stands with its next pulse; the test's own time limit bounds this
            text = httpx.get(engine.address + "/metrics").text
            found = list(parser.text_string_to_metric_families(text))
            values = {sample.name: sample.value for family in found for sample in family.samples if "_bucket" not in sample.name}
            if values["twodeep:worker_deaths_total"] and "twodeep:device_idle_ratio" in values:
                return found


def queries() -> list[tuple[str, str, str]]:
    """Title, query and legend of everything that the dashboard shows."""
    panels = [panel for panel in _DASHBOARD["panels"] if panel["type"] != "row"]
    return [(panel["title"], target["expr"], target["legendFormat"]) for panel in panels for target in panel["targets"]]


def test_every_query_is_of_metrics_and_labels_that_are_told(families: list[Any]) -> None:
    labels: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    assert len(queries()) > 30
    for title, query, legend in queries():
        asked = _METRIC.findall(query)
        assert asked, title
        for metric in asked:
            assert metric in labels, f"{title}: {metric}"
        of_all, of_any = (combine(*(labels[metric] for metric in asked)) for combine in (set.intersection, set.union))
        selected = {label for selector in _SELECTOR.findall(query) for label in _LABEL.findall(selector)}
        grouped = {label.strip() for group in _BY.findall(query) for label in group.split(",")}
        assert selected <= of_all | _ADDED, title
        assert grouped <= of_any, title
        assert set(_SHOWN.findall(legend)) <= (grouped or of_all), title


def test_the_dashboard_can_be_loaded_anywhere() -> None:
    """Its source of data is chosen by who loads it, and panels lie beside each other, not upon."""
    names = [variable["name"] for variable in _DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "model_name", "instance"]
    panels = _DASHBOARD["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        *("Traffic", "Latency", "Device", "KV cache", "Host", "Faults")
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_every_metric_is_explained(families: list[Any]) -> None:
    page = (_ROOT / "docs/metrics.md").read_text()
    explained = dict(re.findall(r"^\| `((?:vllm|twodeep):\w+)`[^|]*\| (\w+) \|", page, re.MULTILINE))
    told = {family.name: family.type for family in families}
    assert explained == told


def test_every_metric_has_the_labels_that_dashboards_select(families: list[Any]) -> None:
    for family in families:
        assert family.samples, family.name
        assert all({"model_name", "engine"} <= sample.labels.keys() for sample in family.samples), family.name
