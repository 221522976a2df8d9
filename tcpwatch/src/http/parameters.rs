//! The parameters of a question. They are declared once, as a struct: a handler gets the parsed struct, and the
//! documents, the list at `/help` and the error messages come from the same declaration. So what is not declared cannot be
//! read.

use std::{collections::VecDeque, net::IpAddr};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::{http::ApiError, model::groups::Role, tcp::state::TcpState};

/// One parameter as the documents show it.
#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub place: Place,
    /// Markdown, on one line.
    pub meaning: String,
    /// JSON Schema of its value, with `default` where there is one.
    pub schema: Json,
}

/// Where a parameter stands in the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Path,
    Query,
}

/// What a request gives, as far as it has not been understood yet.
#[derive(Debug, Default)]
pub(crate) struct Given {
    path: VecDeque<(String, String)>,
    query: VecDeque<(String, String)>,
}

impl Given {
    /// `path`: the values of the segments in braces.
    pub(crate) fn new(path: VecDeque<(String, String)>, query: &str) -> Self {
        Self { path, query: form_urlencoded::parse(query.as_bytes()).into_owned().collect() }
    }

    /// All values of a parameter of the query, in their order.
    fn take_all(&mut self, name: &str) -> Vec<String> {
        take_all(&mut self.query, name)
    }

    /// # Errors
    /// When it is given twice.
    pub(crate) fn take(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            return Err(ApiError::bad(name, "given more than once"));
        }
        Ok(values.pop())
    }

    /// The value of a segment of the path.
    pub(crate) fn take_segment(&mut self, name: &str) -> String {
        take_all(&mut self.path, name).pop().unwrap_or_default()
    }

    /// # Errors
    /// When something is left, which nothing took.
    pub(crate) fn finish(&self, known: impl Fn() -> Vec<Parameter>) -> Result<(), ApiError> {
        match self.query.front() {
            None => Ok(()),
            Some((name, _)) => {
                let known = known().into_iter().filter(|parameter| parameter.place == Place::Query);
                let known: Vec<_> = known.map(|parameter| parameter.name).collect();
                Err(ApiError::bad(name, format!("unknown parameter; known here: {}", known.join(", "))))
            }
        }
    }
}

fn take_all(given: &mut VecDeque<(String, String)>, name: &str) -> Vec<String> {
    let (taken, left) = std::mem::take(given).into_iter().partition(|(key, _)| key == name);
    *given = left;
    VecDeque::into_iter(taken).map(|(_, value)| value).collect()
}

/// Parameters that belong together. A handler names those that it takes by its argument's type.
pub(crate) trait Parameters: Sized + Send + 'static {
    fn declare() -> Vec<Parameter>;

    /// # Errors
    /// When one is malformed or given more often than it may be.
    fn take(given: &mut Given) -> Result<Self, ApiError>;
}

macro_rules! tuples {
    ($(($($part:ident),*);)*) => {$(
        impl<$($part: Parameters),*> Parameters for ($($part,)*) {
            fn declare() -> Vec<Parameter> {
                let parts: Vec<Vec<Parameter>> = vec![$($part::declare()),*];
                parts.into_iter().flatten().collect()
            }

            #[allow(unused_variables, clippy::unused_unit, reason = "of the empty one")]
            fn take(given: &mut Given) -> Result<Self, ApiError> {
                Ok(($($part::take(given)?,)*))
            }
        }
    )*};
}

tuples! {
    ();
    (A, B);
    (A, B, C);
}

/// How often a parameter may be given, and what it is when it is absent.
pub(crate) trait Field: Sized {
    /// # Errors
    /// When a value is malformed or there are too many.
    fn take(given: &mut Given, name: &str) -> Result<Self, ApiError>;
    fn schema() -> Json;
}

fn parse<T: Value>(name: &str, text: &str) -> Result<T, ApiError> {
    T::parse(text).map_err(|error| ApiError::bad(name, format!("`{text}` {error}")))
}

/// At most once.
impl<T: Value> Field for Option<T> {
    fn take(given: &mut Given, name: &str) -> Result<Self, ApiError> {
        given.take(name)?.map(|text| parse(name, &text)).transpose()
    }

    fn schema() -> Json {
        T::schema()
    }
}

/// At most once; else its default.
impl<T: Value + Default + Serialize> Field for T {
    fn take(given: &mut Given, name: &str) -> Result<Self, ApiError> {
        Ok(<Option<Self> as Field>::take(given, name)?.unwrap_or_default())
    }

    fn schema() -> Json {
        let mut schema = T::schema();
        schema["default"] = json!(T::default());
        schema
    }
}

