//! Gives the BTF of a linked object one order: in place, without changing a length, so that the ELF
//! file around it and its relocations stay as they are.
//!
//! LLVM writes the forward declarations of structs in the order of a map keyed by heap addresses
//! (FixupDerivedTypes in llvm/lib/Target/BPF/BTFDebug.h), which differs from one checkout to the next
//! [measured: LLVM 22.1.8, with three of them]. Here they are sorted by name, and the strings laid out
//! in the order of their first use. Formats: Documentation/bpf/btf.rst in the kernel's sources.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// `struct btf_type`: name, info, and a size or the id of a type.
const TYPE_BYTES: usize = 12;

/// Reorders one object's BTF; `btf` and `ext` are the contents of its sections .BTF and .BTF.ext.
pub(crate) fn put_in_order(btf: &mut [u8], ext: &mut [u8]) -> Result<()> {
    sort_forward_declarations(btf).context("sorting the types of .BTF")?;
    lay_out_strings(btf, ext).context("laying out the strings of .BTF")
}

fn sort_forward_declarations(btf: &mut [u8]) -> Result<()> {
    let types = types(btf)?;
    // With the position, ids are those of the slots; ids count from 1, for 0 is void.
    let slots: Vec<(u32, usize)> =
        (1..).zip(&types).filter(|(_, ty)| ty.kind == KIND_FWD).map(|(id, ty)| (id, ty.at)).collect();
    let mut sorted = Vec::new();
    for &(id, at) in &slots {
        let content: [u8; TYPE_BYTES] =
            btf[at..at + TYPE_BYTES].try_into().context("a type that is cut off")?;
        sorted.push((string(btf, word(btf, at)?)?.to_vec(), word(btf, at + 4)?, id, content));
    }
    sorted.sort();
    let mut new_id = HashMap::new();
    for ((_, _, old, content), &(new, at)) in sorted.iter().zip(&slots) {
        btf[at..at + TYPE_BYTES].copy_from_slice(content);
        new_id.insert(*old, new);
    }
    // LLVM refers to forward declarations from these alone (BTFTypeDerived::setPointeeType).
    for ty in types {
        if matches!(
            ty.kind,
            KIND_PTR | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG
        ) && let Some(&new) = new_id.get(&word(btf, ty.at + 8)?)
        {
            set_word(btf, ty.at + 8, new);
        }
    }
    Ok(())
}

fn lay_out_strings(btf: &mut [u8], ext: &mut [u8]) -> Result<()> {
    // The empty string is at 0, always.
    let mut table = vec![0];
    let mut new_offset = HashMap::from([(0, 0)]);
    let mut moved = |btf: &[u8], old: u32| -> Result<u32> {
        if let Some(&new) = new_offset.get(&old) {
            return Ok(new);
        }
        let new = u32::try_from(table.len())?;
        table.extend_from_slice(string(btf, old)?);
        table.push(0);
        new_offset.insert(old, new);
        Ok(new)
    };
    for ty in types(btf)? {
        for at in ty.names {
            let new = moved(btf, word(btf, at)?)?;
            set_word(btf, at, new);
        }
    }
    for at in ext_names(ext)? {
        let new = moved(btf, word(ext, at)?)?;
        set_word(ext, at, new);
    }
    let (start, end) = part(btf, 16)?;
    ensure!(
        table.len() <= end - start,
        "the strings in use take {} bytes, more than the {} there are",
        table.len(),
        end - start
    );
    // Should LLVM ever leave a string that nothing uses, zeros take its place.
    table.resize(end - start, 0);
    btf[start..end].copy_from_slice(&table);
    Ok(())
}

struct Type {
    kind: u32,
    at: usize,
    /// Where its offsets into the strings are.
    names: Vec<usize>,
}

fn types(btf: &[u8]) -> Result<Vec<Type>> {
    let (mut at, end) = part(btf, 8)?;
    let mut types = Vec::new();
    while at < end {
        let info = word(btf, at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        // The items that follow: their number, their size in bytes, and whether each begins with a name.
        let (items, bytes, each_named) = match kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => (1, 4, false),
            KIND_ARRAY => (1, 12, false),
            KIND_DATASEC => (count, 12, false),
            KIND_STRUCT | KIND_UNION | KIND_ENUM64 => (count, 12, true),
            KIND_ENUM | KIND_FUNC_PROTO => (count, 8, true),
            KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
            | KIND_FLOAT | KIND_TYPE_TAG => (0, 0, false),
            _ => anyhow::bail!("a type of the kind {kind}, which xtask/src/btf.rs does not know: teach it"),
        };
        let first = at + TYPE_BYTES;
        let mut names = vec![at];
        if each_named {
            names.extend((0..items).map(|item| first + item * bytes));
        }
        types.push(Type { kind, at, names });
        at = first + items * bytes;
    }
    ensure!(at == end, "the last type does not end where the types do");
    Ok(types)
}

