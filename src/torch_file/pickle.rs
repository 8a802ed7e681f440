//! An interpreter of the few instructions of Python's pickle format that a dictionary of tensors takes.
//!
//! A pickle is a program for a stack machine that can call any function of any module. This one has no modules: of the
//! names that a program may ask for it knows those of [`Global`], and calling them makes plain data here. Every other
//! instruction and every other name ends the reading with an error that says which.

use std::{collections::HashMap, rc::Rc};

use crate::checkpoint::Dtype;

/// Deepest nesting of tuples: arguments that hold shapes.
const DEEPEST: usize = 4;
/// Most values on the stack: Python fills dictionaries a thousand entries at a time.
const TALLEST: usize = 1 << 16;
/// Most values that are remembered: some for each of a hundred thousand tensors.
const MOST_REMEMBERED: usize = 1 << 21;

/// Most items of a list: layers of a model.
const LONGEST_LIST: usize = 1 << 14;

/// Why a pickle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It ends within an instruction, or without its last one.
    #[error("it ends too early, at byte {at}")]
    Short {
        /// Where.
        at: usize,
    },
    /// An instruction that no dictionary of tensors needs.
    #[error("instruction {name} at byte {at} is not admitted")]
    Instruction {
        /// Its name, or its byte.
        name: String,
        /// Where.
        at: usize,
    },
    /// A name of a module that no dictionary of tensors needs.
    #[error("`{name}` at byte {at} is not admitted; nothing of a file is executed")]
    Global {
        /// Module and name.
        name: String,
        /// Where.
        at: usize,
    },
    /// Instructions that do not make sense together.
    #[error("{problem} at byte {at}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
        /// Where.
        at: usize,
    },
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// Name of its storage.
    pub key: String,
    /// Element type.
    pub dtype: Dtype,
    /// Elements of the storage.
    pub elements: usize,
    /// First element.
    pub offset: usize,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements from one to the next along each dimension.
    pub strides: Vec<usize>,
}

/// The names that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        let storage = |dtype| Some(Self::Storage(dtype));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "DoubleStorage") => storage(Dtype::F64),
            ("torch", "FloatStorage") => storage(Dtype::F32),
            ("torch", "HalfStorage") => storage(Dtype::F16),
            ("torch", "BFloat16Storage") => storage(Dtype::BF16),
            ("torch", "LongStorage") => storage(Dtype::I64),
            ("torch", "IntStorage") => storage(Dtype::I32),
            ("torch", "ShortStorage") => storage(Dtype::I16),
            ("torch", "CharStorage") => storage(Dtype::I8),
            ("torch", "ByteStorage") => storage(Dtype::U8),
            ("torch", "BoolStorage") => storage(Dtype::BOOL),
            _ => None,
        }
    }
}

/// What stands on the stack. Copies are cheap, so that repeating a value costs no memory.
#[derive(Debug, Clone)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Global(Global),
    Tuple {
        items: Rc<[Value]>,
        depth: usize,
    },
    /// Index into [`Machine::dictionaries`].
    Dictionary(usize),
    /// Index into [`Machine::lists`].
    List(usize),
    Storage {
        key: Rc<str>,
        dtype: Dtype,
        elements: usize,
    },
    Tensor(Rc<Stored>),
}

/// The tensors of a dictionary, in its order.
type Tensors = Vec<(String, Stored)>;

/// The tensors of the dictionary that a pickle makes.
pub(super) fn tensors(pickle: &[u8]) -> Result<Tensors, PickleError> {
    let (machine, result) = run(pickle, false)?;
    machine.tensors(&result)
}

/// The tensors of a list of pairs of dictionaries.
pub(super) fn pairs(pickle: &[u8]) -> Result<Vec<[Tensors; 2]>, PickleError> {
    let (machine, result) = run(pickle, true)?;
    let Value::List(index) = result else { return machine.malformed("the result is no list") };
    let pair = |item: &Value| match item {
        Value::Tuple { items, .. } if items.len() == 2 => {
            Ok([machine.tensors(&items[0])?, machine.tensors(&items[1])?])
        }
        _ => machine.malformed("the list holds something else than pairs"),
    };
    // Items can be repeated for nothing; what they make cannot.
    if machine.lists[index].len() > LONGEST_LIST {
        return machine.malformed("a list longer than is read");
    }
    let mut found: Vec<[Tensors; 2]> = Vec::new();
    let mut count = 0;
    for item in &machine.lists[index] {
        let pair = pair(item)?;
        count += pair[0].len() + pair[1].len();
        if count > TALLEST {
            return machine.malformed("more tensors than are read");
        }
        found.push(pair);
    }
    Ok(found)
}

/// What a pickle makes, in which lists have a place or have none.
fn run(pickle: &[u8], admits_lists: bool) -> Result<(Machine<'_>, Value), PickleError> {
    let mut machine = Machine { bytes: pickle, admits_lists, ..Machine::default() };
    let result = loop {
        if let Some(result) = machine.step()? {
            break result;
        }
        if machine.stack.len() + machine.marks.len() > TALLEST {
            return Err(PickleError::Malformed { problem: "more on the stack than is read", at: machine.at });
        }
    };
    if machine.at != pickle.len() {
        return machine.malformed("more after the last instruction");
    }
    Ok((machine, result))
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    dictionaries: Vec<Vec<(Value, Value)>>,
    admits_lists: bool,
    lists: Vec<Vec<Value>>,
}

