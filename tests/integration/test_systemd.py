"""The units as they are installed: checked by systemd's own tools, and run by a real manager where the machine allows it."""

import functools
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from protocol.errors import ExitCode
from tests.integration.launching import wait_for
from tests.integration.managers import Manager, manager, why_not

_SCRIPTS = Path(__file__).parents[2] / "scripts"
_LAUNCH = Path(sys.executable).with_name("engine-launch")
_LIMIT = 60.0  # seconds

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


def install(root: Path, *arguments: str, launch: Path = _LAUNCH) -> "subprocess.CompletedProcess[str]":
    command = [str(_SCRIPTS / "install-systemd"), "--root", str(root), "--launch", str(launch), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    done = install(tmp_path, "demo", "127.0.0.1:8123")
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "etc/systemd/system"


@analyze
@pytest.mark.parametrize("unit", ["engine@demo.service", "engine@demo.socket"])
def test_systemd_finds_nothing_wrong(installed: Path, unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed / unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@analyze
@pytest.mark.parametrize("accelerator", [False, True])
def test_what_the_engine_may_do_is_little(installed: Path, tmp_path: Path, accelerator: bool) -> None:
    unit = tmp_path / "engine.service"  # an instance is not rated off line
    text = (installed / "engine@.service").read_text().replace("%i", "demo")
    if accelerator:
        text = text.replace("[Install]", (_SCRIPTS / "systemd/accelerator.conf").read_text() + "[Install]")
    unit.write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]  # 2.0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_installation_keeps_what_the_operator_wrote(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "etc/twodeep/demo.toml"
    config.write_text("workers = 3\n")
    assert "kept: " in install(tmp_path, "demo").stdout
    assert config.read_text() == "workers = 3\n"
    assert "ListenStream=127.0.0.1:8123" in (installed / "engine@demo.socket.d/address.conf").read_text()


@pytest.mark.parametrize("arguments", [(), ("../x",), ("demo", "8000; rm"), ("demo", "1", "2"), ("--what", "demo")])
def test_wrong_installations_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = install(tmp_path, *arguments)
    assert done.returncode == ExitCode.BAD_CONFIG and done.stderr.startswith("install-systemd: ")
    assert not (tmp_path / "etc").exists()


def test_codes_that_no_restart_mends_are_those_of_the_unit() -> None:
    (line,) = re.findall(r"^RestartPreventExitStatus=(.*)$", (_SCRIPTS / "systemd/engine@.service").read_text(), re.MULTILINE)
    codes = {value for name, value in vars(ExitCode).items() if name.isupper()}
    assert set(map(int, line.split())) == codes - {ExitCode.OK, ExitCode.CRASHED, ExitCode.RANK_LOST, ExitCode.DOES_NOT_FIT}


def test_a_follower_waits_for_rank_0_again_and_again_and_has_no_socket(tmp_path: Path) -> None:
    done = install(tmp_path, "--follower", "demo")
    assert done.returncode == 0 and "enable --now engine@demo.service" in done.stdout
    text = (tmp_path / "etc/systemd/system/engine@demo.service.d/follower.conf").read_text()
    assert "Restart=always" in text
    (codes,) = re.findall(r"^RestartPreventExitStatus=(\d.*)$", text, re.MULTILINE)
    (all_codes,) = re.findall(r"^RestartPreventExitStatus=(.*)$", (_SCRIPTS / "systemd/engine@.service").read_text(), re.MULTILINE)
    assert set(all_codes.split()) - set(codes.split()) == {str(ExitCode.DEVICE_UNAVAILABLE)}


def user_unit(text: str) -> str:
    """The unit as a user's manager can run it: without a user, credentials and a sandbox of its own."""
    head, sandbox = text.split("LoadCredential=", 1)
    kept = [line for line in sandbox.splitlines() if re.match(r"RuntimeDirectory|Environment=XDG|\[Install|WantedBy", line)]
    return "\n".join([head, "StandardError=append:%h/engine.log", *kept])


# What a manager cannot put in force in namespaces of a test's, or what hides the interpreter and the files of this test.
_OUT_OF_REACH = ("DynamicUser", "ProtectKernelLogs", "ProtectKernelTunables", "PrivateTmp", "ProtectHome")


def sandboxed_unit(text: str) -> str:
    """The unit with as much of its sandbox as can be in force here."""
    kept = [line for line in text.splitlines() if not line.startswith((*_OUT_OF_REACH, "LoadCredential"))]
    return "\n".join(kept).replace("[Service]\n", "[Service]\nStandardError=append:%h/engine.log\nReadWritePaths=/tmp\n", 1)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_a_real_manager_starts_watches_and_restarts_an_engine(installed: Path) -> None:
    try:
        with manager() as running:
            try:
                drive(running, installed)
            except AssertionError:
                print(running.run("systemctl --user status --no-pager engine@demo.service; cat $HOME/engine.log $HOME/manager.log"))
                raise
    except RuntimeError as error:
        pytest.skip(f"no manager runs in namespaces here: {error}")


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_the_engine_compiles_and_serves_in_its_sandbox(installed: Path) -> None:
    """The real model, with the kernels that are compiled for this processor and the programs that JAX compiles meanwhile."""
    try:
        with manager() as running:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            units = running.home / "systemd/user"
            units.mkdir(parents=True)
            config = running.home / "demo.toml"
            config.write_text(f'device = "cpu"\nmax-model-len = 256\nmax-num-seqs = 4\nport = {port}\n')
            text = sandboxed_unit((installed / "engine@.service").read_text()).replace("/etc/twodeep/%i.toml", str(config))
            (units / "engine@.service").write_text(text.replace("Restart=on-failure", "Restart=no"))
            service = "engine@demo.service"
            said = running.run(f"systemctl --user daemon-reload && systemctl --user start {service}")
            assert said == "", said + running.run("cat $HOME/engine.log")
            body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=_LIMIT)
            assert answer.json()["choices"][0]["text"].startswith(" Paris"), answer.text
            pid = running.show(service, "MainPID")
            for process in (pid, running.run("pgrep --exact tpu_worker-0")):
                status = running.run(f"grep -E '^(NoNewPrivs|Seccomp|CapBnd|CapEff):' /proc/{process}/status").split()
                assert status == ["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"], status
                refused = running.run(f"nsenter --mount --target {process} touch /usr/of-a-test")
                assert "Read-only file system" in refused
            assert running.run(f"systemctl --user stop {service}") == ""
            assert running.show(service, "Result") == "success"
    except RuntimeError as error:
        pytest.skip(f"no manager runs in namespaces here: {error}")


