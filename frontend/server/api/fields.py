"""What the fields of requests mean, and how far they go: for the description of the interface. Checked against what is refused."""

from typing import Any

from frontend.tools import MOST_TOOLS
from protocol.params import (
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TIMEOUT,
    MIN_REPETITION_PENALTY,
    SEED_LIMIT,
)

_INT32 = 2**31 - 1


def _field(description: str, **limits: float) -> dict[str, Any]:
    """Limits are JSON Schema's: of numbers, of the length of texts, of the items of lists."""
    return {"description": description, **limits}


FIELDS: dict[str, dict[str, Any]] = {
    "model": _field("A name that the model is served under. Without one: the first."),
    "messages": _field("The conversation, in the order in which it was held.", minItems=1),
    "prompt": _field("A text, several, a list of token ids, or several such lists.", minItems=1),
    "max_tokens": _field(
        "The most tokens to generate. Without it: to the end of the context, which also clips it.", minimum=1, maximum=_INT32
    ),
    "max_completion_tokens": _field("OpenAI's newer name of max_tokens, and stronger than that.", minimum=1, maximum=_INT32),
    "min_tokens": _field("No token that ends an answer is taken before so many. At most max_tokens.", minimum=0, maximum=_INT32),
    "temperature": _field("Below 0.00001 the most likely token is taken.", minimum=0, maximum=100),
    "top_p": _field("Only the most likely tokens with this much probability together are taken.", exclusiveMinimum=0, maximum=1),
    "top_k": _field("Only so many most likely tokens are taken; 0 and -1: all.", minimum=-1, maximum=_INT32),
    "min_p": _field("Only tokens with this part of the likeliest one's probability are taken.", minimum=0, maximum=1),
    "n": _field("Answers to each prompt.", minimum=1, maximum=MAX_CHOICES),
    "seed": _field(
        "The same seed gives the same answer. Without one: another each time.", minimum=-SEED_LIMIT, maximum=SEED_LIMIT - 1
    ),
    "stop": _field(
        "Texts that end the answer; 1 to 1024 characters each, 4096 together.", maxItems=MAX_STOP_STRINGS, maxLength=1024
    ),
    "stop_token_ids": _field("Tokens that end the answer.", maxItems=MAX_STOP_TOKEN_IDS),
    "ignore_eos": _field("The model's end tokens do not end the answer."),
    "include_stop_str_in_output": _field("What ended the answer is a part of its text."),
    "skip_special_tokens": _field("Special tokens are no part of the text. True without it."),
    "repetition_penalty": _field(
        "Above 1: less of what prompt or answer hold already.", minimum=MIN_REPETITION_PENALTY, maximum=MAX_REPETITION_PENALTY
    ),
    "presence_penalty": _field("Less of what the answer holds already.", minimum=-2, maximum=2),
    "frequency_penalty": _field("Less of that, for each time.", minimum=-2, maximum=2),
    "logit_bias": _field("Added to the logits of tokens, by their ids; -100 rules one out.", maxProperties=MAX_LOGIT_BIAS),
    "allowed_token_ids": _field("All other tokens are ruled out.", minItems=1),
    "bad_words": _field("Texts that the answer does not hold.", maxItems=MAX_BAD_WORDS),
    "prompt_logprobs": _field(
        "Likely tokens to list beside each token of the prompt; not in streams.", minimum=0, maximum=MAX_LOGPROBS
    ),
    "truncate_prompt_tokens": _field("How many last tokens of a prompt are left of it; -1: as many as have room.", minimum=-1),
    "timeout": _field(
        "Seconds after which an answer that is not complete ends with an error.", exclusiveMinimum=0, maximum=MAX_TIMEOUT
    ),
    "response_format": _field(
        "What the answer must be: {'type': 'json_object'}, {'type': 'json_schema', 'json_schema': {'name': …, 'schema': …}}, "
        "{'type': 'structural_tag', …}, or {'type': 'text'}."
    ),
    "structured_outputs": _field(
        "What the answer must be, by one of the keys json (a schema), regex, choice (a list of texts), grammar (Lark or GBNF), "
        "json_object, structural_tag."
    ),
    "guided_json": _field("A JSON schema that the answer must fit. vLLM's older name of structured_outputs.json."),
    "guided_regex": _field("A regular expression that must match the whole answer."),
    "guided_choice": _field("Texts of which the answer must be one."),
    "guided_grammar": _field("A grammar that the answer must follow, in Lark or GBNF."),
    "priority": _field("Lower runs first, where the operator allows it.", minimum=-(2**31), maximum=_INT32),
    "cache_salt": _field("Only requests with the same salt share what the prefix cache holds."),
    "add_special_tokens": _field("The tokenizer puts its own tokens around the text. True for prompts, false for conversations."),
    "return_token_ids": _field("The answer lists the tokens of prompt and answer."),
    "stream": _field("The answer comes as server-sent events, piece by piece."),
    "stream_options": _field("What a stream tells besides."),
    "top_logprobs": _field("Likely tokens to list beside each token.", minimum=0, maximum=MAX_LOGPROBS),
    "echo": _field("The prompt comes before the answer."),
    "suffix": _field("A text behind the answer, which fills the gap between prompt and suffix. Only with models of code."),
    "best_of": _field(
        "So many are generated, and the n most likely ones shown. As many as n without it.", minimum=1, maximum=MAX_CHOICES
    ),
    "add_generation_prompt": _field("The template opens an answer of the assistant. True, unless continue_final_message is."),
    "continue_final_message": _field("The last message is left open, and the answer goes on in it."),
    "chat_template_kwargs": _field("Variables of the chat template that clients may set; others are ignored."),
    "tools": _field("Functions that the model may call, with JSON schemas of their arguments.", maxItems=MOST_TOOLS),
    "tool_choice": _field(
        "auto: the model decides; none; required: it calls one at least; {'type': 'function', 'function': {'name': …}}: it calls "
        "that one; {'type': 'allowed_tools', 'allowed_tools': {'mode': auto or required, 'tools': […]}}: some of them."
    ),
    "parallel_tool_calls": _field("The model may call several tools at once. True without it."),
    "functions": _field("OpenAI's older name of tools; one is called at most.", maxItems=MOST_TOOLS),
    "function_call": _field("OpenAI's older name of tool_choice: auto, none, or {'name': …}."),
    "include_reasoning": _field("The answer tells what the model thought before it. True without it."),
    "reasoning_effort": _field("A variable of the chat template, such as low or high; none switches its thinking off."),
    "return_token_strs": _field("The tokens come as the vocabulary writes them, too."),
    "tokens": _field("Token ids."),
    "logprobs": _field(
        "Log-probabilities: of completions, how many likely tokens to list, 20 at most; of chats, whether to tell any."
    ),
    "input": _field("What was said so far: a text of the user, or items.", minItems=1),
    "encoding_format": _field("float: lists of numbers; base64: of little-endian float32."),
    "dimensions": _field("So many numbers, where the model was trained for that. Without it: as many as the model has.", minimum=1),
    "user": _field("Without effect."),
    "instructions": _field("A system message before the input."),
    "max_output_tokens": _field("The most tokens to generate. Without it: to the end of the context.", minimum=1, maximum=_INT32),
    "include": _field("message.output_text.logprobs asks for log-probabilities; other values are ignored."),
    "text": _field("What the text has to be: any, JSON, or JSON that follows a schema."),
    "reasoning": _field("How much the model thinks."),
    "metadata": _field("Comes back in the answer. Keys have 64 characters at most, values 512.", maxProperties=16),
    "store": _field("Without effect: nothing is stored."),
    "system": _field("What the model is told before the conversation."),
    "stop_sequences": _field("Texts that end the answer; 1 to 1024 characters each, 4096 together.", maxItems=MAX_STOP_STRINGS),
    "thinking": _field("Whether the model thinks before it answers. A budget is ignored."),
    "output_config": _field("A JSON schema that the answer follows, and how much the model thinks."),
}
