"""The hosts of one worker: from the flags, or from the variables that a cluster sets."""

from collections.abc import Mapping
from typing import cast

from frontend.launcher.values import shown
from protocol.errors import ConfigError

_FLAGS = ("hosts_port", "hosts_token_file")
_TOKEN_LIMIT = 4096  # bytes
_SHORTEST_TOKEN = 16  # characters: what can be guessed is no secret


def settle_hosts(values: dict[str, object], environ: Mapping[str, str], device: str, remarks: list[str]) -> None:
    """Puts `hosts`, `host_rank` and `hosts_secret` into `values`, in place of the flags. Raises ConfigError.

    Without the flags, the variables that GKE, and on it the operator of Ray, give to the pods of a TPU slice say the same.
    """
    given = tuple(
        name.strip() for text in cast("tuple[str, ...]", values.pop("hosts", ())) for name in text.split(",") if name.strip()
    )
    rank = cast("int | None", values.pop("host_rank", None))
    token_file = cast("str | None", values.pop("hosts_token_file", None))
    hosts = given
    if not given and rank is None and device == "tpu":
        hosts, rank = _of_environment(environ, remarks)
    if not hosts:
        if rank is not None:
            raise ConfigError(f"--host-rank {rank}: --hosts is wanted too, with the names of all hosts")
        if unused := [name for name in _FLAGS if name in values] + (["hosts_token_file"] if token_file else []):
            remarks.append(f"--{unused[0].replace('_', '-')} has no effect without --hosts")
        return
    if rank is None:
        raise ConfigError(f"--hosts {','.join(hosts)}: --host-rank is wanted too: which of them this one is, from 0")
    if not 0 <= rank < len(hosts):
        raise ConfigError(f"--host-rank {rank}: with {len(hosts)} hosts, 0 to {len(hosts) - 1} are possible")
    if len(hosts) == 1:
        return
    if device == "sim":
        raise ConfigError("--hosts: the simulated device has no chips on other hosts: leave one of --hosts and --device sim out")
    if values.get("workers", 1) != 1:
        raise ConfigError(
            f"--workers {values['workers']} with --hosts: one worker spans all hosts: start an engine for each worker"
        )
    for key in ("compiled", "save_compiled"):
        if values.get(key):
            flag = key.replace("_", "-")
            raise ConfigError(f"--{flag} with --hosts: programs of several hosts are neither saved nor loaded: leave it out")
    size = cast(int, values.get("tensor_parallel_size", 1))
    if size % len(hosts):
        raise ConfigError(
            f"--tensor-parallel-size {size} over {len(hosts)} hosts: it counts the chips of all, and each has as many: "
            f"a multiple of {len(hosts)} is wanted"
        )
    values |= {"hosts": hosts, "host_rank": rank, "hosts_secret": _read_token(token_file) if token_file else ""}


def _of_environment(environ: Mapping[str, str], remarks: list[str]) -> tuple[tuple[str, ...], int | None]:
    hosts = tuple(name.strip() for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name.strip())
    if len(hosts) < 2:
        return (), None
    rank = environ.get("TPU_WORKER_ID", "").strip()
    if not rank.isascii() or not rank.isdigit():
        raise ConfigError(
            f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts, but TPU_WORKER_ID is {shown(rank) or 'not set'}: "
            "give --hosts and --host-rank"
        )
    remarks.append(f"rank {rank} of a worker over {len(hosts)} hosts, as TPU_WORKER_HOSTNAMES and TPU_WORKER_ID have it")
    return hosts, int(rank)


def _read_token(path: str) -> str:
    try:
        with open(path, "rb") as file:
            token = file.read(_TOKEN_LIMIT + 1).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"--hosts-token-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--hosts-token-file {path}: a token of ASCII characters is wanted") from error
    if not _SHORTEST_TOKEN <= len(token) <= _TOKEN_LIMIT:
        raise ConfigError(f"--hosts-token-file {path}: a token of {_SHORTEST_TOKEN} to {_TOKEN_LIMIT} characters is wanted")
    return token
