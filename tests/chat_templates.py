"""Chat templates in the styles of the models that are in use, and conversations for them."""

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

CHATML_DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{ '<|im_start|>assistant\\n' }}{% generation %}{{ message.content ~ '<|im_end|>' -}}
        {% endgeneration %}{{ '\\n' }}
    {%- else -%}
        {{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt }}"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
  {% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
  {% set turns = messages[1:] %}
{% else %}
  {% set system = '' %}
  {% set turns = messages %}
{% endif %}
{% for message in turns %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
  {% endif %}
  {% set content = (system if loop.first else '') + message['content'] %}
  {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
  {% elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token }}
  {% endif %}
{% endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(n=0, said='') %}
{%- if tools is defined and tools %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\nFunctions:\\n" }}
    {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ "\\n\\n" }}{% endfor %}
    {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- set ns.n = ns.n + 1 %}
    {%- if message.content is string %}
        {%- set text = message.content | trim %}
    {%- elif message.content is iterable and message.content is not mapping %}
        {%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') %}
    {%- else %}
        {%- set text = '' %}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + text }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """\
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if system is not none else messages %}
{{- bos_token }}
{%- if tools %}{{ '[AVAILABLE_TOOLS] [' }}{% for t in tools %}{{ t.function | tojson }}{{ ', ' if not loop.last }}
{%- endfor %}{{ '][/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in turns if m.role in ['user', 'assistant'] %}
  {%- if m.role == 'user' %}
    {{- '[INST] ' + ((system + '\\n\\n') if loop.last and system else '') + (m.content or '') + '[/INST]' }}
  {%- else %}
    {{- ' ' + (m['content'] or '') | trim + eos_token }}
  {%- endif %}
{%- endfor %}"""

QWEN3 = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}{%- for part in content or [] -%}{{ part.text if part.type == 'text' else '<image>' }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set last = namespace(query=messages|length - 1) -%}
{%- for message in messages[::-1] -%}
    {%- set index = messages|length - 1 - loop.index0 -%}
    {%- if message.role == 'user' and not text_of(message.content).startswith('<tool_response>') -%}
        {%- set last.query = index -%}{%- break -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- set said = text_of(message.content) -%}
        {%- set thought = message.reasoning_content | default('', true) -%}
        {%- if not thought and '</think>' in said -%}
            {%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {{ '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > last.query and thought -%}{{ '\\n<think>\\n' + thought + '\\n</think>\\n' }}{%- endif -%}
        {{ said }}
        {%- for call in message.tool_calls or [] -%}
            {%- set f = call.function if call.function else call -%}
            {{ '\\n<tool_call>\\n{"name": "' + f.name + '", "arguments": ' }}
            {{- f.arguments if f.arguments is string else f.arguments | tojson }}{{ '}\\n</tool_call>' }}
        {%- endfor -%}
        {{ '<|im_end|>\\n' }}
    {%- else -%}
        {{ '<|im_start|>' + message.role + '\\n' + text_of(message.content) + '<|im_end|>\\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking -%}
    {{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}"""

ZEPHYR = """\
{% for message in messages %}
    {% if message['role'] not in ('system', 'user', 'assistant', 'tool') %}{% continue %}{% endif %}
<|{{ message['role'] }}|>
{{ message['content'] }}{{ eos_token }}
{% if loop.last and add_generation_prompt %}
<|assistant|>
{% endif %}
{% endfor %}
{{ documents | tojson if documents else '' }}
{{ dict(a=1, b=[true, none]) | tojson }} {{ messages | length }} {{ strftime_now('%Y') }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "chatml with a default": CHATML_DEFAULT_SYSTEM,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "zephyr": ZEPHYR,
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather<&>",
            "description": "How is it in 'ville'? Grüße",
            "parameters": {"type": "object", "properties": {"ville": {"type": "string"}}, "required": ["ville"]},
        },
    }
]
