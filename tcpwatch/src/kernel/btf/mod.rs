//! A small reader of BTF, the running kernel's description of its types.
//!
//! In: the bytes of /sys/kernel/btf/vmlinux. Out: byte offsets of named members, also of members in nested anonymous
//! structs and unions; and the parameters of functions. It keeps one offset for each type and is dropped after the
//! start; it does not resolve relocations. Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of the
//! kernel.

pub mod offsets;

use std::collections::{HashMap, HashSet};

use thiserror::Error;

#[derive(Clone, Debug, Error)]
pub enum BtfError {
    #[error("the BTF is cut short or malformed at byte {0}")]
    Malformed(usize),
    #[error("the BTF has the magic {0:#06x}: not BTF of this machine's byte order")]
    Magic(u16),
    #[error("the kernel has no `struct {0}`")]
    NoStruct(String),
    #[error("`struct {0}` of this kernel has no member `{1}`")]
    NoMember(String, String),
    #[error("`struct {0}` of this kernel has a different bit field at `{1}`")]
    BitField(String, String),
}

const MAGIC: u16 = 0xeb9f;
const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
/// Bytes of `struct btf_type`, of `struct btf_member` and of `struct btf_param`.
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
const PARAM_BYTES: usize = 8;

/// Types that name one another, and anonymous types in one another, of which a kernel has a few: a malformed type may lead
/// to itself.
const MAX_STEPS: usize = 32;
const MAX_DEPTH: u32 = 16;

/// The kernel's typedef for a tracepoint's probes is this prefix and the tracepoint's name.
const TRACEPOINT: &[u8] = b"btf_trace_";

