"""What XLA asks about GPUs that are not there."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the compiler chooses by, but for what `protocol.chips` has. Bytes."""

    name: str
    capability: tuple[int, int]
    processors: int
    clock_ghz: float
    shared_memory: int  # of a processor
    threads: int  # of a processor
    cache: int
    memory: int

    def describe(self, bandwidth: float) -> str:
        """As a GpuTargetConfigProto in text. bandwidth: of its memory, bytes a second."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  name: "{self.name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64 ecc_enabled: true
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {self.processors} clock_rate_ghz: {self.clock_ghz} fpus_per_core: 128
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {self.threads}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_memory - 1024}
  shared_memory_per_core: {self.shared_memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {round(bandwidth)} l2_cache_size: {self.cache} device_memory_size: {self.memory}
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.name}"
"""


# By the names of `protocol.chips`. NVIDIA's data sheets, and the table of compute capabilities in its CUDA programming guide.
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 228 << 10, 2048, 50 << 20, 80 << 30),
        "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 164 << 10, 2048, 40 << 20, 80 << 30),
        "l4": Gpu("NVIDIA L4", (8, 9), 58, 2.04, 100 << 10, 1536, 48 << 20, 24 << 30),
    }
)
