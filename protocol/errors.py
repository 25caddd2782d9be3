"""Errors that cross a process boundary, and the exit code of each.

"Cannot boot" and "crashed" have different codes, so that a service manager can tell a bad flag, which a restart will not
mend, from a fault, which it may.
"""


class ExitCode:
    """Exit codes of `engine-launch`, of its children and of `engine-aot`. 64 to 78 follow sysexits.h where a meaning fits."""

    OK = 0
    CRASHED = 1
    BAD_CONFIG = 64
    BAD_MODEL = 65
    DEVICE_UNAVAILABLE = 69
    OUT_OF_MEMORY = 71
    DOES_NOT_FIT = 72
    ADDRESS_IN_USE = 73
    RANK_LOST = 75
    PROTOCOL = 76


class EngineError(Exception):
    """Base of all errors of the engine: `str(error)` names the cause and the way out."""

    exit_code = ExitCode.CRASHED


class ConfigError(EngineError):
    """A flag or a configuration value is wrong."""

    exit_code = ExitCode.BAD_CONFIG


class ModelError(EngineError):
    """A model's files are missing, damaged or of an architecture that is not supported."""

    exit_code = ExitCode.BAD_MODEL


class DeviceError(EngineError):
    """The accelerator that was asked for is not there or does not answer."""

    exit_code = ExitCode.DEVICE_UNAVAILABLE


class CapacityError(EngineError):
    """The memory that is there does not hold the weights and a usable KV cache."""

    exit_code = ExitCode.OUT_OF_MEMORY


class RankLostError(EngineError):
    """Another rank of a worker over several hosts is gone: the worker begins anew on all of them."""

    exit_code = ExitCode.RANK_LOST


class AddressError(EngineError):
    """A port or socket path is taken or cannot be bound."""

    exit_code = ExitCode.ADDRESS_IN_USE


class ProtocolError(EngineError):
    """A peer sent a frame that does not decode, or speaks another protocol version."""

    exit_code = ExitCode.PROTOCOL


_LONGEST_TEXT = 16_384  # bytes: compilers and drivers can say megabytes, and a last word has to fit its packet


def describe(error: BaseException) -> str:
    """The text of an error, fit to be sent: bounded, and without the lone surrogates of file names that are no UTF-8."""
    text = str(error) or type(error).__name__
    return text.encode("utf-8", "backslashreplace")[:_LONGEST_TEXT].decode("utf-8", "ignore")