/// Where the offsets into .BTF's strings are in .BTF.ext.
fn ext_names(ext: &[u8]) -> Result<Vec<usize>> {
    let mut names = Vec::new();
    // bpf_func_info names nothing, bpf_line_info a file and a line, bpf_core_relo an access string.
    for (header_at, in_record) in [(8, &[][..]), (16, &[4, 8]), (24, &[8])] {
        let (mut at, end) = part(ext, header_at)?;
        if at == end {
            continue;
        }
        let record_bytes = word(ext, at)? as usize;
        at += 4;
        while at < end {
            names.push(at);
            let records = word(ext, at + 4)? as usize;
            at += 8;
            for record in 0..records {
                names.extend(in_record.iter().map(|name| at + record * record_bytes + name));
            }
            at += records * record_bytes;
        }
    }
    Ok(names)
}

/// The part whose offset (from the header's end) and length stand at `header_at`.
fn part(section: &[u8], header_at: usize) -> Result<(usize, usize)> {
    let header_bytes = word(section, 4)?;
    // Older headers of .BTF.ext know fewer parts.
    if header_at + 8 > header_bytes as usize {
        return Ok((0, 0));
    }
    let start = (header_bytes + word(section, header_at)?) as usize;
    let end = start + word(section, header_at + 4)? as usize;
    ensure!(end <= section.len(), "a part of the section ends at {end}, beyond its {} bytes", section.len());
    Ok((start, end))
}

fn string(btf: &[u8], offset: u32) -> Result<&[u8]> {
    let (start, end) = part(btf, 16)?;
    btf[start..end]
        .get(offset as usize..)
        .and_then(|rest| rest.split(|&byte| byte == 0).next())
        .with_context(|| format!("no string at {offset}"))
}

fn word(section: &[u8], at: usize) -> Result<u32> {
    let bytes = section.get(at..).and_then(|rest| rest.first_chunk());
    bytes
        .map(|bytes| u32::from_le_bytes(*bytes))
        .with_context(|| format!("the section ends before byte {at}"))
}

/// Overwrites a number at an offset that was read before.
fn set_word(section: &mut [u8], at: usize, value: u32) {
    section[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Pointers 1 and 2 to the forward declarations `file` and `task`, in the order of `declared`.
    fn section(declared: [&str; 2]) -> Vec<u8> {
        let id = |name| 3 + u32::from(declared[1] == name);
        let strings = format!("\0a.rs\0{}\0{}\0", declared[0], declared[1]);
        let types = [
            [0, KIND_PTR << 24, id("file")],
            [0, KIND_PTR << 24, id("task")],
            [6, KIND_FWD << 24, 0],
            [7 + declared[0].len() as u32, KIND_FWD << 24, 0],
        ];
        let header = [0x0001_eb9f, 24, 0, 48, 48, strings.len() as u32];
        [bytes(&header), bytes(types.as_flattened()), strings.into()].concat()
    }

    /// One line record of the file at `file_name` (an offset into the strings), and nothing else.
    fn line_of(file_name: u32) -> Vec<u8> {
        bytes(&[0x0001_eb9f, 24, 0, 0, 0, 28, 16, 0, 1, 0, file_name, 0, 0])
    }

    #[test]
    fn order_of_forward_declarations_does_not_matter() {
        let (mut one, mut other) = (section(["file", "task"]), section(["task", "file"]));
        let (mut one_line, mut other_line) = (line_of(1), line_of(1));
        assert_ne!(one, other);
        put_in_order(&mut one, &mut one_line).unwrap();
        put_in_order(&mut other, &mut other_line).unwrap();
        assert_eq!(one, other);
        assert_eq!(one_line, other_line);
    }

    #[test]
    fn references_keep_their_meaning() {
        let (mut btf, mut ext) = (section(["task", "file"]), line_of(1));
        put_in_order(&mut btf, &mut ext).unwrap();
        let types = types(&btf).unwrap();
        let pointee = |pointer: usize| {
            let id = word(&btf, types[pointer].at + 8).unwrap() as usize;
            string(&btf, word(&btf, types[id - 1].at).unwrap()).unwrap()
        };
        assert_eq!([pointee(0), pointee(1)], [b"file", b"task"]);
        assert_eq!(string(&btf, word(&ext, 40).unwrap()).unwrap(), b"a.rs");
    }

    #[test]
    fn cut_off_section_is_an_error() {
        let mut btf = section(["task", "file"]);
        btf.truncate(60);
        assert!(put_in_order(&mut btf, &mut line_of(1)).is_err());
    }
}
