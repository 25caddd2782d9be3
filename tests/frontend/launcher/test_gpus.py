"""The GPUs of a host: what is seen, who gets which, and what is said when they cannot be had."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from frontend.launcher.accelerators.cuda import CudaHost, look_for_gpus, obstacles_to_gpus
from frontend.launcher.placement import look_at_host, obstacles, place_workers, resolve_device
from protocol.errors import ConfigError, DeviceError, ExitCode
from tests.frontend.launcher.hosts import AS_ROOT, FakeHost, install_jax
from tests.frontend.launcher.test_placement import config
from tests.frontend.launcher.test_tpu_chips import another_user


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host without anything, on which JAX 0.10.2 is installed with all of its plugins."""
    monkeypatch.setattr(sys, "path", [str(install_jax(tmp_path / "site")), *sys.path])
    return FakeHost(tmp_path / "host")


def shares(fake: FakeHost, workers: int, size: int, **environ: str) -> list[str]:
    placed = place_workers(config("cuda", workers, size), environ, look_at_host("cuda", environ, fake.places))
    assert {each.environ["JAX_PLATFORMS"] for each in placed} == {"cuda,cpu"}
    return [each.environ["CUDA_VISIBLE_DEVICES"] for each in placed]


def sentences(fake: FakeHost, workers: int = 1, **environ: str) -> list[str]:
    found = obstacles(config("cuda", workers), look_at_host("cuda", environ, fake.places), environ)
    return [str(error) for error in found]


def test_what_is_seen(fake: FakeHost) -> None:
    fake.gpus(2)
    fake.process(4711, "python3", "nvidia1", "nvidiactl")
    found = look_for_gpus(fake.places)
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA H100 80GB HBM3"] * 2
    assert found.driver == "580.65.06"
    assert [len(gpu.holders) for gpu in found.gpus] == [0, 1]
    assert sentences(fake, 2) == []  # several processes may have a GPU
    assert resolve_device("auto", look_at_host("auto", {}, fake.places)) == ("cuda", "")


def test_gpus_of_each_worker(fake: FakeHost) -> None:
    fake.gpus(8)
    assert shares(fake, 2, 2) == ["0,1", "2,3"]
    assert shares(fake, 2, 2, CUDA_VISIBLE_DEVICES="3,GPU-abc, 5,7") == ["3,GPU-abc", "5,7"]
    with pytest.raises(ConfigError, match="needs 6 GPUs, CUDA_VISIBLE_DEVICES=3,GPU-abc,5,7 names 4"):
        shares(fake, 3, 2, CUDA_VISIBLE_DEVICES="3,GPU-abc,5,7")
    with pytest.raises(ConfigError, match="needs 10 GPUs, here are 8"):
        shares(fake, 5, 2)
    for none in ("", "-1", "-1,0", "8"):
        with pytest.raises(DeviceError, match=f"no GPU is here, CUDA_VISIBLE_DEVICES={none} names none"):
            shares(fake, 1, 1, CUDA_VISIBLE_DEVICES=none)


def test_no_gpu(fake: FakeHost) -> None:
    assert sentences(fake) == ["--device cuda: there is no GPU here, no /dev/nvidia0: choose --device cpu"]
    (error,) = obstacles(config("cuda", 1), look_at_host("cuda", {}, fake.places), {})
    assert error.exit_code == ExitCode.DEVICE_UNAVAILABLE
    (fake.places.dev / "dxg").touch()  # WSL has one device for all
    assert sentences(fake) == []
    assert shares(fake, 1, 1) == ["0"]


def test_what_a_container_lacks(fake: FakeHost) -> None:
    fake.gpus(1)
    (fake.places.dev / "nvidiactl").unlink()
    assert sentences(fake) == ["--device cuda: /dev/nvidiactl is not there: `nvidia-modprobe`, or --gpus all for a container"]


def test_an_old_driver(fake: FakeHost) -> None:
    fake.gpus(1, driver="535.183.01")
    (said,) = sentences(fake)
    assert said.startswith(
        "--device cuda: the NVIDIA driver is 535.183.01, and CUDA 13, which JAX's plugin brings, needs 580 or later"
    )
    assert obstacles_to_gpus(look_for_gpus(fake.places), ["0"], 12) == []
    (fake.places.proc / "driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1  x\n")
    assert look_for_gpus(fake.places).driver == "580.1"
    (fake.places.proc / "driver/nvidia/version").write_text("something new")
    assert sentences(fake) == []


def test_a_gpu_of_others() -> None:
    root = Path(tempfile.mkdtemp())  # where another user can look, too
    try:
        root.chmod(0o755)
        fake = FakeHost(root / "host").gpus(2)
        (fake.places.dev / "nvidiactl").chmod(0o666)
        (fake.places.dev / "nvidia0").chmod(0o666)
        (fake.places.dev / "nvidia1").chmod(0o600 if AS_ROOT else 0o400)
        with another_user():
            found = look_for_gpus(fake.places)
        assert obstacles_to_gpus(found, ["0"], 13) == []
        (error,) = obstacles_to_gpus(found, ["0", "1"], 13)
        assert f"{fake.places.dev}/nvidia1 may not be opened by this user (EACCES)" in str(error)
    finally:
        shutil.rmtree(root)


def test_windows_has_no_device_for_each() -> None:
    assert obstacles_to_gpus(CudaHost(windows=True), ["0"], 13) == []
