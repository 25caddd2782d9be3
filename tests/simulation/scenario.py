"""What happens in one simulation: requests, and faults, all drawn from a seed."""

import random
from dataclasses import dataclass, field, replace
from typing import Literal

FaultKind = Literal["kill", "stop", "duplicate", "reorder", "drop"]
ROLES = ("worker", "scheduler", "frontend")
# Pipes on which a message may be lost, and the engine recovers by itself: a worker that does not answer is replaced.
LOSSY = ("scheduler>worker", "worker>scheduler")
# Pipes on which a message may come twice, or before the one that was sent before it.
PIPES = (*LOSSY, "scheduler>frontend", "frontend>scheduler")


@dataclass(frozen=True)
class Asked:
    """A request of a client."""

    at: float  # seconds, as below
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    n: int = 1
    stops: tuple[int, ...] = ()
    streams: bool = True
    cancelled_at: float | None = None


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    at: float
    kind: FaultKind
    where: str  # whom it hits: a role with an index; or the pipe whose next message it hits


@dataclass(frozen=True)
class Scenario:
    """Everything that a simulation depends on."""

    seed: int  # of all delays
    workers: int
    depth: int
    asked: tuple[Asked, ...]
    faults: tuple[Fault, ...] = field(default=())
    windows: tuple[int, ...] = (0,)  # of the model's KV cache groups
    blocks: int = 64  # of each worker's KV cache

    def without(self, asked: int | None = None, fault: int | None = None) -> "Scenario":
        """A smaller one: less this request, or this fault."""
        if asked is not None:
            return replace(self, asked=self.asked[:asked] + self.asked[asked + 1 :])
        assert fault is not None
        return replace(self, faults=self.faults[:fault] + self.faults[fault + 1 :])


def make_scenario(seed: int) -> Scenario:
    """The scenario of this seed."""
    draw = random.Random(seed)
    workers = draw.randint(1, 3)
    span = draw.choice([0.02, 0.1, 0.3])
    stems = [tuple(draw.randrange(50) for _ in range(30)) for _ in range(2)]
    asked = []
    for _ in range(draw.randint(1, 5)):
        kept = draw.choice([0, 8, 16])
        prompt = (*draw.choice(stems)[:kept], *(draw.randrange(50) for _ in range(draw.randint(1, 12))))
        at = draw.uniform(0, span)
        asked.append(
            Asked(
                at=at,
                prompt=prompt,
                max_tokens=draw.randint(1, 16),
                seed=draw.randrange(1 << 30),
                n=draw.choice([1, 1, 1, 2]),
                stops=tuple(draw.randrange(50) for _ in range(draw.choice([0, 0, 2]))),
                streams=draw.random() < 0.8,
                cancelled_at=at + draw.uniform(0, span) if draw.random() < 0.1 else None,
            )
        )
    faults = []
    for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 4])):
        at = draw.uniform(0, 2 * span)
        kind: FaultKind = draw.choices(("kill", "stop", "duplicate", "reorder", "drop"), (6, 1, 1, 1, 1))[0]
        if kind in ("kill", "stop"):
            role = draw.choice(ROLES)
            where = f"worker {draw.randrange(workers)}" if role == "worker" else role
        else:
            where = draw.choice(LOSSY if kind == "drop" else PIPES)
        faults.append(Fault(at, kind, where))
    depth = draw.randint(1, 3)
    windows, blocks = draw.choice([((0,), 64), ((0,), 64), ((9,), 64), ((9,), 12), ((6, 0, 6), 64), ((6, 0, 6), 40)])
    return Scenario(seed, workers, depth, tuple(asked), tuple(faults), windows, blocks)
