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

# As gpt-oss has it: tools as TypeScript, thoughts that are told only before calls, one call in each answer.
HARMONY = """\
{%- macro kind(spec) -%}
    {%- if spec.type == 'array' %}{{ kind(spec['items']) if spec['items'] else 'any' }}[]
    {%- elif spec.enum %}{{ '"' + spec.enum | join('" | "') + '"' }}
    {%- elif spec.type and spec.type is not string %}{{ spec.type | join(' | ') }}
    {%- elif spec.type == 'object' and spec.properties %}{
        {%- for name, part in spec.properties.items() %}
            {{- name }}{{ '' if name in (spec.required or []) else '?' }}: {{ kind(part) }}{{ ', ' if not loop.last }}
        {%- endfor %}}
    {%- else %}{{ {'integer': 'number', 'float': 'number'}.get(spec.type, spec.type or 'any') }}{% endif -%}
{%- endmacro -%}
{%- macro functions(tools) -%}
    {{- '## functions\\n\\nnamespace functions {\\n\\n' }}
    {%- for tool in tools %}{% set tool = tool.function %}
        {{- '// ' + (tool.description or '') + '\\ntype ' + tool.name + ' = (' }}
        {%- if tool.parameters and tool.parameters.properties %}{{ '_: {\\n' }}
            {%- for name, part in tool.parameters.properties.items() %}
                {%- if part.description %}{{ '// ' + part.description + '\\n' }}{% endif %}
                {{- name }}{{ '' if name in (tool.parameters.required or []) else '?' }}: {{ kind(part) }}
                {%- if part.default is defined %}{{ ', // default: ' + (part.default if part.enum else part.default | tojson) }}
                {%- else %},{% endif %}{{ '\\n' }}
            {%- endfor %}{{ '})' }}
        {%- else %}{{ ')' }}{% endif %}{{ ' => any;\\n\\n' }}
    {%- endfor %}{{ '} // namespace functions' }}
{%- endmacro -%}
{%- set identity = model_identity if model_identity is defined else 'You are a model.' -%}
{{- '<|start|>system<|message|>' + identity + '\\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\\n\\nReasoning: ' }}
{{- (reasoning_effort if reasoning_effort is defined else 'medium') + '\\n\\n# Valid channels: analysis, commentary, final.' }}
{%- if tools %}{{ "\\nCalls to these tools must go to the commentary channel: 'functions'." }}{% endif %}{{ '<|end|>' }}
{%- if messages[0].role in ['developer', 'system'] %}{% set said = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set said = '' %}{% set rest = messages %}{% endif %}
{%- if said or tools %}{{ '<|start|>developer<|message|>' }}
    {%- if said %}{{ '# Instructions\\n\\n' + said }}{% endif %}
    {%- if tools %}{{ '\\n\\n' if said }}{{ '# Tools\\n\\n' + functions(tools) }}{% endif %}{{ '<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in rest %}
    {%- if message.role == 'assistant' %}
        {%- if 'content' in message and '<|channel|>analysis<|message|>' in message.content %}
            {{- raise_exception('There are channels in the content') }}
        {%- endif %}
        {%- if 'tool_calls' in message %}
            {%- set after = namespace(final=false) %}
            {%- for later in rest[loop.index:] %}
                {%- if later.role == 'assistant' and 'tool_calls' not in later %}{% set after.final = true %}{% endif %}
            {%- endfor %}
            {%- set call = message.tool_calls[0].function %}
            {%- if message.content and message.thinking %}{{ raise_exception('Either content or thinking') }}
            {%- elif (message.content or message.thinking) and not after.final %}
                {{- '<|start|>assistant<|channel|>analysis<|message|>' + (message.content or message.thinking) + '<|end|>' }}
            {%- endif %}
            {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
            {{- call.arguments | tojson }}{{ '<|call|>' }}{% set last.name = call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if 'thinking' in message %}
                {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
            {%- endif %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
        {%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{% set last.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {%- if last.name is none %}{{ raise_exception('A result, and no call before it') }}{% endif %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson + '<|end|>' }}
    {%- elif message.role == 'user' %}{{ '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
