"""POST /v1/responses: OpenAI's newer way to hold a conversation, here without a memory: nothing is stored."""
