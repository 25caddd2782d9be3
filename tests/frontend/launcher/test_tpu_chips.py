"""The TPU chips of hosts of all sizes: what is seen, who gets which, and what is said when they cannot be had."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontend.launcher import placement
from frontend.launcher.accelerators.host import HERE, Places, lock_holder
from frontend.launcher.accelerators.tpu import Chip, TpuHost, look_for_tpus, obstacles_to_tpus
from frontend.launcher.placement import Host, check_accelerators, look_at_host, obstacles, place_workers, remarks_on, resolve_device
from protocol.config import EngineConfig
from protocol.errors import ConfigError, DeviceError, ExitCode
from tests.frontend.launcher.hosts import AS_ROOT, NOBODY, FakeHost, install_jax
from tests.frontend.launcher.test_placement import config


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host without anything, on which JAX 0.10.2 is installed with all of its plugins."""
    monkeypatch.setattr(sys, "path", [str(install_jax(tmp_path / "site")), *sys.path])
    return FakeHost(tmp_path / "host")


def host(fake: FakeHost, **environ: str) -> Host:
    return look_at_host("tpu", environ, fake.places)


def sentences(fake: FakeHost, configuration: EngineConfig, **environ: str) -> list[str]:
    return [str(error) for error in obstacles(configuration, host(fake, **environ), environ)]


def environs(fake: FakeHost, configuration: EngineConfig, **environ: str) -> list[dict[str, str]]:
    return [placed.environ for placed in place_workers(configuration, environ, host(fake, **environ))]


@pytest.mark.parametrize(("kind", "count", "memory"), [("v5e", 1, 16), ("v5e", 8, 16), ("v6e", 4, 32), ("v7x", 4, 192)])
@pytest.mark.parametrize("vfio", [True, False])
def test_what_is_seen(fake: FakeHost, kind: str, count: int, memory: int, vfio: bool) -> None:
    (fake.tpu if vfio else fake.accel)(kind, count)
    tpu = look_for_tpus(fake.places, {})
    names = [f"vfio/{chip}" if vfio else f"accel{chip}" for chip in range(count)]
    assert [chip.path for chip in tpu.chips] == [str(fake.places.dev / name) for name in names]
    assert tpu.kind is not None and (tpu.kind.name, tpu.kind.memory) == (kind, memory << 30)
    assert tpu.visible == tuple(range(count)) and tpu.on_bus == count
    assert sentences(fake, config("tpu", 1, count)) == []
    assert resolve_device("auto", host(fake)) == ("tpu", "")


def test_chips_are_counted_by_the_numbers_of_their_devices(fake: FakeHost) -> None:
    fake.tpu("v6e", 12, first=3)
    (fake.places.dev / "vfio" / "2").touch()  # a network card, handed to somebody else
    assert [Path(chip.path).name for chip in look_for_tpus(fake.places, {}).chips] == [str(n) for n in range(3, 15)]


def test_vfio_devices_of_others_are_no_chips(fake: FakeHost) -> None:
    (fake.places.dev / "vfio").mkdir()
    (fake.places.dev / "vfio" / "7").touch()
    assert look_for_tpus(fake.places, {}) == TpuHost()
    shutil.rmtree(fake.places.sys / "bus")  # where no bus is seen, as in some sandboxes, nothing else tells what they are
    tpu = look_for_tpus(fake.places, {"TPU_ACCELERATOR_TYPE": "tpu7x-8"})
    assert len(tpu.chips) == 1 and tpu.devices_per_chip == 2