impl<'a> Machine<'a> {
    /// The tensors that a dictionary holds.
    fn tensors(&self, value: &Value) -> Result<Tensors, PickleError> {
        let Value::Dictionary(index) = value else { return self.malformed("the result is no dictionary") };
        let mut found = Vec::new();
        for (key, value) in &self.dictionaries[*index] {
            let (Value::Text(name), Value::Tensor(tensor)) = (key, value) else {
                return self.malformed("the dictionary holds something else than tensors by name");
            };
            found.push((name.to_string(), Stored::clone(tensor)));
        }
        let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return self.malformed("the dictionary has a name twice");
        }
        Ok(found)
    }

    fn malformed<T>(&self, problem: &'static str) -> Result<T, PickleError> {
        Err(PickleError::Malformed { problem, at: self.at })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(PickleError::Short { at: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of so many bytes, up to 8.
    fn number(&mut self, count: usize) -> Result<u64, PickleError> {
        Ok(self.take(count)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn text(&mut self, count: u64) -> Result<Rc<str>, PickleError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match std::str::from_utf8(self.take(count)?) {
            Ok(text) => Ok(text.into()),
            Err(_) => self.malformed("text that is not UTF-8"),
        }
    }

    fn line(&mut self) -> Result<Rc<str>, PickleError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::Short { at: self.bytes.len() })?;
        let line = self.text(length as u64)?;
        self.at += 1;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => self.malformed("too little on the stack"),
        }
    }

    /// What was put on the stack since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => self.malformed("no mark on the stack"),
        }
    }

    fn tuple(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let inner = items.iter().map(|item| if let Value::Tuple { depth, .. } = item { *depth } else { 0 });
        let depth = 1 + inner.max().unwrap_or(0);
        if depth > DEEPEST {
            return self.malformed("tuples nested too deep");
        }
        self.stack.push(Value::Tuple { items: items.into(), depth });
        Ok(())
    }

    fn small_tuple(&mut self, count: usize) -> Result<(), PickleError> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.tuple(items)
    }

    fn put(&mut self, index: u64) -> Result<(), PickleError> {
        let Some(value) = self.stack.last().cloned() else { return self.malformed("nothing to remember") };
        self.memo.insert(index as u32, value);
        if self.memo.len() > MOST_REMEMBERED { self.malformed("more is remembered than is read") } else { Ok(()) }
    }

    fn get(&mut self, index: u64) -> Result<(), PickleError> {
        let Some(value) = self.memo.get(&(index as u32)).cloned() else {
            return self.malformed("nothing is remembered under that number");
        };
        self.stack.push(value);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str, at: usize) -> Result<(), PickleError> {
        let clipped = |text: &str| text.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
        let found = Global::find(module, name)
            .ok_or_else(|| PickleError::Global { name: format!("{}.{}", clipped(module), clipped(name)), at })?;
        self.stack.push(Value::Global(found));
        Ok(())
    }

    /// Puts pairs into the dictionary on the stack.
    fn set_items(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let Some(Value::Dictionary(index)) = self.stack.last() else { return self.malformed("no dictionary to fill") };
        let index = *index;
        if !items.len().is_multiple_of(2) {
            return self.malformed("a key without a value");
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.dictionaries[index].push((key, value));
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let Some(Value::List(index)) = self.stack.last() else { return self.malformed("no list to append to") };
        let index = *index;
        self.lists[index].extend(items);
        Ok(())
    }

    fn dictionary(&mut self) {
        self.dictionaries.push(Vec::new());
        self.stack.push(Value::Dictionary(self.dictionaries.len() - 1));
    }

    /// Does one instruction; gives the result with the last one.
    fn step(&mut self) -> Result<Option<Value>, PickleError> {
        let at = self.at;
        match self.take(1)?[0] {
            0x80 => {
                if !(2..=5).contains(&self.number(1)?) {
                    return self.malformed("a protocol other than 2 to 5");
                }
            }
            // FRAME: how much follows until the next one.
            0x95 => {
                self.take(8)?;
            }
            b'.' => {
                let result = self.pop()?;
                return if self.stack.is_empty() { Ok(Some(result)) } else { self.malformed("more than one result") };
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' => {
                let number = self.number(1)?;
                self.stack.push(Value::Int(number as i64));
            }
            b'M' => {
                let number = self.number(2)?;
                self.stack.push(Value::Int(number as i64));
            }
            b'J' => {
                let number = self.number(4)?;
                self.stack.push(Value::Int(i64::from(number as u32 as i32)));
            }
            0x8a => {
                let count = self.number(1)? as usize;
                if count > 8 {
                    return self.malformed("a number of more than 64 bits");
                }
                let number = self.number(count)?;
                let unused = 64 - 8 * count as u32;
                let number = if count == 0 { 0 } else { ((number << unused) as i64) >> unused };
                self.stack.push(Value::Int(number));
            }
            opcode @ (b'X' | 0x8c | 0x8d) => {
                let width = if opcode == b'X' {
                    4
                } else if opcode == 0x8c {
                    1
                } else {
                    8
                };
                let count = self.number(width)?;
                let text = self.text(count)?;
                self.stack.push(Value::Text(text));
            }
            opcode @ (b'q' | b'r' | b'h' | b'j') => {
                let index = self.number(if matches!(opcode, b'q' | b'h') { 1 } else { 4 })?;
                if matches!(opcode, b'q' | b'r') { self.put(index) } else { self.get(index) }?;
            }
            0x94 => {
                let index = self.memo.len() as u64;
                self.put(index)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name, at)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return self.malformed("a name that is no text");
                };
                self.global(&module, &name, at)?;
            }
            b')' => self.tuple(Vec::new())?,
            b't' => {
                let items = self.since_mark()?;
                self.tuple(items)?;
            }
            opcode @ 0x85..=0x87 => self.small_tuple(usize::from(opcode - 0x84))?,
            b'}' => self.dictionary(),
            b']' if self.admits_lists => {
                self.lists.push(Vec::new());
                self.stack.push(Value::List(self.lists.len() - 1));
            }
            b'a' if self.admits_lists => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' if self.admits_lists => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(items)?;
            }
            b'Q' => {
                let identifier = self.pop()?;
                let storage = self.storage(&identifier)?;
                self.stack.push(storage);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(&function, &arguments)?;
            }
            // Attributes of a dictionary (`_metadata` of a state dictionary) are of no use here.
            b'b' => {
                let state = self.pop()?;
                let filled = matches!((self.stack.last(), state), (Some(Value::Dictionary(_)), Value::Dictionary(_)));
                if !filled {
                    return self.malformed("attributes of something else than a dictionary");
                }
            }
            opcode => return Err(PickleError::Instruction { name: name_of(opcode), at }),
        }
        Ok(None)
    }

    /// `('storage', type, key, device, elements)`.
    fn storage(&self, identifier: &Value) -> Result<Value, PickleError> {
        let Value::Tuple { items, .. } = identifier else { return self.malformed("a storage that is no tuple") };
        match &items[..] {
            [
                Value::Text(kind),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(elements),
            ] if &**kind == "storage" && *elements >= 0 => {
                Ok(Value::Storage { key: Rc::clone(key), dtype: *dtype, elements: *elements as usize })
            }
            _ => self.malformed("a malformed description of a storage"),
        }
    }

    fn call(&mut self, function: &Value, arguments: &Value) -> Result<(), PickleError> {
        let (Value::Global(function), Value::Tuple { items, .. }) = (function, arguments) else {
            return self.malformed("a call of something else than a name with a tuple");
        };
        match (function, &items[..]) {
            (Global::OrderedDict, []) => {
                self.dictionary();
                Ok(())
            }
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), Value::Bool, Value::Dictionary(_)]) => {
                self.stack.push(tensor.clone());
                Ok(())
            }
            (Global::RebuildTensor, [storage, Value::Int(offset), shape, strides, Value::Bool, hooks, ..])
                if items.len() <= 7 && matches!(hooks, Value::Dictionary(_) | Value::None) =>
            {
                let Value::Storage { key, dtype, elements } = storage else {
                    return self.malformed("a tensor without a storage");
                };
                let (shape, strides) = (self.lengths(shape)?, self.lengths(strides)?);
                let Ok(offset) = usize::try_from(*offset) else { return self.malformed("a negative offset") };
                let (key, dtype, elements) = (key.to_string(), *dtype, *elements);
                self.stack.push(Value::Tensor(Rc::new(Stored { key, dtype, elements, offset, shape, strides })));
                Ok(())
            }
            _ => self.malformed("a call with other arguments than torch.save writes"),
        }
    }

    fn lengths(&self, value: &Value) -> Result<Vec<usize>, PickleError> {
        let Value::Tuple { items, .. } = value else { return self.malformed("a shape that is no tuple") };
        let length = |item: &Value| match item {
            Value::Int(length) => usize::try_from(*length).ok(),
            _ => None,
        };
        items.iter().map(length).collect::<Option<Vec<_>>>().map_or_else(|| self.malformed("a malformed shape"), Ok)
    }
}

/// Instructions by their names in Python's `pickletools`.
fn name_of(opcode: u8) -> String {
    let name = match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'B' | b'C' | 0x8e | 0x96 => "BINBYTES",
        b'F' | b'G' => "FLOAT",
        b'I' | b'L' => "INT",
        b'P' => "PERSID",
        b'S' | b'T' | b'U' | b'V' => "STRING",
        b'a' | b'e' => "APPEND",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' | b']' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x81 | 0x92 => "NEWOBJ",
        0x82..=0x84 => "EXT",
        0x8b => "LONG4",
        0x8f..=0x91 => "SET",
        _ => return format!("0x{opcode:02x}"),
    };
    name.to_owned()
}
