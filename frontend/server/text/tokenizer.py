"""The model's tokenizer: text to token ids, and the ids that mean something to the engine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest
from frontend.server.text.control_tokens import ControlTokens
from frontend.server.text.encoding import token_ids
from frontend.server.text.fill_in import FillIn, fill_in_of_gguf, find_fill_in
from frontend.server.text.gguf_tokenizer import build_from_gguf, token_id
from frontend.server.text.known_tokens import ends_by_name, looking_like_control
from frontend.server.text.panics import panics_are_errors
from frontend.server.text.sentencepiece_file import build_from_file
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer_files import chat_template, gguf_template, read_settings, tokenizer_file
from frontend.stand_in_tokenizer import stand_in_tokenizer
from protocol.config import EngineConfig
from protocol.errors import ModelError
from protocol.gguf_header import read_gguf_header
from protocol.model_files import read_model_facts
from protocol.model_shapes import is_shape
from protocol.vocabulary import Vocabulary

# No token of a known vocabulary is longer (the longest are runs of spaces): a text that exceeds it per token of context cannot fit.
_LONGEST_TOKEN = 256


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids and texts of the tokens with a meaning of their own. `eos_ids` end a generation."""

    eos_ids: tuple[int, ...]
    bos_id: int | None
    texts: dict[str, str]  # "bos_token", "eos_token", …: what chat templates may name