/// Parsed BTF: the bytes, and the beginning of each type.
#[derive(Debug)]
pub struct Btf<'a> {
    bytes: &'a [u8],
    strings: usize,
    /// Byte offset of type id `n + 1`.
    types: Vec<u32>,
    /// The named structs; of several with one name, the first.
    structs: HashMap<&'a [u8], u32>,
    /// The functions, and the typedefs that describe tracepoints (`btf_trace_<name>`).
    functions: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Indexes the types.
    ///
    /// # Errors
    /// When the bytes are not BTF in this machine's byte order, or are cut short.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at| read_u32(bytes, at);
        let magic = u16::try_from(word(0)? & 0xffff).unwrap_or(0);
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let header = word(4)? as usize;
        let types_at = header.saturating_add(word(8)? as usize);
        let types_end = types_at.saturating_add(word(12)? as usize);
        let strings = header.saturating_add(word(16)? as usize);
        let mut btf =
            Self { bytes, strings, types: Vec::new(), structs: HashMap::new(), functions: HashMap::new() };
        let mut at = types_at;
        while at < types_end {
            let info = word(at + 4)?;
            let (kind, vlen) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            btf.types.push(at as u32);
            let name = btf.string(word(at)?)?;
            if kind == KIND_STRUCT && !name.is_empty() {
                btf.structs.entry(name).or_insert(at as u32);
            } else if kind == KIND_FUNC || (kind == KIND_TYPEDEF && name.starts_with(TRACEPOINT)) {
                btf.functions.entry(name).or_insert(at as u32);
            }
            at += TYPE_BYTES + trailing_bytes(kind, vlen).ok_or(BtfError::Malformed(at))?;
        }
        Ok(btf)
    }

    /// Byte offset of `path` in `struct name`; dots step into a member that is itself a struct. `member:5` is a bit
    /// field of five bits, which must be the lowest of a byte; a kernel may have a whole member in its place.
    ///
    /// # Errors
    /// When the kernel has no such struct or member, or the member is another bit field.
    pub fn offset_of(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        match self.bit_offset_of(name, path)? {
            bits if bits % 8 == 0 => Ok(bits / 8),
            _ => Err(BtfError::BitField(name.to_owned(), path.to_owned())),
        }
    }

    /// The same in bits, also of a bit field that does not begin with a byte.
    ///
    /// # Errors
    /// When the kernel has no such struct or member, or the bit field is of another width.
    pub fn bit_offset_of(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let mut at =
            *self.structs.get(name.as_bytes()).ok_or_else(|| BtfError::NoStruct(name.to_owned()))? as usize;
        let (path, width) =
            path.split_once(':').map_or((path, 0), |(path, width)| (path, width.parse().unwrap_or(0)));
        let (mut bits, mut found_width) = (0, 0);
        for member in path.split('.') {
            let missing = || BtfError::NoMember(name.to_owned(), path.to_owned());
            let (offset, bit_field_size, type_id) =
                self.member(at, member.as_bytes(), 0, &mut HashSet::new())?.ok_or_else(missing)?;
            bits = sum(bits, offset)?;
            found_width = bit_field_size;
            at = self.type_at(self.skip_modifiers(type_id)?).unwrap_or(0);
        }
        if found_width == width || found_width == 0 {
            Ok(bits)
        } else {
            Err(BtfError::BitField(name.to_owned(), path.to_owned()))
        }
    }

    /// For each parameter of a function the struct that it points to, `None` for any other type; `None` where the
    /// kernel does not have the function.
    ///
    /// # Errors
    /// When the BTF is malformed.
    pub fn parameters(&self, function: &str) -> Result<Option<Vec<Option<&'a [u8]>>>, BtfError> {
        let Some(at) = self.functions.get(function.as_bytes()) else { return Ok(None) };
        self.prototype(*at as usize).map(Some)
    }

    /// For each argument that a tracepoint passes to its probes the struct that it points to, as in
    /// [`Self::parameters`].
    ///
    /// # Errors
    /// When the BTF is malformed.
    pub fn tracepoint_parameters(&self, name: &str) -> Result<Option<Vec<Option<&'a [u8]>>>, BtfError> {
        let name = [TRACEPOINT, name.as_bytes()].concat();
        let Some(at) = self.functions.get(name.as_slice()) else { return Ok(None) };
        let mut parameters = self.prototype(*at as usize)?;
        // The first is the probe's own data.
        parameters.drain(..parameters.len().min(1));
        Ok(Some(parameters))
    }

    fn prototype(&self, at: usize) -> Result<Vec<Option<&'a [u8]>>, BtfError> {
        let (proto, vlen) = self.behind(at, &[KIND_FUNC, KIND_TYPEDEF, KIND_PTR], KIND_FUNC_PROTO)?;
        (0..vlen)
            .map(|index| {
                let type_id = read_u32(self.bytes, proto + TYPE_BYTES + index * PARAM_BYTES + 4)?;
                let Some(parameter) = self.type_at(self.skip_modifiers(type_id)?) else { return Ok(None) };
                if self.kind_at(parameter)? != KIND_PTR {
                    return Ok(None);
                }
                let target = self.skip_modifiers(read_u32(self.bytes, parameter + 8)?)?;
                match self.type_at(target) {
                    Some(target) if self.kind_at(target)? == KIND_STRUCT => {
                        self.string(read_u32(self.bytes, target)?).map(Some)
                    }
                    _ => Ok(None),
                }
            })
            .collect()
    }

    /// Follows types of the kinds `steps` to the one of kind `wanted`: its offset and its number of parts.
    fn behind(&self, mut at: usize, steps: &[u32], wanted: u32) -> Result<(usize, usize), BtfError> {
        for _ in 0..MAX_STEPS {
            if !steps.contains(&self.kind_at(at)?) {
                break;
            }
            at = self.type_at(read_u32(self.bytes, at + 8)?).ok_or(BtfError::Malformed(at))?;
        }
        if self.kind_at(at)? != wanted {
            return Err(BtfError::Malformed(at));
        }
        Ok((at, (read_u32(self.bytes, at + 4)? & 0xffff) as usize))
    }

    fn kind_at(&self, at: usize) -> Result<u32, BtfError> {
        Ok((read_u32(self.bytes, at + 4)? >> 24) & 0x1f)
    }

    /// Bit offset, width if it is a bit field (else 0) and type id of a member, also of one in a nested anonymous
    /// struct or union. `searched`: where the types are that need not be searched again, so that a malformed type that
    /// contains itself many times is searched once.
    fn member(
        &self,
        at: usize,
        name: &[u8],
        depth: u32,
        searched: &mut HashSet<usize>,
    ) -> Result<Option<(u32, u32, u32)>, BtfError> {
        let info = read_u32(self.bytes, at + 4)?;
        let (kind, vlen) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        if (kind != KIND_STRUCT && kind != KIND_UNION) || depth > MAX_DEPTH || !searched.insert(at) {
            return Ok(None);
        }
        let has_bit_fields = info >> 31 == 1;
        for index in 0..vlen {
            let member = at + TYPE_BYTES + index * MEMBER_BYTES;
            let (member_name, type_id) =
                (self.string(read_u32(self.bytes, member)?)?, read_u32(self.bytes, member + 4)?);
            let raw = read_u32(self.bytes, member + 8)?;
            let (offset, bit_field_size) =
                if has_bit_fields { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            if member_name == name {
                return Ok(Some((offset, bit_field_size, type_id)));
            }
            if member_name.is_empty() {
                let inner = self.type_at(self.skip_modifiers(type_id)?).ok_or(BtfError::Malformed(member))?;
                if let Some((inner_offset, bits, type_id)) = self.member(inner, name, depth + 1, searched)? {
                    return Ok(Some((sum(offset, inner_offset)?, bits, type_id)));
                }
            }
        }
        Ok(None)
    }

    /// The type behind typedefs, const, volatile and tags.
    fn skip_modifiers(&self, mut type_id: u32) -> Result<u32, BtfError> {
        for _ in 0..MAX_STEPS {
            let Some(at) = self.type_at(type_id) else { return Ok(type_id) };
            match (read_u32(self.bytes, at + 4)? >> 24) & 0x1f {
                // TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG
                8..=11 | 18 => type_id = read_u32(self.bytes, at + 8)?,
                _ => break,
            }
        }
        Ok(type_id)
    }

    fn type_at(&self, type_id: u32) -> Option<usize> {
        self.types.get((type_id as usize).checked_sub(1)?).map(|at| *at as usize)
    }

    fn string(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let at = self.strings.saturating_add(offset as usize);
        let rest = self.bytes.get(at..).ok_or(BtfError::Malformed(at))?;
        let end = rest.iter().position(|byte| *byte == 0).ok_or(BtfError::Malformed(at))?;
        Ok(&rest[..end])
    }
}

