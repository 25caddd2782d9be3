"""One worker's programs, compiled for chips that are not there, and what each of them needs."""

import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import msgspec
from jax.sharding import AbstractMesh

from protocol.aot_messages import Drawn, Job, Need
from protocol.aot_report import Part, ProgramReport, StepTime, pairs_of_prompt
from protocol.cache_groups import CacheGroups
from protocol.chips import check_fits, parse_topology
from protocol.clock import now
from protocol.errors import ConfigError, describe
from protocol.model_files import read_model_facts
from tpu_worker.aot.absent import AbsentLayout, AbsentWeights
from tpu_worker.aot.estimate import cycles_by_part, roofline, step_parts
from tpu_worker.aot.header import compiler_versions, make_header
from tpu_worker.aot.kernel_time import KERNELS, Geometry, attention_time
from tpu_worker.aot.program_text import costs, count_collectives, find_copies
from tpu_worker.aot.saved import begin_saving, save_program
from tpu_worker.aot.schedule import Loop, find_schedules, read_schedule
from tpu_worker.aot.topology import open_topology
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import Bucket, name_of
from tpu_worker.mesh.layout import AXIS, RULES, Layout, bytes_on_each
from tpu_worker.platforms.tpu import chunks
from tpu_worker.platforms.tpu.attention import tokens_of_block
from tpu_worker.platforms.tpu.layout import RowLayout
from tpu_worker.platforms.tpu.pages import pages_at_once
from tpu_worker.platforms.xla.memory import for_kv_cache
from tpu_worker.warmup import leave_compilation_cache, use_compilation_cache
from tpu_worker.weights.load import WeightLoader, open_source

_SMALL = 1 << 16  # values: what is smaller may be copied
_FLOAT_BYTES = {"bfloat16": 2, "float32": 4}
_MOST_SHARDS = 16  # that are looked at for what would help


