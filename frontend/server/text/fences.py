"""What control tokens, templates and what renders them share: conversations as templates see them, and the characters of fences."""

from typing import Any

# Unicode's noncharacters (16.0, section 23.7): for internal use, never for interchange. See `control_tokens`.
FENCES = tuple(map(chr, range(0xFDD0, 0xFDF0)))

Messages = list[dict[str, Any]]  # a conversation as templates see it: JSON's values