class Tokenizer:
    """Encodes prompts and knows the bytes of each token. Stateless after construction; `encode` may run on any thread."""

    def __init__(
        self,
        fast: FastTokenizer,
        special: SpecialTokens,
        chat_template: str | None,
        fill_in: FillIn | None = None,
        *,
        bos_is_always_first: bool = False,
    ) -> None:
        """`fill_in`: None where the texts of the tokens tell. `bos_is_always_first`: in conversations too, where the tokenizer puts
        one before texts; else a chat template alone decides.

        Raises ModelError when the decoder is of a kind that cannot be run token by token.
        """
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self.special = special
        self.chat_template = chat_template
        self.special_ids = frozenset(token_id for token_id, token in fast.get_added_tokens_decoder().items() if token.special)
        self.bytes = TokenBytes(fast)  # every token, special ones by their names
        self.bytes_without_special = TokenBytes(fast, hidden=self.special_ids)
        ends = special.eos_ids if special.bos_id is None else (*special.eos_ids, special.bos_id)
        self._control_ids = self.special_ids.union(ends)
        self.fill_in = fill_in or find_fill_in(fast.token_to_id)
        self.control = ControlTokens(fast, self._control_ids | looking_like_control(fast))
        self._bos_is_always_first = bos_is_always_first

    @property
    def vocab_size(self) -> int:
        """Number of token ids that have a text."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def vocabulary(self) -> Vocabulary:
        """What others need to know of its tokens."""
        return Vocabulary(self._fast.to_str(), self.special.eos_ids, tuple(sorted(self._control_ids)))

    def bytes_shown(self, *, skip_special_tokens: bool) -> TokenBytes:
        """The bytes of tokens as a request wants them shown."""
        return self.bytes_without_special if skip_special_tokens else self.bytes

    def bytes_showing(self, marks: Iterable[int]) -> TokenBytes:
        """The bytes of tokens without the special ones, but for these."""
        shown = self.special_ids.intersection(marks)
        return TokenBytes(self._fast, hidden=self.special_ids - shown) if shown else self.bytes_without_special

    def encode(
        self, text: str, *, add_special_tokens: bool = True, limit: int | None = None, fence: str = "", field: str = "prompt"
    ) -> list[int]:
        """Token ids of a text. `limit`: tokens of context; a text that cannot fit is refused before it is tokenized. `fence`: the
        text was rendered from messages that `control` gave this fence. `field`: what its sender calls the text.

        Raises InvalidRequest on text that no tokenizer can take: too long for `limit`, or with lone surrogates.
        """
        if limit is not None:
            check_characters(len(text), limit, field)
        try:
            ids = self.control.encode(text, fence) if fence else token_ids(self._fast, text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest("the text holds lone surrogates, which no encoding of Unicode allows", field) from error
        return self._with_ends(ids) if add_special_tokens else ids

    def encode_conversation(self, text: str, *, add_special_tokens: bool, limit: int, fence: str) -> list[int]:
        """Token ids of what a chat template has rendered. Raises as `encode`."""
        ids = self.encode(text, add_special_tokens=add_special_tokens, limit=limit, fence=fence, field="messages")
        if add_special_tokens or not self._bos_is_always_first:
            return ids
        before = self.added_at_ends[0]
        return ids if ids[: len(before)] == before else [*before, *ids]

    def encode_beginning(self, text: str, keep: int | None, *, add_special_tokens: bool, limit: int, field: str) -> list[int]:
        """`encode`, of which `keep` tokens are left: what the tokenizer puts around a text stays, and of the text its beginning.
        None: all are left."""
        if keep is not None:  # what lies behind so many characters is no part of the first tokens
            text = text[: _LONGEST_TOKEN * (keep + 1)]
        ids = self.encode(text, add_special_tokens=False, limit=limit, field=field)
        if not add_special_tokens:
            return ids[:keep]
        if keep is not None:
            ids = ids[: max(0, keep - sum(map(len, self.added_at_ends)))]
        return self._with_ends(ids)[:keep]

    def _with_ends(self, ids: list[int]) -> list[int]:
        """With what the tokenizer puts around a text, and once where the text has it already."""
        before, after = self.added_at_ends
        first = [] if ids[: len(before)] == before else before
        last = [] if after and ids[-len(after) :] == after else after
        return [*first, *ids, *last]

    def encode_around(self, prefix: str, suffix: str, *, add_special_tokens: bool = True, limit: int | None = None) -> list[int]:
        """Token ids of a prompt whose gap, between these, the model is to fill. Raises InvalidRequest as `encode`, and where the
        model has no tokens for that."""
        if self.fill_in is None:
            text = "suffix: this model's vocabulary has no tokens for what is to be filled in between prompt and suffix"
            raise InvalidRequest(text, "suffix", "unsupported_parameter")
        before = self.added_at_ends[0] if add_special_tokens else []
        first = self.encode(prefix, add_special_tokens=False, limit=limit)
        return [*before, *self.fill_in.around(first, self._encode_within(suffix, limit=limit, field="suffix"))]

    def _encode_within(self, text: str, *, limit: int | None, field: str) -> list[int]:
        """Token ids of a text that does not begin one: without the space that SentencePiece puts before every text."""
        if not self.bytes.begins_otherwise:
            return self.encode(text, add_special_tokens=False, limit=limit, field=field)
        ids = self.encode("\n" + text, add_special_tokens=False, limit=limit, field=field)
        first = next((index for index, token_id in enumerate(ids) if self.bytes[token_id] == b"\n"), None)
        return self.encode(text, add_special_tokens=False, field=field) if first is None else ids[first + 1 :]

    @cached_property
    def added_at_ends(self) -> tuple[list[int], list[int]]:
        """The tokens that `add_special_tokens` puts before and after a text."""
        alone = self._fast.encode("a", add_special_tokens=False).ids
        ids = self._fast.encode("a", add_special_tokens=True).ids
        start = next((start for start in range(len(ids)) if ids[start : start + len(alone)] == alone), 0)
        return ids[:start], ids[start + len(alone) :]

    def added_tokens(self) -> dict[int, AddedToken]:
        """The tokens that are matched before a text is split, by id."""
        return dict(sorted(self._fast.get_added_tokens_decoder().items()))

    def names_of(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them; empty for ids that it has not."""
        return [self._fast.id_to_token(token_id) or "" for token_id in token_ids]

    def text_of(self, token_id: int) -> str:
        """One token by itself, as log-probabilities show it: OpenAI's `bytes:\\xe2\\x82` for a part of a character."""
        data = self.bytes[token_id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def check_characters(characters: int, limit: int, field: str) -> None:
    """Raises InvalidRequest when a text of that length fits no context of `limit` tokens, whatever its tokens are."""
    if characters > limit * _LONGEST_TOKEN:
        message = f"This model's maximum context length is {limit} tokens; the prompt's {characters} characters cannot fit"
        raise InvalidRequest(message, field, CONTEXT_LENGTH_EXCEEDED)


def last_characters(text: str, tokens: int) -> str:
    """The end of a text that holds its last tokens, and some more before them, so that these do not tell where it was cut."""
    return text[-_LONGEST_TOKEN * tokens - _LONGEST_TOKEN :]


def load_tokenizer(config: EngineConfig) -> Tokenizer:
    """The tokenizer of the configured model. Raises ModelError naming the file and what is wrong or unsupported."""
    path = Path(config.model_path)
    try:
        with panics_are_errors():
            return _from_gguf(path) if config.model_format == "gguf" else _from_huggingface(path)
    except ModelError:
        raise
    except Exception as error:  # the library raises the base class itself; and nothing but the files could be the cause
        raise ModelError(f"{path}: cannot build its tokenizer: {error}") from error


def _from_gguf(path: Path) -> Tokenizer:
    metadata = read_gguf_header(path).metadata
    try:
        fast, tokens = build_from_gguf(metadata)
        template = gguf_template(metadata)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    texts = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = token_id(metadata, key)
        if index is not None and index < len(tokens):
            texts[f"{name}_token"] = tokens[index]
    # A turn or a message may end with another token than a document: each of them ends an answer.
    ends = {index for key in ("eos", "eot", "eom") if (index := token_id(metadata, key)) is not None and index < len(tokens)}
    ends |= ends_by_name(fast) - {token_id(metadata, "unknown")}
    special = SpecialTokens(tuple(sorted(ends)), token_id(metadata, "bos"), texts)
    fill_in = fill_in_of_gguf(metadata, fast.token_to_id, len(tokens))
    return Tokenizer(fast, special, template, fill_in, bos_is_always_first=True)


def _from_huggingface(path: Path) -> Tokenizer:
    if is_shape(path):
        vocab_size = read_model_facts(path, "huggingface", "dummy").vocab_size
        return Tokenizer(FastTokenizer.from_str(stand_in_tokenizer(vocab_size).decode()), SpecialTokens((), None, {}), None)
    file = tokenizer_file(path)
    settings = read_settings(path / "tokenizer_config.json")
    if file.suffix == ".model":
        fast = build_from_file(file, settings)
    else:
        try:
            fast = FastTokenizer.from_file(str(file))
        except Exception as error:  # the library raises the base class itself
            raise ModelError(f"{file}: not a readable tokenizer: {error}") from error
    texts = {key: text for key, value in settings.items() if key.endswith("_token") and (text := _token_text(value)) is not None}
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):  # the first that says it: generation_config overrides config
        ends.update(_ids(read_settings(path / name).get("eos_token_id")))
        if ends:
            break
    if (eos := fast.token_to_id(texts.get("eos_token", ""))) is not None:
        ends.add(eos)
    special = SpecialTokens(tuple(sorted(ends)), fast.token_to_id(texts.get("bos_token", "")), texts)
    return Tokenizer(fast, special, chat_template(path, settings))


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):  # older files write an AddedToken
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and item >= 0]
