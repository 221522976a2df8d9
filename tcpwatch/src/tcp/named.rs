//! Values that JSON shows by their name.

/// Serializes a type that has `ALL` values and a `name()` as that name, and lists the names in its schema. The method may be
/// called otherwise: `serialized_by_name!(Signal, key)`.
macro_rules! serialized_by_name {
    ($type:ident) => {
        $crate::tcp::serialized_by_name!($type, name);
    };
    ($type:ident, $name:ident) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.$name())
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut names: Vec<_> = Self::ALL.iter().map(|value| value.$name()).collect();
                names.sort_unstable();
                names.dedup();
                schemars::json_schema!({"type": "string", "enum": names})
            }
        }
    };
}

pub(crate) use serialized_by_name;
