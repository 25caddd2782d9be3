"""What the text of a compiled program tells: copies, collectives, and what libtpu thinks that each instruction takes."""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_MAKES = "fusion|transpose|convert|scatter|dynamic-update-slice|call-done"
_UNKNOWN = 1 << 60  # cycles: what libtpu writes where it has no idea
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_WHILE = re.compile(r"body=%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_ARRAY = re.compile(r"\w+\[([\d,]*)\]")
_CALLS = re.compile(r"\bcalls=%([\w.-]+)")
_NAMES = re.compile(r"%([\w.-]+)")
_PRODUCT = re.compile(r" (?:dot|convolution)\(")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of an instruction of the program, or of a loop's body as often as it runs."""

    name: str
    opcode: str
    cycles: int
    source: str  # where in the model's code it is from: "jit(step)/jit(_mix)/dot_general"


def entry_of(text: str) -> str:
    """The main computation, without those that it calls."""
    return text[text.index("\nENTRY ") :]


def find_copies(text: str, shapes: Collection[tuple[int, ...]]) -> list[str]:
    """The instructions of a program that make another array of a weight or a cache, which have these shapes, of any type, or of a
    matrix turned round.

    Activations may have the shape of a matrix by chance: of two dimensions, what is made of no argument of the program is none, nor
    is a product. Copies into vector memory, which is `S(1)`, are how weights are read, where nothing but their place changes.
    What a fusion does within itself makes no array. For GPUs, a scatter and what it is fused with is how the cache is written;
    whether that is in place, the size of temporaries tells.
    """
    if not shapes:
        return []
    products = {name for name, lines in _computations(text).items() if any(_PRODUCT.search(line) for line in lines)}
    text = without_fused(text)
    every = {*shapes, *(shape[::-1] for shape in shapes if len(shape) == 2)}
    wanted = "|".join(re.escape(",".join(map(str, shape))) for shape in every)
    made = rf"(?m)^(?!.*calls=%fused_scatter).* = \w+\[(?:{wanted})\][^ ]* (?:{_MAKES})\(.*$"
    copied = rf"(?m)^.* = \w+\[(?:{wanted})\][^ ]* copy\(.*$"
    moved = rf"(?m)^.* = \(\w+\[(?:{wanted})\](?![^ ]*S\(1\))[^ ]*, .* copy-start\(.*$"
    activations = _activations(text, products, every)
    found = [line for line in re.findall(made, entry_of(text)) + re.findall(copied, text) if line not in activations]
    return [line.strip()[:200] for line in found + re.findall(moved, text)]


def _activations(text: str, products: Collection[str], shapes: Collection[tuple[int, ...]]) -> set[str]:
    """Lines of the main computation that make a matrix of one of these shapes, but not of an argument of as many values.

    products: computations that fusions are made of, with a product in them.
    """
    counts = {math.prod(shape) for shape in shapes}
    sizes: dict[str, int] = {}  # of what an argument was made into, in values
    found = set()
    for line in entry_of(text).splitlines():
        if (instruction := _INSTRUCTION.match(line)) is None or (array := _ARRAY.search(instruction[2])) is None:
            continue
        dimensions = [int(digits) for digits in array[1].split(",") if digits]
        size, (name, _, opcode) = math.prod(dimensions), instruction.groups()
        operands = _NAMES.findall(line[instruction.end() :].partition("), ")[0])
        called = found_call[1] if (found_call := _CALLS.search(line)) else ""
        if size in counts and (opcode == "parameter" or (called not in products and size in map(sizes.get, operands))):
            sizes[name] = size
        elif len(dimensions) <= 2 and opcode != "call-done":
            found.add(line)
    return found


def without_fused(text: str) -> str:
    """A program without the computations that fusions are made of."""
    fused = {*re.findall(r" fusion\(.*\bcalls=(%[\w.-]+)", text)}
    computations = text.split("\n}\n")
    return "\n}\n".join(one for one in computations if one.strip().partition(" ")[0] not in fused)


def count_collectives(text: str) -> dict[str, int]:
    """How many there are of each kind that there is."""
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in _COLLECTIVES}
    return {kind: count for kind, count in counts.items() if count}


def count_kernels(text: str, names: Iterable[str]) -> dict[str, int]:
    """Calls of each of these kernels of Pallas."""
    return {name: len(re.findall(rf"%{name}[.\w]* = .* custom-call\(", text)) for name in names}


def count_readers(text: str, shape: tuple[int, int]) -> int:
    """How many instructions of a program compute something of all of a float32 array of this shape."""
    entry, (rows, columns) = entry_of(text), shape
    arrays = {*re.findall(rf"(%[\w.-]+) = f32\[{rows},{columns}\]", entry)}
    # A custom fusion is a gather, of a few values.
    readers = re.findall(r"(?m)^.* = .* (?:fusion|reduce)\(([^)]*)\), (?!kind=kCustom).*$", entry)
    return sum(1 for operands in readers if arrays & set(operands.split(", ")))


def costs(text: str) -> list[Cost]:
    """Of the main computation's instructions those of which libtpu has an idea, those of loops' bodies among them.

    A loop of which nobody knows how often it runs counts once. Pallas' kernels and what is brought ahead of time are not in there.
    """
    return list(_costs_of(_computations(text), "", 1))


def _costs_of(computations: dict[str, list[str]], name: str, times: int) -> Iterator[Cost]:
    for line in computations[name]:
        if (instruction := _INSTRUCTION.match(line)) is None:
            continue
        source = found[1] if (found := _OP_NAME.search(line)) else ""
        if instruction[3] == "while" and (body := _WHILE.search(line)):
            yield from _costs_of(computations, body[1], times * _trips(computations, line))
        elif (found := _CYCLES.search(line)) and (cycles := int(found[1])) < _UNKNOWN:
            yield Cost(instruction[1], instruction[3], times * cycles, source)


def _trips(computations: dict[str, list[str]], loop: str) -> int:
    """How often a loop runs. Where that is not said: to what its condition counts, which is from 0 where JAX made it; else once."""
    if (found := _TRIPS.search(loop)) is not None:
        return int(found[1])
    condition = computations.get(found[1], []) if (found := _CONDITION.search(loop)) else []
    limits = [int(found[1]) for line in condition if (found := _LIMIT.search(line))]
    return limits[0] if len(limits) == 1 and any("direction=LT" in line for line in condition) else 1


def _computations(text: str) -> dict[str, list[str]]:
    """Their lines, by name; the main one has none."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = "" if line.startswith("ENTRY ") else line.split(" ", 1)[0].lstrip("%")
            lines = found.setdefault(name, [])
        elif line.startswith(" "):
            lines.append(line)
    return found
