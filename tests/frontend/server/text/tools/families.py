"""Chat templates in the manner of families of models, short."""

HERMES = """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call></tool_call>.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}{{ '<|im_start|>assistant' }}
{%- if m.content %}{{ '\\n' + m.content }}{% endif %}
{%- for call in m.tool_calls %}{% if call.function %}{% set call = call.function %}{% endif -%}
{{ '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}{{ call.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

LLAMA = """\
{%- for m in messages %}
{%- if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
{{- '<|assistant|>{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot|>' }}
{%- elif m.role == 'tool' %}{{ '<|ipython|>' + (m.content | tojson) + '<|eot|>' }}
{%- else %}{{ '<|' + m.role + '|>' }}{% if m.role == 'user' and tools and loop.last %}
{{- 'Answer with {"name": function name, "parameters": dictionary of argument name and its value}.' }}
{%- for tool in tools %}{{ '\\n' ~ (tool | tojson(indent=4)) }}{% endfor %}{% endif %}{{ m.content + '<|eot|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

MISTRAL = """\
{%- for m in messages %}{% if m.role == 'user' %}
{%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS] ' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined and m.tool_calls is not none %}{{ '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{{ '' if loop.last else ', ' }}{% endfor %}{{ ']</s>' }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' ~ m.content ~ ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"""

TEXT_ARGUMENTS = """\
{%- for m in messages %}{% if m.role == 'assistant' and m.content is none %}
{%- for call in m.tool_calls %}{{ '<call>' + call.function.name + '\\n' + call.function.arguments + '</call>' }}{% endfor %}
{%- else %}{{ '<' + m.role + '>' + m.content }}{% endif %}{% endfor %}{{ tools | length if tools else '' }}"""

PLAIN = """\
{%- for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}
{{- '<' + m.role + '>' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

NO_SYSTEM = """\
{%- for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}
{{- '<' + m.role + '>' + m.content }}{% endfor %}"""
