"""What a check found: for people as lines, for programs as JSON."""

from collections.abc import Iterator

import msgspec


class Obstacle(msgspec.Struct, frozen=True):
    """What would stop a start."""

    text: str  # as the launcher would say it
    exit_code: int


class CheckedChip(msgspec.Struct, frozen=True):
    """A TPU chip or a GPU."""

    path: str
    kind: str = ""  # empty: not known
    memory: int | None = None  # bytes, by its kind
    held_by: tuple[str, ...] = ()
    failure: str = ""  # why it cannot be opened, as the name of an error number


class Answer(msgspec.Struct, frozen=True):
    """What one worker's device answered when it was asked."""

    worker: int
    chips: tuple[str, ...] = ()  # the numbers of its chips; empty: it has no accelerator
    devices: tuple[str, ...] = ()  # as JAX calls their kind
    memory: int | None = None  # bytes of each device, that a program may use
    platform: str = ""
    error: str = ""  # why it did not answer


class CheckedModel(msgspec.Struct, frozen=True):
    """The model's files."""

    path: str
    format: str
    names: tuple[str, ...]
    size: int  # bytes of the weights' files


class Report(msgspec.Struct, kw_only=True):
    """Everything that was looked at."""

    exit_code: int = 0  # of a start; 0: nothing would stop it
    obstacles: list[Obstacle] = []
    remarks: list[str] = []
    versions: dict[str, str] = {}
    device: str = ""
    chips: list[CheckedChip] = []
    locked_memory: int | None = None  # bytes that a process may pin; None: no limit
    workers: list[Answer] = []
    model: CheckedModel | None = None
    memory: int = 0  # bytes that the processes of this host may have
    memory_free: int | None = None  # bytes of those that nobody uses; None: not told
    port: str = ""  # where HTTP would be served; empty: it is not free
    socket: str = ""  # where Python clients would be; empty: it is not free

    def stop(self, text: str, exit_code: int) -> None:
        """Notes what would stop a start, once. The first one's code is that of the start."""
        if all(known.text != text for known in self.obstacles):
            self.obstacles.append(Obstacle(text, exit_code))
            self.exit_code = self.obstacles[0].exit_code


def as_json(report: Report) -> str:
    """One object, on one line."""
    return msgspec.json.encode(report).decode()


def as_text(report: Report) -> str:
    """Lines: what it is about, and what is so."""
    lines = list(_facts(report))
    lines += [("stops", f"{obstacle.text} (exit code {obstacle.exit_code})") for obstacle in report.obstacles]
    lines += [("remark", remark) for remark in report.remarks]
    count = len(report.obstacles)
    verdict = "nothing would stop a start" if not count else f"a start would end with exit code {report.exit_code}"
    lines.append(("result", verdict))
    width = max(len(name) for name, _ in lines)
    names = ["" if i and lines[i - 1][0] == name else name for i, (name, _) in enumerate(lines)]
    return "\n".join(f"{name:<{width}}  {text}" for name, (_, text) in zip(names, lines, strict=True))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    if report.device:
        yield "device", report.device
    for chip in report.chips:
        memory = f", {_size(chip.memory)}" if chip.memory is not None else ""
        state = f"held by {' and '.join(chip.held_by)}" if chip.held_by else chip.failure or "free"
        yield "chips", f"{chip.path}: {chip.kind or 'of unknown kind'}{memory}, {state}"
    if report.chips and report.device == "tpu":
        limit = "no limit" if report.locked_memory is None else f"at most {_size(report.locked_memory)}"
        yield "locked memory", limit
    for answer in report.workers:
        yield "workers", f"worker {answer.worker}{_chips(answer)}: {_answer(answer)}"
    if report.model is not None:
        names = ", ".join(report.model.names)
        yield "model", f"{report.model.path} ({report.model.format}, {_size(report.model.size)} of weights) as {names}"
    free = f"{_size(report.memory_free)} of " if report.memory_free is not None else ""
    yield "memory", f"{free}{_size(report.memory)}{' free' if free else ''}"
    if report.port:
        yield "port", f"{report.port} is free"
    if report.socket:
        yield "socket", f"{report.socket} is free"


def _chips(answer: Answer) -> str:
    return f" (chip{'s' if len(answer.chips) > 1 else ''} {', '.join(answer.chips)})" if answer.chips else ""


def _answer(answer: Answer) -> str:
    if answer.error:
        return "no answer"
    kinds = ", ".join(f"{answer.devices.count(kind)} × {kind}" for kind in dict.fromkeys(answer.devices))
    memory = f", {_size(answer.memory)} each" if answer.memory is not None else ""
    return f"{kinds}{memory}, computes"


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