WHOLE = {"JAX_PLATFORMS": "tpu,cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@pytest.mark.parametrize(
    ("kind", "count", "workers", "size", "chips", "shape"),
    [
        ("v5e", 1, 1, 1, ["0"], ""),
        ("v6e", 4, 1, 4, ["0,1,2,3"], ""),
        ("v6e", 4, 1, 1, ["0"], "1,1,1"),
        ("v6e", 4, 4, 1, ["0", "1", "2", "3"], "1,1,1"),
        ("v6e", 4, 2, 2, ["0,1", "2,3"], "1,2,1"),
        ("v5e", 8, 8, 1, [str(chip) for chip in range(8)], "1,1,1"),
        ("v5e", 8, 4, 2, ["0,1", "2,3", "4,5", "6,7"], "1,2,1"),
        ("v5e", 8, 2, 4, ["0,1,2,3", "4,5,6,7"], "2,2,1"),
        ("v5e", 8, 1, 8, ["0,1,2,3,4,5,6,7"], ""),
        # A v7x chip has two devices, which belong to one process.
        ("v7x", 4, 4, 2, ["0", "1", "2", "3"], "1,1,1"),
        ("v7x", 4, 4, 1, ["0", "1", "2", "3"], "1,1,1"),
        ("v7x", 4, 2, 4, ["0,1", "2,3"], "1,2,1"),
        ("v7x", 4, 1, 8, ["0,1,2,3"], ""),
    ],
)
def test_chips_of_each_worker(fake: FakeHost, kind: str, count: int, workers: int, size: int, chips: list[str], shape: str) -> None:
    fake.tpu(kind, count)
    placed = place_workers(config("tpu", workers, size), {}, host(fake))
    assert [",".join(each.chips) for each in placed] == chips
    for each in placed:
        if not shape:
            assert each.environ == WHOLE  # in whatever shape it has
            continue
        numbers, first = ",".join(each.chips), int(each.chips[0])
        assert each.environ | WHOLE == each.environ  # 2,2,1 would be taken for a whole host otherwise, which one process has
        assert each.environ["TPU_VISIBLE_CHIPS"] == each.environ["TPU_VISIBLE_DEVICES"] == numbers
        assert each.environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] == each.environ["TPU_CHIPS_PER_HOST_BOUNDS"] == shape
        assert each.environ["TPU_PROCESS_BOUNDS"] == each.environ["TPU_HOST_BOUNDS"] == "1,1,1"
        assert each.environ["TPU_PROCESS_ADDRESSES"] == f"localhost:{8476 + first}"
        assert each.environ["TPU_PROCESS_PORT"] == str(8476 + first)
    ports = [each.environ.get("TPU_PROCESS_PORT") for each in placed]
    metrics = [port for each in placed for port in each.environ.get("TPU_RUNTIME_METRICS_PORTS", "").split(",") if port]
    assert len(set(ports)) == len(ports) and len(set(metrics)) == len(metrics)


@pytest.mark.parametrize(
    ("workers", "size", "environ", "message"),
    [
        (3, 4, {}, "--workers 3 × --tensor-parallel-size 4 needs 12 TPU chips, here are 8"),
        (2, 3, {}, "--tensor-parallel-size 3: a process can own 1, 2, 4 or 8 chips .*: give 1, 2, 4 or 8"),
        (2, 1, {"TPU_VISIBLE_CHIPS": "5"}, "needs 2 TPU chips, TPU_VISIBLE_CHIPS names 1 of the 8 that are here"),
        (1, 1, {"TPU_VISIBLE_CHIPS": "0", "TPU_VISIBLE_DEVICE_PATHS": "/dev/x"}, "TPU_VISIBLE_DEVICE_PATHS is set"),
    ],
)  # fmt: skip
def test_chips_that_do_not_suffice(fake: FakeHost, workers: int, size: int, environ: dict[str, str], message: str) -> None:
    fake.tpu("v5e", 8)
    with pytest.raises(ConfigError, match=message):
        environs(fake, config("tpu", workers, size), **environ)


def test_devices_of_v7x_that_do_not_suffice(fake: FakeHost) -> None:
    fake.tpu("v7x", 4)
    with pytest.raises(ConfigError, match="needs 8 TPU chips, each of 2 devices, here are 4"):
        environs(fake, config("tpu", 8, 1))
    with pytest.raises(ConfigError, match="--tensor-parallel-size 6: .*: give 2, 4, 8 or 16"):
        environs(fake, config("tpu", 1, 6))
    (remark,) = remarks_on(config("tpu", 4, 1), host(fake))
    assert "a v7x chip has 2 devices" in remark and "2 uses all" in remark
    assert remarks_on(config("tpu", 4, 2), host(fake)) == []