/// Bytes that follow `struct btf_type`, by kind; `None` for an unknown kind, which cannot be skipped.
fn trailing_bytes(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => vlen * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => vlen * 8,
        _ => return None,
    })
}

/// Of offsets in bits.
fn sum(one: u32, other: u32) -> Result<u32, BtfError> {
    one.checked_add(other).ok_or(BtfError::Malformed(one as usize))
}

fn read_u32(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let end = at.checked_add(4).ok_or(BtfError::Malformed(at))?;
    let word = bytes.get(at..end).ok_or(BtfError::Malformed(at))?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds BTF: `members` are (name, type id, raw offset) of each struct in turn.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Builder {
        fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0] }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn push(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }

        fn int(&mut self) {
            let name = self.name("int");
            self.push(&[name, 1 << 24, 4, 32]);
        }

        fn aggregate(&mut self, kind: u32, name: &str, kind_flag: bool, members: &[(&str, u32, u32)]) {
            let name = self.name(name);
            self.push(&[name, u32::from(kind_flag) << 31 | kind << 24 | members.len() as u32, 64]);
            for (member, type_id, offset) in members {
                let member = self.name(member);
                self.push(&[member, *type_id, *offset]);
            }
        }

        /// A type that names another: pointer, typedef, function.
        fn refer(&mut self, kind: u32, name: &str, type_id: u32) {
            let name = self.name(name);
            self.push(&[name, kind << 24, type_id]);
        }

        fn prototype(&mut self, parameters: &[u32]) {
            self.push(&[0, KIND_FUNC_PROTO << 24 | parameters.len() as u32, 1]);
            for parameter in parameters {
                self.push(&[0, *parameter]);
            }
        }

        fn finish(self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut bytes: Vec<u8> = [u32::from(MAGIC) | 1 << 16, 24, 0, types, types, strings]
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            bytes.extend(self.types);
            bytes.extend(self.strings);
            bytes
        }
    }

    fn sample() -> Vec<u8> {
        let mut btf = Builder::new();
        btf.int(); // 1
        btf.aggregate(KIND_UNION, "", false, &[("in_union", 1, 0), ("beside", 1, 0)]); // 2
        btf.aggregate(KIND_STRUCT, "inner", false, &[("pad", 1, 0), ("inum", 1, 96)]); // 3
        btf.aggregate(KIND_STRUCT, "outer", false, &[("first", 1, 0), ("", 2, 64), ("ns", 3, 128)]); // 4
        btf.aggregate(KIND_STRUCT, "bits", true, &[("whole", 1, 32), ("narrow", 1, 5 << 24 | 64)]); // 5
        btf.refer(10, "", 4); // 6: const struct outer
        btf.refer(KIND_PTR, "", 6); // 7
        btf.prototype(&[7, 1]); // 8
        btf.refer(KIND_FUNC, "function", 8); // 9
        btf.refer(KIND_PTR, "", 8); // 10
        btf.refer(KIND_TYPEDEF, "btf_trace_point", 10); // 11
        btf.finish()
    }

    #[test]
    fn parameters_of_functions_and_tracepoints_are_read() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        let outer = &b"outer"[..];
        assert_eq!(btf.parameters("function").unwrap(), Some(vec![Some(outer), None]));
        assert_eq!(btf.tracepoint_parameters("point").unwrap(), Some(vec![None]));
        assert_eq!(btf.parameters("absent").unwrap(), None);
    }

    #[test]
    fn offsets_of_members_are_found() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        for (name, path, offset) in [
            ("outer", "first", 0),
            ("outer", "in_union", 8),
            ("outer", "beside", 8),
            ("outer", "ns", 16),
            ("outer", "ns.inum", 28),
            ("bits", "whole", 4),
            ("bits", "whole:5", 4),
            ("bits", "narrow:5", 8),
        ] {
            assert_eq!(btf.offset_of(name, path).unwrap(), offset, "{name}.{path}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert!(matches!(btf.offset_of("nothing", "a"), Err(BtfError::NoStruct(name)) if name == "nothing"));
        assert!(
            matches!(btf.offset_of("outer", "ns.none"), Err(BtfError::NoMember(_, path)) if path == "ns.none")
        );
        for other in ["narrow", "narrow:4"] {
            assert!(matches!(btf.offset_of("bits", other), Err(BtfError::BitField(..))), "{other}");
        }
    }

    #[test]
    fn types_that_contain_or_name_themselves_end_a_search() {
        let mut btf = Builder::new();
        btf.aggregate(KIND_STRUCT, "", false, &[("", 1, 0); 64]); // 1
        btf.aggregate(KIND_STRUCT, "outer", false, &[("", 1, u32::MAX), ("", 3, u32::MAX)]); // 2
        btf.aggregate(KIND_UNION, "", false, &[("far", 1, 8)]); // 3
        btf.refer(KIND_TYPEDEF, "btf_trace_point", 4); // 4
        btf.refer(KIND_FUNC, "function", 4); // 5
        let bytes = btf.finish();
        let btf = Btf::parse(&bytes).unwrap();
        assert!(matches!(btf.offset_of("outer", "none"), Err(BtfError::NoMember(..))));
        assert!(matches!(btf.offset_of("outer", "far"), Err(BtfError::Malformed(_))));
        assert!(btf.parameters("function").is_err());
        assert!(btf.tracepoint_parameters("point").is_err());
    }

    #[test]
    fn every_truncation_is_an_error_not_a_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            if let Ok(btf) = Btf::parse(&bytes[..length]) {
                let _ = btf.offset_of("outer", "ns.inum");
                let _ = btf.parameters("function");
            }
        }
        assert!(matches!(Btf::parse(&[0; 64]), Err(BtfError::Magic(0))));
    }
}
