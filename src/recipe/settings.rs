//! Settings in layers: the preset, the rule, its overrides. Later layers win leaf by leaf.

use std::{collections::BTreeMap, ops::Range};

use toml::{Table, Value};

/// Settings from one place, with the span of every value.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    /// The settings as written.
    pub(super) table: Table,
    /// Dotted key to the bytes of its value.
    pub(super) places: BTreeMap<String, Range<usize>>,
}

impl Layer {
    /// Settings that nobody wrote.
    pub(super) fn without_places(table: Table) -> Self {
        Self { table, places: BTreeMap::new() }
    }

    /// Where a key, or the table around it, is set here.
    pub(super) fn place(&self, key: &str) -> Option<&Range<usize>> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return Some(place);
            }
            key = key.rsplit_once('.')?.0;
        }
    }
}

/// The layers as one table.
pub(super) fn merge<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Table {
    let mut merged = Table::new();
    for layer in layers {
        merge_table(&mut merged, &layer.table);
    }
    merged
}

fn merge_table(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge_table(into, from),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str) -> Layer {
        Layer::without_places(text.parse().unwrap())
    }

    #[test]
    fn later_layers_win_leaf_by_leaf() {
        let layers = [layer("a = 1\nt = { x = 1, y = 2 }"), layer("b = 2\nt = { y = 3 }"), layer("a = [4]")];
        let merged = merge(&layers);
        assert_eq!(merged, "a = [4]\nb = 2\nt = { x = 1, y = 3 }".parse::<Table>().unwrap());
    }

    #[test]
    fn a_table_replaces_a_leaf_and_the_reverse() {
        let merged = merge(&[layer("a = 1\nb = { x = 1 }"), layer("a = { x = 2 }\nb = 3")]);
        assert_eq!(merged, "a = { x = 2 }\nb = 3".parse::<Table>().unwrap());
    }

    #[test]
    fn a_key_inside_is_found_at_the_table_around_it() {
        let mut layer = layer("a = { b = 1 }");
        layer.places.insert("a".to_owned(), 4..13);
        assert_eq!(layer.place("a.b.c"), Some(&(4..13)));
        assert_eq!(layer.place("b"), None);
    }
}