def has_restarted(manager: Manager, service: str, times: int) -> bool:
    return manager.show(service, "NRestarts") == str(times)


def drive(manager: Manager, installed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    units = manager.home / "systemd/user"
    units.mkdir(parents=True)
    config = manager.home / "demo.toml"
    flags = 'device = "sim"\nsim-decode-us = 500\npulse-timeout = 1\nstep-timeout = 1\nrestart-delay = 0.1\nmax-model-len = 4096\n'
    config.write_text(flags + "port = 0\n")
    text = user_unit((installed / "engine@.service").read_text()).replace("/etc/twodeep/%i.toml", str(config))
    (units / "engine@.service").write_text(
        text.replace("WatchdogSec=3min", "WatchdogSec=3").replace("RestartSec=2", "RestartSec=0.1")
    )
    (units / "engine@.socket").write_text((installed / "engine@.socket").read_text().replace(":8000", f":{port}"))
    service, held = "engine@demo.service", "engine@demo.socket"
    assert manager.run(f"systemctl --user daemon-reload && systemctl --user start {held}") == ""
    url, body = f"http://127.0.0.1:{port}", {"prompt": [1, 2, 3], "max_tokens": 10, "seed": 1}

    # The first client has the engine started, and waits for it.
    assert manager.show(service, "ActiveState") == "inactive"
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=_LIMIT).status_code == 200
    assert manager.show(service, "ActiveState") == "active"
    assert manager.show(service, "StatusText") == "serving SmolLM2-135M-Instruct"
    assert (manager.home / "engine/demo/api.sock").is_socket()

    # A worker that is killed is the engine's own affair.
    manager.run("pkill -KILL --exact tpu_worker-0")
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=_LIMIT).status_code == 200
    assert manager.show(service, "NRestarts") == "0"

    # Under load, a restart, a killed launcher and a launcher that hangs: nobody is refused a connection.
    stop = threading.Event()
    answers: list[int] = []
    refused: list[httpx.ConnectError] = []
    cut: list[httpx.HTTPError] = []

    def load() -> None:
        while not stop.is_set():
            try:
                answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=_LIMIT).status_code)
            except httpx.ConnectError as error:
                refused.append(error)
            except httpx.HTTPError as error:
                cut.append(error)

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        wait_for(lambda: len(answers) > 8, "load", _LIMIT)
        assert manager.run(f"systemctl --user restart {service}") == ""
        before = len(answers)
        wait_for(lambda: len(answers) > before + 8, "load after the restart", _LIMIT)
        assert (refused, cut, set(answers)) == ([], [], {200})
        for number, signal in enumerate(("KILL", "STOP"), 1):
            manager.run(f"kill -{signal} {manager.show(service, 'MainPID')}")
            wait_for(functools.partial(has_restarted, manager, service, number), f"restart {number}", _LIMIT)
            wait_for(lambda: manager.show(service, "ActiveState") == "active", "the engine", _LIMIT)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert refused == [] and len(cut) <= 2 * len(clients), "only what was being answered when the engine was killed is cut"
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=_LIMIT).status_code == 200

    # It drains and ends in peace; a wrong flag is not tried again and again.
    assert manager.run(f"systemctl --user stop {held} {service}") == ""
    assert (manager.show(service, "Result"), manager.show(service, "ExecMainStatus")) == ("success", "0")
    assert not (manager.home / "engine/demo").exists()
    config.write_text("workers = 0\n")
    assert "failed" in manager.run(f"systemctl --user start {service}")
    assert manager.show(service, "ActiveState") == "failed" and manager.show(service, "ExecMainStatus") == "64"
