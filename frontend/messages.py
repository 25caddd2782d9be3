"""What a message of a conversation may hold, for HTTP and the Python client alike.

A message is refused where it says what the engine could not tell the model, which would then answer another conversation.
What says nothing to a model is ignored, since clients send `cache_control`, `annotations`, `id` and more.
"""

from frontend.errors import InvalidRequest

TEXT_PARTS = ("text", "input_text", "output_text")  # the types of parts that are texts, by several names

# Fields of a message that say something, where they hold more than a neutral value.
UNSUPPORTED = (
    "refusal",
    "audio",
    "images",  # Ollama's
    "tools",  # DeepSeek's
    "prefix",  # Mistral's and DeepSeek's way to ask for continue_final_message
    "partial",  # Moonshot's and Alibaba's
)


def unsupported(name: str, where: str) -> InvalidRequest:
    """A field of the message at `where` that is not supported."""
    instead = "; use continue_final_message" if name in ("prefix", "partial") else ""
    return InvalidRequest(f"{where}.{name} is not supported{instead}", f"{where}.{name}")


def no_text(kind: str, where: str) -> InvalidRequest:
    """A part of a content that is none, or not a text. `where`: its path."""
    if kind in TEXT_PARTS:
        return InvalidRequest(f"{where}: a part of type {kind!r} needs a text", where)
    return InvalidRequest(f"{where}: content of type {kind[:50]!r} is not supported, only text", where)
