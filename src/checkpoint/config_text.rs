//! Edits one top-level member of a JSON object and leaves every other byte of the text as it is.
//!
//! `config.json` belongs to the model's authors: runtimes differ in what they read from it, so nothing in it is
//! re-emitted; only `quantization_config` is set or removed.

use std::ops::Range;

/// One member of an object: the whole member and its value as byte ranges of the text.
struct Member {
    key: String,
    whole: Range<usize>,
    value: Range<usize>,
}

/// Sets `key` to `value` (JSON text) in the object `text`, which must be valid JSON.
#[must_use]
pub fn set_member(text: &str, key: &str, value: &str) -> String {
    let members = members(text);
    if let Some(member) = members.iter().find(|member| member.key == key) {
        return format!("{}{}{}", &text[..member.value.start], value, &text[member.value.end..]);
    }
    let quoted = serde_json::Value::from(key);
    match members.last() {
        None => {
            let open = text.find('{').map_or(0, |index| index + 1);
            format!("{}\n  {quoted}: {value}\n{}", &text[..open], text[open..].trim_start())
        }
        Some(last) => {
            let separator = separator_before(text, &members[0]);
            format!("{},{separator}{quoted}: {value}{}", &text[..last.whole.end], &text[last.whole.end..])
        }
    }
}

/// Removes `key` from the object `text`, which must be valid JSON; the text itself where it has no such member.
#[must_use]
pub fn remove_member(text: &str, key: &str) -> String {
    let members = members(text);
    let Some(index) = members.iter().position(|member| member.key == key) else { return text.to_owned() };
    let cut = if index + 1 < members.len() {
        members[index].whole.start..members[index + 1].whole.start
    } else if index > 0 {
        members[index - 1].whole.end..members[index].whole.end
    } else {
        members[index].whole.clone()
    };
    format!("{}{}", &text[..cut.start], &text[cut.end..])
}

/// Writes `value` as JSON indented for a member of a top-level object with two-space indentation.
#[must_use]
pub fn indented(value: &serde_json::Value) -> String {
    let pretty = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    pretty.replace('\n', "\n  ")
}

/// The white space before the first member: new members are set off like it.
fn separator_before<'a>(text: &'a str, first: &Member) -> &'a str {
    let open = text.find('{').map_or(0, |index| index + 1);
    &text[open..first.whole.start]
}

fn members(text: &str) -> Vec<Member> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = text.find('{').map_or(bytes.len(), |index| index + 1);
    loop {
        while at < bytes.len() && (bytes[at].is_ascii_whitespace() || bytes[at] == b',') {
            at += 1;
        }
        if at >= bytes.len() || bytes[at] != b'"' {
            return found;
        }
        let key_end = end_of_string(bytes, at);
        let key = serde_json::from_str(&text[at..key_end]).unwrap_or_default();
        let mut value_start = key_end;
        while value_start < bytes.len() && (bytes[value_start].is_ascii_whitespace() || bytes[value_start] == b':') {
            value_start += 1;
        }
        let value_end = end_of_value(bytes, value_start);
        found.push(Member { key, whole: at..value_end, value: value_start..value_end });
        at = value_end;
    }
}

/// The index behind the string that starts at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The index behind the value that starts at `start`.
fn end_of_value(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at = end_of_string(bytes, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' if depth == 0 => return trim_end(bytes, start, at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

fn trim_end(bytes: &[u8], start: usize, mut end: usize) -> usize {
    while end > start && bytes[end - 1].is_ascii_whitespace() {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::{remove_member, set_member};

    const SOURCE: &str = "{\n  \"a\": 1,\n  \"b\": {\"c\": [1, \"}\"]},\n  \"d\": \"x\\\"y\"\n}\n";

    #[test]
    fn a_new_member_goes_last_and_nothing_else_changes() {
        let edited = set_member(SOURCE, "q", "{}");
        assert_eq!(edited, "{\n  \"a\": 1,\n  \"b\": {\"c\": [1, \"}\"]},\n  \"d\": \"x\\\"y\",\n  \"q\": {}\n}\n");
    }

    #[test]
    fn an_existing_member_is_replaced_in_place() {
        let edited = set_member(SOURCE, "b", "7");
        assert_eq!(edited, "{\n  \"a\": 1,\n  \"b\": 7,\n  \"d\": \"x\\\"y\"\n}\n");
    }

    #[test]
    fn members_are_removed_at_every_place() {
        for key in ["a", "b", "d"] {
            let value: serde_json::Value = serde_json::from_str(&remove_member(SOURCE, key)).unwrap();
            let mut expected: serde_json::Value = serde_json::from_str(SOURCE).unwrap();
            expected.as_object_mut().unwrap().remove(key);
            assert_eq!(value, expected);
        }
        assert_eq!(remove_member(SOURCE, "absent"), SOURCE);
        assert_eq!(remove_member("{\"a\": 1}", "a"), "{}");
    }

    #[test]
    fn setting_and_removing_gives_the_source_back() {
        for source in [SOURCE, "{\"a\":1,\"b\":2}", "{ \"a\" : [ 1 , 2 ] }"] {
            assert_eq!(remove_member(&set_member(source, "q", "{\"z\": [1]}"), "q"), source);
        }
        let empty: serde_json::Value = serde_json::from_str(&set_member("{}", "q", "1")).unwrap();
        assert_eq!(empty["q"], 1);
    }
}
