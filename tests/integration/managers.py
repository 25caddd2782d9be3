"""A real service manager, in namespaces of its own: `systemd --user`, with a tmpfs for /run and a cgroup below ours."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SYSTEMD = Path("/lib/systemd/systemd")
_END = "--end--"
_LIMIT = 30.0  # seconds

# Mounts are private to the namespace; killing its first process ends everything in it.
_BOOT = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/$NAME
echo $$ > /sys/fs/cgroup/$NAME/cgroup.procs
env -u NOTIFY_SOCKET {_SYSTEMD} --user --unit=basic.target >"$HOME/manager.log" 2>&1 &
for _ in $(seq 200); do
  if systemctl --user is-active basic.target >"$HOME/systemctl.log" 2>&1; then break; fi
  sleep 0.1
done
systemctl --user is-active basic.target
set +e
echo {_END}
while IFS= read -r line; do eval "$line" 2>&1; echo "{_END}"; done
"""


class Manager:
    """Runs commands beside the manager."""

    def __init__(self, shell: "subprocess.Popen[str]", home: Path) -> None:
        self._shell = shell
        self.home = home  # short, since sockets lie below it; it is XDG_RUNTIME_DIR and XDG_CONFIG_HOME too

    def run(self, command: str) -> str:
        """What a command of one line said, errors included."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(command + "\n")
        self._shell.stdin.flush()
        return self.said()

    def said(self) -> str:
        """Everything until the command is done."""
        assert self._shell.stdout is not None
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.strip() == _END:
                return "".join(lines).strip()
            lines.append(line)
        raise RuntimeError("".join(lines) or "no namespaces")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl --user show --value -p {name} {unit}")


def why_not() -> str:
    """Why there can be no manager here; empty: there can."""
    if not _SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "there is no systemd"
    if shutil.which("unshare") is None:
        return "there is no unshare"
    return ""


@contextmanager
def manager() -> Iterator[Manager]:
    """A manager that runs; RuntimeError, with the reason, where this machine has none."""
    home = Path(tempfile.mkdtemp(prefix="twodeep-test-"))
    environ = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environ |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "XDG_CONFIG_HOME": str(home), "NAME": home.name}
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup", "bash", "-c", _BOOT]
    shell = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
    )
    try:
        running = Manager(shell, home)
        running.said()
        yield running
    finally:
        assert shell.stdin is not None
        shell.stdin.close()  # which ends the first process of the namespace, and that all others, before it is gone itself
        shell.wait(_LIMIT)
        if shell.stdout is not None:
            shell.stdout.close()
        for cgroup in Path("/sys/fs/cgroup").rglob(home.name):
            _remove_cgroup(cgroup)
        shutil.rmtree(home, ignore_errors=True)


def _remove_cgroup(cgroup: Path) -> None:
    for directory in sorted(cgroup.rglob("*"), reverse=True):
        if directory.is_dir():
            directory.rmdir()
    cgroup.rmdir()