/// Any number of times.
impl<T: Value> Field for Vec<T> {
    fn take(given: &mut Given, name: &str) -> Result<Self, ApiError> {
        given.take_all(name).iter().map(|text| parse(name, text)).collect()
    }

    fn schema() -> Json {
        json!({"type": "array", "items": T::schema()})
    }
}

/// The value of a parameter.
pub(crate) trait Value: Sized + Send + 'static {
    /// # Errors
    /// What is wrong; it follows the value in a sentence: "is not one of ...".
    fn parse(text: &str) -> Result<Self, String>;

    /// JSON Schema.
    fn schema() -> Json;
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn schema() -> Json {
        json!({"type": "string"})
    }
}

impl Value for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "is not one of true, false".to_owned())
    }

    fn schema() -> Json {
        json!({"type": "boolean"})
    }
}

macro_rules! integers {
    ($($type:ident)*) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("is not an integer from {} to {}", $type::MIN, $type::MAX))
            }

            fn schema() -> Json {
                json!({"type": "integer", "minimum": $type::MIN, "maximum": $type::MAX})
            }
        }
    )*};
}

integers! { u16 u32 }

/// An address stands for itself.
impl Value for IpNet {
    fn parse(text: &str) -> Result<Self, String> {
        let address = text.parse().map(|address: IpAddr| Self::from(address.to_canonical()));
        address
            .or_else(|_| text.parse())
            .map_err(|_| "is neither an address nor a network such as 10.0.0.0/8".to_owned())
    }

    fn schema() -> Json {
        json!({"type": "string", "format": "ip-or-network"})
    }
}

impl Value for TcpState {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| format!("is {error}"))
    }

    fn schema() -> Json {
        json!({"type": "string", "enum": Self::ALL})
    }
}

impl Value for Role {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| format!("is {error}"))
    }

    fn schema() -> Json {
        json!({"type": "string", "enum": Self::ALL})
    }
}

/// A value that is one of a few words. The first is the default.
pub(crate) trait Choice: Copy + 'static {
    /// Each with its word and what it stands for.
    const ALL: &'static [(Self, &'static str, &'static str)];
}

impl<T: Choice + Send> Value for T {
    fn parse(text: &str) -> Result<Self, String> {
        let found = T::ALL.iter().find(|(_, word, _)| *word == text);
        found.map(|(choice, ..)| *choice).ok_or_else(|| {
            let words: Vec<_> = T::ALL.iter().map(|(_, word, _)| *word).collect();
            format!("is not one of {}", words.join(", "))
        })
    }

    fn schema() -> Json {
        let words: Vec<_> = T::ALL.iter().map(|(_, word, _)| *word).collect();
        let meanings: Vec<_> =
            T::ALL.iter().map(|(_, word, meaning)| format!("`{word}`: {}", meaning.trim())).collect();
        json!({"type": "string", "enum": words, "description": meanings.join("; ")})
    }
}

/// Declares an enum of which each variant has a word and, as its doc comment, what it stands for.
macro_rules! choices {
    ($(#[$attribute:meta])* $vis:vis enum $name:ident {
        $($(#[doc = $meaning:literal])+ $variant:ident = $word:literal,)+
    }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl $crate::http::parameters::Choice for $name {
            const ALL: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$variant, $word, concat!($($meaning),+))),+];
        }

        impl Default for $name {
            fn default() -> Self {
                <Self as $crate::http::parameters::Choice>::ALL[0].0
            }
        }

        impl $name {
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

/// Declares a struct of which each field is a parameter of the query with the field's name, and the field's doc comment
/// what it means. A field is an `Option`, a value with a default, or a `Vec` of what may be given many times.
macro_rules! parameters {
    ($(#[$attribute:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $meaning:literal])+ $field_vis:vis $field:ident: $type:ty,)+
    }) => {
        $(#[$attribute])*
        $vis struct $name {
            $($(#[doc = $meaning])+ $field_vis $field: $type,)+
        }

        impl $crate::http::parameters::Parameters for $name {
            fn declare() -> Vec<$crate::http::parameters::Parameter> {
                vec![$($crate::http::parameters::Parameter {
                    name: stringify!($field),
                    place: $crate::http::parameters::Place::Query,
                    meaning: concat!($($meaning),+).trim().to_owned(),
                    schema: <$type as $crate::http::parameters::Field>::schema(),
                }),+]
            }

            fn take(
                given: &mut $crate::http::parameters::Given,
            ) -> Result<Self, $crate::http::request::ApiError> {
                Ok(Self {
                    $($field: $crate::http::parameters::Field::take(given, stringify!($field))?,)+
                })
            }
        }
    };
}

pub(crate) use {choices, parameters};