def test_the_operator_may_leave_the_engine_some_chips_only(fake: FakeHost) -> None:
    fake.tpu("v5e", 8)
    mine = {"TPU_VISIBLE_CHIPS": "4,5,6,7"}
    assert [environ["TPU_VISIBLE_CHIPS"] for environ in environs(fake, config("tpu", 2, 2), **mine)] == ["4,5", "6,7"]
    fake.process(4711, "python3", "vfio/0")  # chips of others may be held
    assert sentences(fake, config("tpu", 2, 2), **mine) == []
    for wrong in ("", "8", "a", "0,-1", "²"):
        with pytest.raises(ConfigError, match=f"TPU_VISIBLE_CHIPS={wrong}: numbers of TPU chips are wanted, .* from 0 to 7"):
            host(fake, TPU_VISIBLE_CHIPS=wrong)


def test_no_tpu(fake: FakeHost) -> None:
    assert sentences(fake, config("tpu", 1)) == [
        "--device tpu: there is no TPU here, no /dev/vfio/0 and no /dev/accel0: choose --device cpu"
    ]
    assert resolve_device("auto", host(fake)) == ("cpu", "")
    for _ in range(4):
        fake.device("0x1ae0", "0x006f")
    (said,) = sentences(fake, config("tpu", 1))
    assert said.startswith("--device tpu: this host has 4 TPU chips (v6e), but there is no /dev/vfio/0 and no /dev/accel0: hand")


def test_a_held_chip_is_named_with_its_holders(fake: FakeHost) -> None:
    fake.tpu("v6e", 4)
    fake.process(4711, "python3", "vfio/vfio", "vfio/2", "null")
    fake.process(4712, "jax", "vfio/2")
    fake.process(12, "other", "vfio/vfio")
    (said,) = sentences(fake, config("tpu", 1, 4))
    assert said.startswith(f"--device tpu: {fake.places.dev}/vfio/2 is held by process ")
    assert "process 4711 (python3)" in said and "process 4712 (jax)" in said
    assert sentences(fake, config("tpu", 2, 1)) == []  # chips 0 and 1
    (error,) = obstacles(config("tpu", 4, 1), host(fake), {})
    assert error.exit_code == ExitCode.DEVICE_UNAVAILABLE


def test_a_chip_whose_holder_is_not_seen() -> None:
    busy = TpuHost((Chip("/dev/vfio/0", "EBUSY"),), (0,))
    (error,) = obstacles_to_tpus(busy, [0])
    assert str(error).startswith("--device tpu: /dev/vfio/0 is held by another process, which this user may not see: `sudo lsof")
    (error,) = obstacles_to_tpus(TpuHost((Chip("/dev/vfio/0", "EPERM"),), (0,)), [0])
    assert "/dev/vfio/0 may not be opened by this process (a control group forbids it): install-systemd --accelerator" in str(error)


def test_the_lock_of_a_live_process(fake: FakeHost) -> None:
    fake.accel("v5e", 4)
    fake.process(4711, "python3")
    fake.lock(4711)
    assert host(fake).tpu.lock_holder is not None
    assert sentences(fake, config("tpu", 1, 4)) == []  # it compiles, and has no chip
    shutil.rmtree(fake.places.proc / "4711" / "fd")
    (error,) = obstacles_to_tpus(host(fake).tpu, [0])
    assert str(error) == ("--device tpu: process 4711 (python3) of another user holds libtpu's lock, and so the TPU chips: end it")


