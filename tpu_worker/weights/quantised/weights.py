"""The quantised weights of a checkpoint: which they are, and what becomes of them."""

from collections.abc import Iterable, Mapping

import numpy as np

from protocol.codec import Float32Array
from protocol.errors import ModelError
from protocol.quantization_config import FIELD, QuantizationConfig, WeightFormat
from tpu_worker.models.spec import Part, Within
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.quantised.matrix import ScaledMatrix, kept_kind, narrow_type_of
from tpu_worker.weights.quantised.schemes import LEFT_OUT, NARROW_TYPES, SCHEMES, TENSORS
from tpu_worker.weights.quantised.tensors import Module
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows
from tpu_worker.weights.tensor_files import TensorFiles

_WEIGHT = ".weight"


class QuantisedWeights:
    """Those of one checkpoint. Reading is safe from several threads."""

    def __init__(self, tensors: TensorFiles, config: QuantizationConfig, parts: Iterable[Part]) -> None:
        """parts: all that the model reads. Raises ModelError where tensors and config contradict each other."""
        self._tensors = tensors
        self._config = config
        self._tensor_of = {tensor.rpartition(".")[0]: tensor for tensor in tensors.names}  # one of each module
        self.plain = 0  # modules that the config counts among the quantised, and that are stored in floats
        self.reordered = 0  # modules whose inputs are in an order of their own, so that none are kept in blocks
        modules: dict[str, Module | None] = {}
        self._found: dict[Part, tuple[Module, range | None]] = {}
        for part in parts:
            for name, shape, rows in places_of(part):
                if name not in modules:
                    modules[name] = self._module(name, shape)
                if (module := modules[name]) is not None:
                    self._found[part] = module, rows
                    break
        self._modules = {name: module for name, module in modules.items() if module is not None}
        self._kinds: Mapping[str, str] = {name: self._kind(module) for name, module in self._modules.items()}

    def _module(self, name: str, shape: tuple[int, int]) -> Module | None:
        """The module of this name if its weight is quantised."""
        form = self._config.format_of(*self._names(name))
        if form is None:
            return None
        scheme = SCHEMES[form.storage]
        plain = f"{name}{_WEIGHT}"
        if any(self._tensors.has(f"{name}.{one}") for one in {scheme.WEIGHT, *scheme.BESIDE} - {"weight"}):
            return Module(name, shape, form)
        if self._tensors.has(plain):
            if self._tensors.type_of(plain) in NARROW_TYPES:
                return Module(name, shape, form)  # whose scales will be missed
            self.plain += ".layers." in name  # what it holds needs no scales; heads are often so
            return None
        return None

    def _names(self, name: str) -> tuple[str, ...]:
        """Of a module, as the engine and as the file has it."""
        tensor = self._tensor_of.get(name)
        if tensor is None:
            return (name,)
        return name, self._tensors.stored_name(tensor).removesuffix(tensor.removeprefix(name))

    def _kind(self, module: Module) -> str:
        """As `WeightSource.stored_kind` has it."""
        kind = kept_kind(module.form, module.shape[1])
        if SCHEMES[module.form.storage].groups(self._tensors, module) is None:
            return kind
        self.reordered += 1
        return kind.partition("_")[0]

    def holds(self, part: Part) -> bool:
        """Whether the part is of a quantised weight."""
        return part in self._found

    def kind(self, part: Part) -> str:
        """As `WeightSource.stored_kind` has it, of a part of a quantised weight."""
        return self._kinds[self._found[part][0].name]

    def read(self, part: Part) -> Float32Array:
        """As `WeightSource.read` does."""
        return self._read(part).values()

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As `WeightSource.read_blocks` does."""
        return self._read(part).blocks(self.kind(part))

    def narrow_type(self, part: Part) -> NarrowType | None:
        """As `WeightSource.narrow_type` has it, of a part of a quantised weight."""
        return narrow_type_of(self._found[part][0].form)

    def read_narrow(self, part: Part) -> ScaledRows:
        """As `WeightSource.read_narrow` does."""
        matrix, (module, _) = self._read(part), self._found[part]
        if matrix.zeros is not None and matrix.zeros.any():
            raise ModelError(
                f"{self._tensors.path}: {module.name} has zero points other than 0, but by {FIELD} in {self._config.path} it is "
                "symmetric: config.json and weights must be of one model; --quantization none takes them as they are"
            )
        return matrix.rows()

    def _read(self, part: Part) -> ScaledMatrix:
        module, rows = self._found[part]
        matrix = SCHEMES[module.form.storage].read(self._tensors, module)
        matrix = matrix if rows is None else matrix.take(rows)
        if not matrix.is_finite():
            raise ModelError(
                f"{self._tensors.path}: damaged: tensors of {module.name} hold weights that are no finite numbers: "
                "download it again, or quantise the model again"
            )
        return matrix

    def used(self) -> set[str]:
        """The tensors that belong to quantised weights."""
        return {
            f"{module.name}.{name}"
            for module in self._modules.values()
            for name in (SCHEMES[module.form.storage].WEIGHT, *SCHEMES[module.form.storage].BESIDE)
        }

    def left_out(self, unused: Iterable[str]) -> tuple[set[str], set[str]]:
        """Of tensors without a use: (scales of activations and of the KV cache, biases that are zeros, as some tools add them).

        Raises ModelError for a quantised weight of a module that the config does not count among the quantised.
        """
        scales, biases = set(), set()
        for name in sorted(unused):
            module, _, kind = name.rpartition(".")
            if kind in LEFT_OUT:
                scales.add(name)
            elif kind == "bias" and module in self._modules and not np.any(self._tensors.take(name)):
                biases.add(name)
            elif kind in TENSORS or (kind == "weight" and module in self._modules):
                raise ModelError(
                    f"{self._tensors.file_of(name)}: tensor {name} is of a quantised weight, but by {FIELD} in {self._config.path} "
                    f"{module} {self._meant(module)}: config.json and weights must be of one model"
                )
        return scales, biases

    def _meant(self, module: str) -> str:
        form = self._config.format_of(*self._names(module))
        return "is not quantised" if form is None else f"has {describe(form)}, without this"

    def describe(self) -> str:
        """For the log, as in "gptq, 4 bits in groups of 128: 28 matrices"."""
        forms = sorted({describe(module.form) for module in self._modules.values()})
        more = [f"{len(self._modules)} matrices"]
        if self.reordered:
            more.append(f"{self.reordered} of them are dequantised, since their inputs are in an order of their own")
        if self.plain:
            more.append(f"{self.plain} that {FIELD} counts among the quantised are stored in floats")
        return f"{self._config.method}, {', '.join(forms) or 'nothing'}: {', '.join(more)}; activations are not quantised"


def describe(form: WeightFormat) -> str:
    """For people."""
    numbers = "FP8" if form.storage == "float8" else f"{form.bits} bits"
    match form.outputs, form.inputs:
        case None, _:
            return f"{numbers} with one scale"
        case 1, None:
            return f"{numbers} with a scale for each output"
        case 1, inputs:
            return f"{numbers} in groups of {inputs}"
        case outputs, inputs:
            return f"{numbers} in blocks of {outputs} x {inputs}"


def places_of(part: Part) -> Iterable[tuple[str, tuple[int, int], range | None]]:
    """Modules that may hold the weight of a part: (name, shape of its weight, rows that are the part's)."""
    if len(part.shape) == 2 and part.name.endswith(_WEIGHT):
        yield part.name.removesuffix(_WEIGHT), (part.shape[0], part.shape[1]), None
        for within in part.within:
            if (rows := _rows(within)) is not None:
                yield within.name.removesuffix(_WEIGHT), (within.shape[0], within.shape[1]), rows


def _rows(within: Within) -> range | None:
    """Of a matrix of which they are side by side."""
    if len(within.shape) != 2 or within.transposed or within.mxfp4 or len(within.index) != 1:
        return None
    (rows,) = within.index
    return rows if isinstance(rows, range) and rows.step == 1 and within.name.endswith(_WEIGHT) else None
