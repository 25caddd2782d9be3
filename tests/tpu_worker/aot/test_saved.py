"""Programs that one worker saves and another loads, and what it makes of those that do not fit or are damaged."""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from msgspec.structs import replace as changed

from protocol.config import EngineConfig
from protocol.errors import ConfigError
from protocol.params import EngineParams
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model
from tpu_worker.aot.header import Header, difference, make_header
from tpu_worker.aot.saved import HEADER, ProgramFiles, begin_saving, file_of, save_program
from tpu_worker.blueprint import Blueprint, draw_blueprint
from tpu_worker.device import Admission
from tpu_worker.inputs import SlotState, pack_admission
from tpu_worker.mesh.devices import open_devices
from tpu_worker.mesh.layout import REPLICATED, Layout, Tree, make_layout
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.platform import Platform
from tpu_worker.program import Compiler, Shapes
from tpu_worker.runner import JaxDevice
from tpu_worker.warmup import leave_compilation_cache
from tpu_worker.weights.load import WeightLoader, open_source

TENSORS = make_tensors(CONFIG)
SIZES = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 96}  # few programs
BLOCKS = 24
PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 60, -1))]
PARAMS = (
    EngineParams(6, logprobs=2),
    EngineParams(6, temperature=0.9, seed=3, repetition_penalty=1.2, logit_bias={7: 2.0}),
    EngineParams(1, prompt_logprobs=1),
    EngineParams(1, pooling="mean"),
)


@pytest.fixture(autouse=True)
def cache_as_before() -> Iterator[None]:
    """A device that saves leaves JAX's cache, which other tests share."""
    before = jax.config.values["jax_enable_compilation_cache"]
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def outputs(config: EngineConfig, platform: Platform | None) -> tuple[list[Any], ProgramFiles, int]:
    """What a device computes once all its programs are there, where they came from, and how many blocks it has."""
    device = JaxDevice(config, platform)
    capacity, ready = device.load(lambda *_: None), threading.Event()
    device.prepare_scores(lambda error: ready.set() if not error else os.abort())
    assert ready.wait(60)
    device.programs.wait()
    found: list[Any] = []
    for params in PARAMS:
        driver = Driver(device, capacity.num_blocks, capacity.block_size, vocab_size=capacity.vocab_size)
        for request in driver.run(PROMPTS, params, chunk=5):
            found.append((request.tokens, request.logprobs, request.scores))
    device.close()
    return found, device.program_files, capacity.num_blocks


@pytest.mark.parametrize("platform", [None, pytest.param(make_xla_platform(), marks=pytest.mark.slow)], ids=["fastest", "xla"])
def test_what_is_loaded_computes_the_same_to_the_bit_and_nothing_is_compiled(tmp_path: Path, platform: Platform | None) -> None:
    config = tiny_config(write_model(tmp_path / "model", CONFIG, TENSORS), **SIZES)
    expected, saving, _ = outputs(changed(config, save_compiled=str(tmp_path / "saved"), kv_cache_memory=8 << 14), platform)
    assert saving.loaded == [] and len(saving.compiled) == 10
    found, loading, num_blocks = outputs(changed(config, compiled=str(tmp_path / "saved")), platform)
    assert (sorted(loading.loaded), loading.compiled) == (sorted(saving.compiled), [])
    assert num_blocks == saving_blocks(tmp_path / "saved")  # not those that there would be room for
    assert found == expected


@pytest.mark.slow
def test_what_was_loaded_from_the_cache_before_is_compiled_anew_to_be_saved(tmp_path: Path) -> None:
    config = tiny_config(write_model(tmp_path / "model", CONFIG, TENSORS), **SIZES)
    platform = make_xla_platform()
    for _ in range(2):  # the second time, all programs come out of JAX's cache, and stay in memory
        jax.clear_caches()
        expected, *_ = outputs(config, platform)
    assert outputs(changed(config, save_compiled=str(tmp_path / "saved"), kv_cache_memory=8 << 14), platform)[1].loaded == []
    found, loading, _ = outputs(changed(config, compiled=str(tmp_path / "saved")), platform)
    assert loading.compiled == [] and found == expected


