"""Versions that do not belong together are said before anything is loaded."""

from importlib.metadata import version
from pathlib import Path

import pytest

from frontend.launcher.accelerators.versions import obstacles_of_versions, read_versions
from protocol.errors import ExitCode
from tests.frontend.launcher.hosts import install, install_jax


def sentences(site: Path, device: str, **environ: str) -> list[str]:
    found = obstacles_of_versions(read_versions(environ, [str(site)]), device)
    assert {error.exit_code for error in found} <= {ExitCode.DEVICE_UNAVAILABLE}
    return [str(error) for error in found]


def test_what_belongs_together(tmp_path: Path) -> None:
    install_jax(tmp_path)
    for device in ("tpu", "cuda", "cpu"):
        assert sentences(tmp_path, device) == []


def test_what_is_installed_here_belongs_together() -> None:
    found = read_versions({})
    assert {"twodeep", "jax", "jaxlib"} <= found.by_name.keys()
    assert found.by_name["jax"] == version("jax")
    if found.has_libtpu:
        assert obstacles_of_versions(found, "tpu") == []


@pytest.mark.parametrize(
    ("changed", "device", "message"),
    [
        ({"libtpu": ""}, "tpu", "--device tpu: libtpu is not installed: add twodeep[tpu], or choose --device cpu"),
        ({"libtpu": "0.0.39"}, "tpu", "--device tpu: libtpu 0.0.39 is installed, but JAX 0.10.2 wants ==0.0.42.*: `pip install"),
        ({"libtpu": "0.0.50.1"}, "tpu", "libtpu 0.0.50.1 is installed, but JAX 0.10.2 wants ==0.0.42.*"),
        ({"jaxlib": "0.12.0"}, "tpu", "jaxlib 0.12.0 is installed, but JAX 0.10.2 wants <=0.10.2,>=0.10.2"),
        ({"jax_cuda13_plugin": ""}, "cuda", "JAX's CUDA plugin is not installed: add twodeep[cuda], or choose --device cpu"),
        ({"jax_cuda13_pjrt": ""}, "cuda", "jax-cuda13-plugin is installed, but jax-cuda13-pjrt is not: add twodeep[cuda]"),
        ({"jax_cuda13_pjrt": "0.10.1"}, "cuda", "jax-cuda13-plugin 0.10.2 and jax-cuda13-pjrt 0.10.1 do not belong together"),
        (
            {"jax_cuda13_plugin": "0.9.0", "jax_cuda13_pjrt": "0.9.0"},
            "cuda",
            "jax-cuda13-plugin 0.9.0 is installed, but JAX 0.10.2 wants <=0.10.2,>=0.10.2: `pip install -U 'twodeep[cuda]'`",
        ),
    ],
)  # fmt: skip
def test_what_does_not(tmp_path: Path, changed: dict[str, str], device: str, message: str) -> None:
    install_jax(tmp_path, **changed)
    (said,) = sentences(tmp_path, device)
    assert message in said


def test_a_plugin_that_this_jax_does_not_know(tmp_path: Path) -> None:
    install(tmp_path, "jax", "0.13.0", 'jaxlib==0.13.0; extra == "cuda13"', 'jax-cuda13-plugin==0.13.0; extra == "cuda13"')
    for name, found in (("jaxlib", "0.13.0"), ("jax-cuda12-plugin", "0.10.2"), ("jax-cuda12-pjrt", "0.10.2")):
        install(tmp_path, name, found)
    assert "jax-cuda12-plugin 0.10.2 is installed, which is not for JAX 0.13.0" in " ".join(sentences(tmp_path, "cuda"))


def test_a_library_from_elsewhere_is_the_operators_matter(tmp_path: Path) -> None:
    install_jax(tmp_path, libtpu="")
    library = tmp_path / "elsewhere" / "libtpu.so"
    assert sentences(tmp_path, "tpu", TPU_LIBRARY_PATH=str(library)) != []  # not there
    library.parent.mkdir()
    library.touch()
    assert sentences(tmp_path, "tpu", TPU_LIBRARY_PATH=str(library)) == []
    install(tmp_path, "libtpu-nightly", "0.1.dev20261101")
    assert sentences(tmp_path, "tpu") == []