class Workshop:
    """Compiles the programs of one job, one by one."""

    def __init__(self, job: Job) -> None:
        """Draws all that there is to compile. Raises EngineError when nothing of the kind can be."""
        config = job.config
        self._job = job
        self._topology = parse_topology(job.topology)
        self._chip = self._topology.chip
        check_fits(self._topology, config.tensor_parallel_size)
        if job.save:  # a program out of the cache cannot be saved again
            leave_compilation_cache()
        else:
            use_compilation_cache(config.compilation_cache)
        mesh = open_topology(self._topology, config.tensor_parallel_size)
        self._source = AbsentWeights(open_source(config).model)
        self._layout = AbsentLayout(mesh, RULES)
        self.blueprint = draw_blueprint(config, self._source, self._layout, mesh.devices.flat[0].platform)
        blueprint, products = self.blueprint, self.blueprint.platform.products
        loader = WeightLoader(self._source, products, self._layout, blueprint.max_model_len, lambda *_: None)
        self._weights = loader.shapes(loader.load_first())
        self._weight_bytes = _bytes_on_each(self._weights)
        groups = CacheGroups(blueprint.groups.windows, blueprint.block_size, config.max_num_batched_tokens)
        self._blocks_per_sequence = groups.demand(blueprint.max_model_len)
        self._num_blocks = self._count_blocks()
        # A cache that does not fit is compiled for all the same, with the fewest blocks that serve.
        self._compiler = blueprint.compiler(self._weights, max(self._num_blocks, self._blocks_per_sequence))
        self._programs = self._compiler.programs(blueprint.buckets)
        self._steps = {name_of("step", bucket): bucket for bucket in blueprint.buckets}
        if job.save:
            self._header = make_header(config, blueprint, self._compiler, self._num_blocks)
            try:
                begin_saving(Path(job.save), self._header)
            except OSError as error:
                raise ConfigError(f"--save {job.save}: {error}") from error

    def drawn(self) -> Drawn:
        """What there is to compile, and what was chosen."""
        config, blueprint = self._job.config, self.blueprint
        facts = read_model_facts(config.model_path, config.model_format, config.load_format)
        return Drawn(
            versions={"twodeep": metadata.version("twodeep"), **compiler_versions(self._chip.platform)},
            model_digest=facts.sizes.digest,
            chip=self._chip.description,
            programs=tuple(sorted(self._programs, key=self._weight_of, reverse=True)),
            max_model_len=blueprint.max_model_len,
            context_length=self._source.model.spec.context_length,
            block_size=blueprint.block_size,
            dtype=blueprint.platform.products.dtype,
            quantization=config.quantization,
            hbm=self._chip.memory,
            weights=self._weight_bytes,
            state=_bytes_on_each(self._compiler.state.slots),
            bytes_per_block=blueprint.bytes_per_block,
            cache_of_row=self._cache_of_row(self._job.context),
            blocks_per_sequence=self._blocks_per_sequence,
            working_memory=blueprint.working_memory,
            num_blocks=self._num_blocks,
            decodes_apart=blueprint.platform.attention.decodes_apart,
            windows=blueprint.groups.windows,
            padding_costs=blueprint.platform.padding_costs,
            needs=tuple(self._needs()),
        )

    def compile(self, name: str) -> ProgramReport:
        """Compiles a program. What the compiler says against it is in the report."""
        bucket = self._steps.get(name)
        before = now()
        try:
            with jax.set_mesh(self._layout.mesh):
                compiled = self._programs[name]()
            seconds = now() - before
            if self._job.save:
                save_program(Path(self._job.save), self._header, name, compiled)
            return self._report(name, bucket, compiled, seconds)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises is what the report is there to tell
            return ProgramReport(name=name, error=describe(error), compile_seconds=now() - before)

    def _report(self, name: str, bucket: Bucket | None, compiled: Any, seconds: float) -> ProgramReport:
        text, memory = compiled.as_text(), compiled.memory_analysis()
        large = {shape for shape in self._shapes_of_shard() if math.prod(shape) >= _SMALL}
        report = ProgramReport(
            name=name,
            tokens=bucket.tokens if bucket else 0,
            rows=bucket.rows if bucket else 0,
            compile_seconds=round(seconds, 3),
            arguments=memory.argument_size_in_bytes,
            outputs=max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
            temporaries=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            copies=tuple(find_copies(text, large)),
            collectives=count_collectives(text),
            roofline=0.0 if bucket is None else round(self._roofline(bucket), 2),
        )
        try:
            return self._with_times(report, bucket, text)
        except ValueError as error:  # it compiles all the same
            return msgspec.structs.replace(report, unknown=str(error))

    def _with_times(self, report: ProgramReport, bucket: Bucket | None, text: str) -> ProgramReport:
        """Raises ValueError saying why nobody knows them."""
        if not self._chip.clock:
            raise ValueError(f"the compiler for {self._chip.description} estimates no times")
        found = costs(text)
        if bucket is None:
            cycles = cycles_by_part(found, steps=False)
            parts: dict[Part, float] = {part: round(count / self._chip.clock * 1e6, 2) for part, count in cycles.items()}
            return msgspec.structs.replace(report, time=StepTime(fixed=sum(parts.values())), parts=parts)
        if (name := self.blueprint.platform.name) != "Pallas":
            raise ValueError(f"how long attention takes that has kernels of {name} is not known")
        loops = self._schedules(text)
        attention = attention_time(loops, self._geometries(bucket), self._chip, bucket.tokens, bucket.rows, self._job.context)
        time, parts = step_parts(
            cycles_by_part(found),
            self._chip,
            self._weights_by_part(),
            attention,
            self._collective_bytes(bucket),
            sum(report.collectives.values()),
            self._layout.num_shards,
        )
        context = self._job.context
        if bucket.tokens == bucket.rows:
            parts["attention"] += bucket.rows * (time.per_row + time.per_context_token * context)
        else:
            parts["attention"] += pairs_of_prompt(bucket.tokens) * time.per_pair
        return msgspec.structs.replace(
            report,
            time=StepTime(**{field: round(getattr(time, field), 6) for field in time.__struct_fields__}),
            parts={part: round(value, 2) for part, value in parts.items()},
        )

    def _schedules(self, text: str) -> dict[str, Loop]:
        """Those that libtpu wrote of the kernels in this program, the last ones of each; those of earlier programs are removed."""
        directory = Path(self._job.scratch)
        found = {}
        for kernel in KERNELS:
            if files := find_schedules(directory, kernel):
                found[kernel] = read_schedule(files[-1].read_text(encoding="utf-8", errors="replace"))
        for path in directory.glob("*"):
            path.unlink(missing_ok=True)
        return {kernel: loop for kernel, loop in found.items() if f"%{kernel}" in text}

    def _geometries(self, bucket: Bucket) -> dict[Geometry, int]:
        """Of the layers: how many have which."""
        counts: dict[Geometry, int] = {}
        for index, layer in enumerate(self.blueprint.spec.layers):
            whole = jax.tree.leaves(self._compiler.state.caches.take(index))[0]
            rows = jax.ShapeDtypeStruct(whole.sharding.shard_shape(whole.shape), whole.dtype)
            num_kv_heads, group = rows.shape[1], layer.num_heads // layer.num_kv_heads
            row = RowLayout(layer.head_dim, self.blueprint.platform.attention.kept)
            chunk = tokens_of_block(bucket.tokens, num_kv_heads, group, row)
            geometry = Geometry(
                page=self.blueprint.block_size,
                run=pages_at_once(rows),
                page_bytes=self._page_bytes(index),
                window=layer.sliding_window or 0,
                chunk=chunk,
                chunk_run=pages_at_once(rows, chunks.MOST_POSITIONS),
                heads_at_once=chunks.heads_at_once(num_kv_heads, group * chunk),
                num_kv_heads=num_kv_heads,
            )
            counts[geometry] = counts.get(geometry, 0) + 1
        return counts

    def _roofline(self, bucket: Bucket) -> float:
        """Of a step that is full."""
        spec, context = self.blueprint.spec, self._job.context
        parameters = sum(map(self._used, jax.tree.leaves(self._weights["layers"])))
        if is_decode := bucket.tokens == bucket.rows:
            cache = bucket.rows * self._cache_of_row(context)
        else:
            cache = self._cache_of_row(bucket.tokens)
        head = spec.hidden_size * -(-spec.vocab_size // self._layout.num_shards)
        operations = 2.0 * (parameters / self._layout.num_shards * bucket.tokens + head * bucket.rows)
        for layer in spec.layers:
            window = layer.sliding_window
            pairs = bucket.rows * min(context, window or context) if is_decode else pairs_of_prompt(bucket.tokens, window)
            operations += 4 * layer.num_heads * layer.head_dim * pairs
        return roofline(self._weights_read(), cache, operations, self._chip)

    def _cache_of_row(self, context: int) -> int:
        """Bytes on each chip that a token reads which sees so many, itself included."""
        sizes = (
            min(context, layer.sliding_window or context) * self._page_bytes(index)
            for index, layer in enumerate(self.blueprint.spec.layers)
        )
        return sum(sizes) // self.blueprint.block_size

    def _page_bytes(self, index: int) -> int:
        """Of a block of one layer, on each chip, its scales included."""
        cache = self._compiler.state.caches.take(index)
        return _bytes_on_each(cache) // int(jax.tree.leaves(cache)[0].shape[0])

    def _used(self, array: jax.ShapeDtypeStruct) -> float:
        """Numbers of a matrix that a token is multiplied with: of experts those that it chooses."""
        experts = self._source.model.spec.layers[0].experts
        share = experts.chosen / experts.count if experts is not None and len(array.shape) == 3 else 1.0
        return share * math.prod(array.shape) if len(array.shape) > 1 else 0.0

    def _weights_read(self) -> int:
        return sum(self._weights_by_part().values())

    def _weights_by_part(self) -> dict[Part, int]:
        """Bytes on each chip that a step reads whole: of experts all, which is so with more than a few tokens."""
        head = self._weights.get("head", self._weights["embedding"])
        return {"products": _bytes_on_each(self._weights["layers"]), "head": _bytes_on_each(head)}

    def _collective_bytes(self, bucket: Bucket) -> int:
        """That each chip has of the sums of a step: two in a layer, and the embeddings, float32."""
        return 4 * self.blueprint.spec.hidden_size * bucket.tokens * (2 * len(self.blueprint.spec.layers) + 1)

    def _shapes_of_shard(self) -> set[tuple[int, ...]]:
        leaves = jax.tree.leaves((self._weights, self._compiler.state.caches))
        return {array.sharding.shard_shape(array.shape) for array in leaves}

    def _weight_of(self, name: str) -> tuple[bool, int]:
        """By how long a program compiles: steps before all others, those with more tokens first."""
        digits = "".join(character if character.isdigit() else " " for character in name).split()
        return name.startswith(("step", "scorer", "sampler")), int(digits[0]) if digits else 0

    def _count_blocks(self) -> int:
        """As the engine would, of memory that nobody else has."""
        config, blueprint = self._job.config, self.blueprint
        left = self._chip.memory - self._weight_bytes - blueprint.working_memory
        if config.kv_cache_memory is not None:
            free = config.kv_cache_memory if config.kv_cache_memory <= left else 0
        else:
            free = for_kv_cache(left, self._chip.memory, config.gpu_memory_utilization)
        whole = len(blueprint.groups.windows) * -(-blueprint.max_model_len // blueprint.block_size)
        return max(0, min(free // blueprint.bytes_per_block, whole * config.max_num_seqs))

    def _needs(self) -> Iterator[Need]:
        """What the model would take on other numbers of chips, by its sizes."""
        model = self._source.model
        size = _FLOAT_BYTES[self.blueprint.platform.products.dtype]
        pad = self.blueprint.platform.attention.pad_head
        for shards in (2**power for power in range(_MOST_SHARDS.bit_length())):
            layout = Layout(AbstractMesh((shards,), (AXIS,)), RULES)  # type: ignore[arg-type]
            try:
                layout.check(model.spec, "")
            except ConfigError:
                continue
            outside, *layers = model.parameters()
            if model.spec.tied_embeddings:
                outside = {name: one for name, one in outside.items() if name != "head"}
            matrices = vectors = 0
            for one in (one for group in (outside, *layers) for one in group.values()):
                count = math.prod(one.shape)
                if one.kind == "vector":
                    vectors += 4 * count
                else:
                    matrices += count if layout.cuts(one) is None else -(-count // shards)
            cut = layout.spec_of_shard(model.spec)
            per_token = sum(2 * layer.num_kv_heads * pad(layer.head_dim) for layer in cut.layers)
            yield Need(
                tensor_parallel_size=shards,
                weights=size * matrices + vectors,
                weights_int8=matrices + vectors,
                per_token=self.blueprint.platform.attention.bytes_per_value * per_token,
                per_token_fp8=per_token,
            )


def _bytes_on_each(tree: Any) -> int:
    return sum(map(bytes_on_each, jax.tree.leaves(tree)))