@contextmanager
def holding(path: Path, *, lock: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A real process that has a file open, or locked, until its standard input ends."""
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+'); "
        f"{'fcntl.lockf(file, fcntl.LOCK_EX); ' if lock else ''}print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_ends_with_its_process_and_the_file_that_stays_is_no_matter(tmp_path: Path) -> None:
    lock = tmp_path / "libtpu_lockfile"
    lock.touch()
    places = Places(tpu_lock=lock)
    with holding(lock, lock=True) as process:
        holder = lock_holder(lock, places)
        if holder is None:
            pytest.skip("/proc/locks does not show the locks of other processes here")
        assert holder.pid == process.pid and holder.name.startswith("python")
        process.kill()
        process.wait()
        assert lock.exists() and lock_holder(lock, places) is None


def test_a_holder_that_is_ending_is_waited_for(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.tpu("v5e", 1)
    places = Places(fake.places.dev, HERE.proc, fake.places.sys, fake.places.tpu_lock)
    wanted = config("tpu", 1)
    with holding(fake.places.dev / "vfio/0") as process:
        (chip,) = look_for_tpus(places, {}).chips
        assert [holder.pid for holder in chip.holders] == [process.pid]
        monkeypatch.setattr(placement, "_ENDING", 0.01)
        with pytest.raises(DeviceError, match=rf"vfio/0 is held by process {process.pid} \(python"):
            check_accelerators(wanted, look_at_host("tpu", {}, places), {}, places=places)
        monkeypatch.setattr(placement, "_ENDING", 60.0)
        found = look_at_host("tpu", {}, places)
        threading.Thread(target=process.kill).start()
        check_accelerators(wanted, found, {}, places=places)


@pytest.mark.parametrize("device", ["vfio/0", "vfio/vfio", "accel0"])
def test_devices_of_others(device: str) -> None:
    root = Path(tempfile.mkdtemp())  # where another user can look, too
    try:
        root.chmod(0o755)
        fake = FakeHost(root / "host")
        (fake.accel if device == "accel0" else fake.tpu)("v5e", 1)
        for file in fake.places.dev.rglob("*"):
            if file.is_file():
                file.chmod(0o666)
        (fake.places.dev / device).chmod(0o600 if AS_ROOT else 0o400)
        with another_user():
            tpu = look_for_tpus(fake.places, {})
        (said, *_) = map(str, obstacles_to_tpus(tpu, [0]))
        shown = device if device == "vfio/vfio" else f"{fake.places.dev}/{device}"
        assert f"{shown} may not be opened by this user: run as root, or give the user's group the device" in said
    finally:
        shutil.rmtree(root)


@contextmanager
def another_user() -> Iterator[None]:
    """Whom root's permissions do not help."""
    if not AS_ROOT:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_memory_that_may_not_be_locked(fake: FakeHost) -> None:
    fake.tpu("v6e", 1)
    for limit, shown in (("65536", "64 KiB"), ("8388608", "8 MiB")):
        fake.locked_memory(limit)
        (said,) = sentences(fake, config("tpu", 1))
        assert said.startswith(f"--device tpu: processes may lock {shown} of memory, which is too little for the chips: `ulimit -l")
    fake.locked_memory("65536", capabilities=1 << 14)  # who has CAP_IPC_LOCK is not limited
    assert sentences(fake, config("tpu", 1)) == []
    fake.locked_memory("34359738368")
    assert sentences(fake, config("tpu", 1)) == []


def test_chips_without_vfio_lock_no_memory(fake: FakeHost) -> None:
    fake.accel("v5e", 1)
    fake.locked_memory("65536")
    assert sentences(fake, config("tpu", 1)) == []


def test_huge_pages(fake: FakeHost) -> None:
    fake.tpu("v6e", 1)
    fake.huge_pages("always [madvise] never")
    (remark,) = remarks_on(config("tpu", 1), host(fake))
    assert "transparent huge pages are off" in remark


LOAD = """
from jax.experimental import topologies
print(len(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices))
"""
ABSENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_workers_load_libtpu_beside_each_other(tmp_path: Path) -> None:
    """The library itself, while its lock is held: by 2,2,1 alone it would take a worker for one that has all chips."""

    def load(**environ: str) -> str:
        everything = {**os.environ, **ABSENT, **environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([sys.executable, "-c", LOAD], env=everything, capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr

    fake = FakeHost(tmp_path / "host").tpu("v5e", 8)
    first, second = environs(fake, config("tpu", 2, 4))
    with HERE.tpu_lock.open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pytest.skip("somebody else holds libtpu's lock")
        assert load(**first) == load(**second) == "4"
        del second["ALLOW_MULTIPLE_LIBTPU_LOAD"]
        assert "lockfile" in load(**second)
    HERE.tpu_lock.unlink(missing_ok=True)
