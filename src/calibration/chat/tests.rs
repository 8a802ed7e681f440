use std::{collections::BTreeMap, path::Path};

use super::{Chat, to_json};
use crate::calibration::TokenError;

const LLAMA: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "never" %}
    {%- endif %}
{%- endif %}
{#- The first message may be the system's. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
    {%- for t in tools %}
        {{- t | tojson }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const CHATML: &str = "{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'note' %}{% continue %}{% endif %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- generation -%}
    {{- content + '<|im_end|>' + '\\n' }}
    {%- endgeneration -%}
{% endfor %}";

const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}";

fn chat(source: &str) -> Chat {
    let special = BTreeMap::from([("bos_token".to_owned(), "<bos>".to_owned())]);
    Chat::new("tokenizer_config.json".into(), source, special).unwrap()
}

fn render(source: &str, messages: &str) -> Result<String, TokenError> {
    let messages: minijinja::Value = serde_json::from_str(messages).unwrap();
    chat(source).render(&messages, None, Path::new("chats.jsonl"), 7)
}

const CONVERSATION: &str = r#"[{"role": "user", "content": " Hi? "}, {"role": "assistant", "content": "Yes <&'>!"}]"#;

#[test]
fn a_template_like_llama_3() {
    let expected = "<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\nYes <&'>!<|eot_id|>";
    assert_eq!(render(LLAMA, CONVERSATION).unwrap(), expected);
    let with_system = r#"[{"role": "system", "content": "Be short.\n"}, {"role": "user", "content": "1"}]"#;
    let expected = "<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe short.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\n1<|eot_id|>";
    assert_eq!(render(LLAMA, with_system).unwrap(), expected);
}

#[test]
fn tools_are_written_as_python_writes_json() {
    let messages: minijinja::Value = serde_json::from_str(r#"[{"role": "user", "content": "1"}]"#).unwrap();
    let tools: minijinja::Value = serde_json::from_str(r#"[{"name": "wörter<", "a": [1, 2.5, null, true]}]"#).unwrap();
    let text = chat(LLAMA).render(&messages, Some(&tools), Path::new("c.jsonl"), 1).unwrap();
    assert!(text.contains("ipython\n{\"name\": \"wörter<\", \"a\": [1, 2.5, null, true]}Today"), "{text}");
}

#[test]
fn json_with_an_indent() {
    let mut environment = minijinja::Environment::new();
    environment.add_filter("tojson", to_json);
    let text = environment.render_str("{{ {'a': [1]} | tojson(indent=2) }}", ()).unwrap();
    assert_eq!(text, "{\n  \"a\": [\n    1\n  ]\n}");
}

#[test]
fn a_template_like_chatml() {
    let conversation = r#"[{"role": "user", "content": "Hi"}, {"role": "note", "content": "x"},
        {"role": "assistant", "content": "<think>no</think>\n\nYes"}]"#;
    let expected = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
        <|im_start|>assistant\nYes<|im_end|>\n";
    assert_eq!(render(CHATML, conversation).unwrap(), expected);
}

#[test]
fn a_template_like_gemma() {
    let expected = "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nYes <&'>!<end_of_turn>\n";
    assert_eq!(render(GEMMA, CONVERSATION).unwrap(), expected);
}

#[test]
fn what_a_template_raises_names_the_file_and_the_line() {
    let error = render(GEMMA, r#"[{"role": "system", "content": "x"}]"#).unwrap_err();
    let expected = "`chats.jsonl`, line 7: the chat template of `tokenizer_config.json` fails on these messages: System \
        role not supported (line 1 of the template)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_template_without_an_end_is_stopped() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, "[]"), Err(TokenError::Template { .. })));
}

#[test]
fn a_damaged_template_names_its_line() {
    let error = Chat::new("m/chat_template.jinja".into(), "a\n{% if x %}", BTreeMap::new()).err().unwrap();
    let message = error.to_string();
    assert!(message.starts_with("the chat template of `m/chat_template.jinja` is wrong: "), "{message}");
    assert!(message.ends_with("(line 2 of the template)"), "{message}");
}

#[test]
fn values_are_printed_in_python_words() {
    assert_eq!(render("{{ true }} {{ none }} {{ 1.0 }} {{ missing }}", "[]").unwrap(), "True None 1.0 ");
}

#[test]
fn places_of_templates_and_forms_of_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let text = || {
        let chat = Chat::of(folder.path())?;
        chat.map(|chat| chat.render(&minijinja::Value::from(()), None, Path::new("c"), 1)).transpose()
    };
    assert!(text().unwrap().is_none());
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": null}"#);
    assert!(text().unwrap().is_none());
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "#;
    write("tokenizer_config.json", &format!(r#"{config}"{{{{ bos_token }}}}x{{{{ eos_token }}}}"}}"#));
    assert_eq!(text().unwrap().unwrap(), "<s>x</s>");
    let named = r#"[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    write("tokenizer_config.json", &format!("{config}{named}"));
    assert_eq!(text().unwrap().unwrap(), "d");
    write("tokenizer_config.json", &format!("{config}{}", named.replace("default", "rag")));
    let message = text().unwrap_err().to_string();
    assert!(message.contains(r#"the chat templates "tool_use", "rag", none of them called "default""#), "{message}");
    write("tokenizer_config.json", &format!("{config}5}}"));
    assert!(matches!(text(), Err(TokenError::BadConfig { .. })));
    write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
    write("chat_template.jinja", "{{ bos_token }}file\n");
    assert_eq!(text().unwrap().unwrap(), "<s>file");
}