def saving_blocks(directory: Path) -> int:
    header: dict[str, Any] = msgspec.json.decode((directory / HEADER).read_bytes())["header"]
    number: int = header["num_blocks"]
    assert 6 <= number < 4 * 6
    return number


@dataclass
class Workshop:
    """Everything that a worker has before it compiles, and two of its programs saved."""

    config: EngineConfig
    blueprint: Blueprint
    weights: Shapes
    directory: Path

    def header(self) -> Header:
        return make_header(self.config, self.blueprint, self.blueprint.compiler(self.weights, BLOCKS), BLOCKS)

    def load(self, available: int = BLOCKS) -> tuple[ProgramFiles, Compiler, int]:
        """As a worker does that is told of the directory."""
        files = ProgramFiles(changed(self.config, compiled=str(self.directory)))
        num_blocks = files.choose_blocks(self.blueprint, self.weights, available)
        return files, files.attach(self.blueprint, self.blueprint.compiler(self.weights, num_blocks), num_blocks), num_blocks

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Of the header."""
        path = self.directory / HEADER
        whole = msgspec.json.decode(path.read_bytes())
        change(whole)
        path.write_bytes(msgspec.json.encode(whole))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineConfig, Blueprint, Shapes, dict[str, Any]]:
    config = tiny_config(write_model(tmp_path_factory.mktemp("model"), CONFIG, TENSORS), **SIZES)
    devices, source = open_devices(config), open_source(config)
    blueprint = draw_blueprint(config, source, make_layout(devices), "cpu", make_xla_platform())
    loader = WeightLoader(source, blueprint.platform.products, blueprint.layout, blueprint.max_model_len, lambda *_: None)
    weights = loader.shapes(loader.load_first())
    leave_compilation_cache()
    compiler = blueprint.compiler(weights, BLOCKS)
    return config, blueprint, weights, {"admit": compiler.admit(), "grow": compiler.grow()}


@pytest.fixture
def workshop(drawn: tuple[EngineConfig, Blueprint, Shapes, dict[str, Any]], tmp_path: Path) -> Workshop:
    config, blueprint, weights, programs = drawn
    shop = Workshop(config, blueprint, weights, tmp_path / "saved")
    begin_saving(shop.directory, shop.header())
    for name, program in programs.items():
        save_program(shop.directory, shop.header(), name, program)
    return shop


def run_admit(compiler: Compiler) -> tuple[SlotState, bool]:
    """What the program does, and whether it works where its input lies."""
    slots: SlotState = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), compiler.state.slots)
    packed = pack_admission(Admission(1, np.arange(5, dtype=np.int32), (np.array([3], np.int32),), 5, EngineParams(4)), slots)
    after = compiler.admit()(slots, packed)
    return after, slots.history.is_deleted()


def test_a_loaded_program_works_in_place(workshop: Workshop) -> None:
    files, compiler, _ = workshop.load()
    after, in_place = run_admit(compiler)
    assert in_place and np.asarray(after.history)[1, :6].tolist() == [0, 1, 2, 3, 4, 0]
    assert (files.loaded, files.compiled) == (["admit"], [])


def damage_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def damage_payload_digest_included(path: Path) -> None:
    """A program that is whole by its own account, and nothing that JAX can read."""
    line, _, payload = path.read_bytes().partition(b"\n")
    said = msgspec.json.decode(line) | {"sha256": sha256(payload[:-100]).hexdigest(), "length": len(payload) - 100}
    path.write_bytes(msgspec.json.encode(said) + b"\n" + payload[:-100])


def say_otherwise(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        line, _, payload = path.read_bytes().partition(b"\n")
        path.write_bytes(msgspec.json.encode(msgspec.json.decode(line) | fields) + b"\n" + payload)

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "admit.program is missing"),
        (damage_length, "admit.program is cut short: "),
        (damage_last_byte, "admit.program is damaged: its digest differs"),
        (lambda path: path.write_bytes(b""), "admit.program is damaged: Input data was truncated"),
        (lambda path: path.write_bytes(b"\xff\n\xff"), "admit.program is damaged: "),
        (lambda path: path.write_bytes(b"[" * 100_000), "admit.program is damaged: "),
        (say_otherwise(name="grow"), "admit.program belongs to another directory"),
        (say_otherwise(belongs_to="0" * 64), "admit.program belongs to another directory"),
        (say_otherwise(results=2), "admit.program takes or returns something else"),
        (damage_payload_digest_included, ""),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_used_is_compiled_and_the_others_are_loaded(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    damage(workshop.directory / file_of("admit"))
    files, compiler, _ = workshop.load()
    with caplog.at_level(logging.WARNING):
        run_admit(compiler)
        compiler.grow()
    assert (files.loaded, files.compiled) == (["grow"], ["admit"])
    (record,) = caplog.records
    assert f"--compiled {workshop.directory}: program admit is compiled instead: {reason}" in record.getMessage()


def rename_field(whole: dict[str, Any]) -> None:
    whole["header"]["mesh"] = whole["header"].pop("device_ids")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole: whole["header"].update(device="TPU v6 lite"), "device is TPU v6 lite there and cpu, flags "),
        (lambda whole: whole["header"].update(device_ids=[0, 2]), "device_ids is 0, 2 there and 0 here"),
        (lambda whole: whole["header"]["versions"].update(jax="0.9.0"), f"version of jax is 0.9.0 there and {jax.__version__}"),
        (lambda whole: whole["header"]["versions"].update(libtpu="0.1"), "version of libtpu is 0.1 there and nothing here"),
        (lambda whole: whole["header"]["versions"].pop("jaxlib"), "version of jaxlib is nothing there and "),
        (lambda whole: whole["header"].update(max_num_seqs=64), "max_num_seqs is 64 there and 4 here"),
        (lambda whole: whole["header"].update(cache="fp8_e4m3"), "cache is fp8_e4m3 there and bfloat16 here"),
        (lambda whole: whole["header"].update(weights="0"), "weights is 0 there and "),
        (lambda whole: whole["header"].update(more=1), "more is 1 there and nothing here"),
        (rename_field, "device_ids is nothing there and 0 here"),
        (lambda whole: whole["header"].update(num_blocks=True), "header.json is damaged: num_blocks is True"),
        (lambda whole: whole["header"].update(num_blocks=2**40), "header.json is damaged: num_blocks is 1099511627776"),
        (lambda whole: whole.update(format=2), "header.json is of format 2, and this engine reads 1"),
        (lambda whole: whole.pop("header"), "header.json is cut short or damaged: "),
    ],
)  # fmt: skip
def test_a_directory_of_another_engine_is_left_alone(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    workshop.edit(change)
    with caplog.at_level(logging.WARNING):
        files, compiler, num_blocks = workshop.load()
    (record,) = caplog.records
    assert f"--compiled {workshop.directory}: programs are compiled instead: {reason}" in record.getMessage()
    assert (compiler.store, num_blocks, files.loaded) == (None, BLOCKS, [])


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"format":1,"header":3}'])
def test_a_header_that_is_none(workshop: Workshop, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    (workshop.directory / HEADER).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert workshop.load()[1].store is None
    assert "programs are compiled instead: header.json is cut short or damaged" in caplog.text
    (workshop.directory / HEADER).unlink()
    assert workshop.load()[1].store is None
    assert "programs are compiled instead: header.json is missing" in caplog.text


def test_the_saved_number_of_blocks_is_taken_where_there_is_room(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    assert workshop.load(BLOCKS + 100)[2] == BLOCKS
    assert caplog.text == ""
    _, _, num_blocks = workshop.load(BLOCKS - 1)
    assert num_blocks == BLOCKS - 1
    assert f"they are for {BLOCKS} KV blocks, and there is room for {BLOCKS - 1}" in caplog.text


def test_hosts_that_have_room_for_less_together(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    files = ProgramFiles(changed(workshop.config, compiled=str(workshop.directory)))
    assert files.choose_blocks(workshop.blueprint, workshop.weights, BLOCKS) == BLOCKS
    compiler = files.attach(workshop.blueprint, workshop.blueprint.compiler(workshop.weights, 20), 20)
    assert compiler.store is None and "all hosts together have room for 20" in caplog.text


def test_saving_again_keeps_what_fits_and_removes_what_does_not(workshop: Workshop) -> None:
    programs = {file_of("admit"), file_of("grow")}
    (workshop.directory / ".draft-of-one-that-was-killed").touch()
    begin_saving(workshop.directory, workshop.header())
    assert {path.name for path in workshop.directory.glob("*.program")} == programs
    (workshop.directory / "notes.txt").write_text("mine")
    other = changed(workshop.header(), max_num_seqs=5)
    begin_saving(workshop.directory, other)
    assert {path.name for path in workshop.directory.iterdir()} == {HEADER, "notes.txt"}
    assert "max_num_seqs is 5 there and 4 here" in difference(
        msgspec.json.decode((workshop.directory / HEADER).read_bytes())["header"], workshop.header()
    )


def test_what_is_saved_is_for_this_user_alone_whatever_the_umask(workshop: Workshop, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        begin_saving(tmp_path / "made", workshop.header())
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "made" / HEADER).stat().st_mode & 0o777 == 0o600


def test_a_directory_to_which_others_can_write_is_refused(workshop: Workshop) -> None:
    workshop.directory.chmod(0o770)
    with pytest.raises(ConfigError, match=r"--compiled .*saved: .* others may write to .*saved \(`chmod go-w` ends that\)"):
        workshop.load()
    workshop.directory.chmod(0o755)
    (workshop.directory / file_of("grow")).chmod(0o666)
    with pytest.raises(ConfigError, match="others may write to .*grow.program"):
        workshop.load()


def test_where_nothing_can_be_written_an_engine_that_is_to_save_does_not_start(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = ProgramFiles(changed(workshop.config, save_compiled=str(tmp_path / "file" / "below")))
    with pytest.raises(ConfigError, match="--save-compiled .*below: "):
        files.attach(workshop.blueprint, workshop.blueprint.compiler(workshop.weights, BLOCKS), BLOCKS)


class ChipsByName(Layout):
    """As who compiles ahead has it: arrays name their chip also where it is the only one."""

    def shapes(self, tree: Tree, spec: jax.sharding.PartitionSpec = REPLICATED) -> Tree:
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree)


def test_a_chip_may_be_named_or_not(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    """What was compiled for a mesh of one chip is loaded by a worker that has no mesh, and takes its arrays."""
    leave_compilation_cache()
    layout = ChipsByName(workshop.blueprint.layout.mesh, workshop.blueprint.layout.rules)
    blueprint = replace(workshop.blueprint, layout=layout)
    compiler = blueprint.compiler(layout.shapes(workshop.weights), BLOCKS)
    assert isinstance(compiler.state.slots.history.sharding, NamedSharding)
    header = make_header(workshop.config, blueprint, compiler, BLOCKS)
    begin_saving(workshop.directory, header)
    save_program(workshop.directory, header, "admit", compiler.admit())
    files, loaded, _ = workshop.load()
    assert run_admit(loaded)[1]
    assert (files.loaded, caplog.text) == (["admit"], "")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_programs_of_a_chip_that_is_not_there_are_saved_and_not_taken_by_another(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a TPU loads them is for a TPU to say. Anything else says what they are for."""
    shop = replace(workshop, directory=tmp_path / "tpu")
    script = ("-m", "tests.tpu_worker.aot.save_for_absent_chip", workshop.config.model_path, str(shop.directory))
    subprocess.run([sys.executable, *script], check=True, capture_output=True, cwd=Path(__file__).parents[3])
    assert {path.name for path in shop.directory.iterdir()} == {HEADER, "admit.program", "step-8x8.program"}
    header = msgspec.json.decode((shop.directory / HEADER).read_bytes())["header"]
    assert (header["device"], header["device_ids"], header["num_blocks"]) == ("TPU v6 lite", [0], 64)
    assert header["kernels"] == "Pallas" and {"jax", "jaxlib", "libtpu", "twodeep"} == header["versions"].keys()
    assert shop.load()[1].store is None
    assert "programs are compiled instead: device is TPU v6 lite there and cpu" in caplog.text
